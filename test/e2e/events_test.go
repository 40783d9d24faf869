package e2e

import (
	"context"
	"errors"
	"slices"
	"strings"
	"syscall"
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

// What ends while crid is away is told to who subscribes afterwards, as kubelet does, and
// later than what crid has said before. SIGHUP, by which daemons reload, ends no stream.
func TestEventsOverRestart(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("away")
	pod := n.RunPod(p)
	stays := n.Run(pod, p, n.ContainerConfig("stays", "sleep", "1000"))
	ends := n.Run(pod, p, n.ContainerConfig("ends", "sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.02; done"))
	pid := n.containerPID(ends)
	before, err := n.Runtime.PodSandboxStatus(n.Ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: pod})
	if err != nil || len(before.ContainersStatuses) != 2 || before.ContainersStatuses[0].State != cri.ContainerState_CONTAINER_RUNNING {
		t.Fatalf("PodSandboxStatus = %v, %v, want two containers that run", before, err)
	}
	n.Kill9()
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	n.Eventually("it ends without crid", func() bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) })
	n.Start()

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 2 {
		stream := n.watchEvents(ctx)
		if err := syscall.Kill(n.PID(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		e, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if e.ContainerId != ends || e.ContainerEventType != cri.ContainerEventType_CONTAINER_STOPPED_EVENT || e.CreatedAt <= before.Timestamp {
			t.Errorf("first event = %v, want that %s has stopped, after %d", e, ends, before.Timestamp)
		}
		if all := e.ContainersStatuses; e.PodSandboxStatus.GetId() != pod || len(all) != 2 || all[1].Id != stays ||
			all[1].State != cri.ContainerState_CONTAINER_RUNNING || all[0].State != cri.ContainerState_CONTAINER_EXITED || all[0].ExitCode != 5 {
			t.Errorf("the pod in the event = %v, %v, want one container that runs and one that has exited with code 5", e.PodSandboxStatus, all)
		}
		n.Eventually("SIGHUP has come", func() bool { return strings.Contains(n.Log(), "Ignored SIGHUP") })
		after, err := n.Runtime.PodSandboxStatus(n.Ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: pod})
		if err != nil || after.Timestamp <= e.CreatedAt {
			t.Errorf("PodSandboxStatus at %d, %v, want later than the event, %d", after.GetTimestamp(), err, e.CreatedAt)
		}
		// The stream goes on.
		late := n.CreateContainer(pod, p, n.ContainerConfig("late", "true"))
		if e, err := stream.Recv(); err != nil || e.ContainerId != late || e.CreatedAt <= after.Timestamp {
			t.Errorf("next event = %v, %v, want that %s was created, after %d", e, err, late, after.Timestamp)
		}
		if _, err := n.Runtime.RemoveContainer(n.Ctx(), &cri.RemoveContainerRequest{ContainerId: late}); err != nil {
			t.Fatal(err)
		}
	}
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
	if err != nil || st.Timestamp <= 0 || len(st.ContainersStatuses) != 2 || st.ContainersStatuses[1].Id != long || st.ContainersStatuses[0].ExitCode != 3 {
		t.Errorf("PodSandboxStatus = %v, %v, want a time and both containers, the newest first", st, err)
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
