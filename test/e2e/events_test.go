package e2e

import (
	"context"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// watchEvents subscribes, and is sure of it when it returns.
func (n *Node) watchEvents(ctx context.Context) cri.RuntimeService_GetContainerEventsClient {
	n.T.Helper()
	stream, err := n.Runtime.GetContainerEvents(ctx, &cri.GetEventsRequest{})
	if err == nil {
		_, err = stream.Header()
	}
	if err != nil {
		n.T.Fatalf("GetContainerEvents = %v", err)
	}
	return stream
}

// A pod's life, as two clients are told of it.
func TestContainerEvents(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	streams := []cri.RuntimeService_GetContainerEventsClient{n.watchEvents(ctx), n.watchEvents(ctx)}

	p := n.PodConfig("life")
	pod := n.RunPod(p)
	long := n.Run(pod, p, n.ContainerConfig("long", "sleep", "1000"))
	short := n.Run(pod, p, n.ContainerConfig("short", "sh", "-c", "exit 3"))
	n.WaitExit(short)
	st, err := n.Runtime.PodSandboxStatus(n.Ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: pod})
	if err != nil || st.Timestamp <= 0 || len(st.ContainersStatuses) != 2 || st.ContainersStatuses[0].Id != long || st.ContainersStatuses[1].ExitCode != 3 {
		t.Errorf("PodSandboxStatus = %v, %v, want a time and both containers", st, err)
	}
	n.RemovePod(pod)

	names := map[string]string{pod: "pod", long: "long", short: "short"}
	for _, stream := range streams {
		var told []string
		var at int64
		for range 12 {
			e, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			what := names[e.ContainerId] + " " + strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(e.ContainerEventType.String(), "CONTAINER_"), "_EVENT"))
			told = append(told, what)
			if e.CreatedAt <= at {
				t.Errorf("%s at %d is not after what was before, %d", what, e.CreatedAt, at)
			}
			at = e.CreatedAt
			if (e.PodSandboxStatus == nil) != (what == "pod deleted") {
				t.Errorf("%s with the pod's status %v", what, e.PodSandboxStatus)
			}
			for _, c := range e.ContainersStatuses {
				if what == "short stopped" && c.Id == short && (c.ExitCode != 3 || c.State != cri.ContainerState_CONTAINER_EXITED) {
					t.Errorf("%s: %v, want exit code 3", what, c)
				}
			}
		}
		for name, want := range map[string][]string{
			"pod":   {"pod created", "pod started", "pod stopped", "pod deleted"},
			"long":  {"long created", "long started", "long stopped", "long deleted"},
			"short": {"short created", "short started", "short stopped", "short deleted"},
		} {
			got := slices.DeleteFunc(slices.Clone(told), func(s string) bool { return !strings.HasPrefix(s, name+" ") })
			if !slices.Equal(got, want) {
				t.Errorf("events of %s: %q, want %q", name, got, want)
			}
		}
		if last := told[len(told)-1]; told[0] != "pod created" || last != "pod deleted" {
			t.Errorf("events %q do not begin and end with the pod", told)
		}
		if slices.Index(told, "pod stopped") < slices.Index(told, "long stopped") {
			t.Errorf("events %q: the pod has stopped before its container", told)
		}
	}

	// The stream is open for as long as crid serves, and does not keep it from ending.
	n.Stop()
	if _, err := streams[0].Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream of a crid that has ended = %v, want Unavailable", err)
	}
	n.Start()
}
