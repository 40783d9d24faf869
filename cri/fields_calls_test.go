package cri

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	byName       = "the name is what counts"
	ofPullReason = "there are no rules for single namespaces yet"
)

// without is every field of the requests of TestFieldsOfCalls that has no effect,
// with the reason. A path stands for all below it.
var without = map[string]string{
	"VersionRequest.version":                                "the version of kubelet's API, which says nothing since CRI v1",
	"UpdateRuntimeConfigRequest.runtime_config":             "network plugins learn the pod CIDR from the cluster",
	"PullImageRequest.sandbox_config":                       ofPullReason,
	"PullImageRequest.image.image_ref":                      "only for answers",
	"PullImageRequest.image.user_specified_image":           byName,
	"PullImageRequest.image.annotations":                    byName,
	"ImageStatusRequest.image.image_ref":                    "only for answers",
	"ImageStatusRequest.image.user_specified_image":         byName,
	"ImageStatusRequest.image.annotations":                  byName,
	"RemoveImageRequest.image.image_ref":                    "only for answers",
	"RemoveImageRequest.image.user_specified_image":         byName,
	"RemoveImageRequest.image.annotations":                  byName,
	"ListImagesRequest.filter.image.image_ref":              "only for answers",
	"ListImagesRequest.filter.image.user_specified_image":   byName,
	"ListImagesRequest.filter.image.annotations":            byName,
	"StreamImagesRequest.filter.image.image_ref":            "only for answers",
	"StreamImagesRequest.filter.image.user_specified_image": byName,
	"StreamImagesRequest.filter.image.annotations":          byName,
}

// goodCalls are the requests that fields are set in; an empty one where there is
// none. They are about what figuresNode has.
var goodCalls = map[protoreflect.Name]proto.Message{
	"StopPodSandbox":     &v1.StopPodSandboxRequest{PodSandboxId: "p000"},
	"RemovePodSandbox":   &v1.RemovePodSandboxRequest{PodSandboxId: "p000"},
	"PodSandboxStatus":   &v1.PodSandboxStatusRequest{PodSandboxId: "p000"},
	"PodSandboxStats":    &v1.PodSandboxStatsRequest{PodSandboxId: "p000"},
	"StartContainer":     &v1.StartContainerRequest{ContainerId: "p000-c0"},
	"StopContainer":      &v1.StopContainerRequest{ContainerId: "p000-c0"},
	"RemoveContainer":    &v1.RemoveContainerRequest{ContainerId: "p000-c0"},
	"ContainerStatus":    &v1.ContainerStatusRequest{ContainerId: "p000-c0"},
	"ContainerStats":     &v1.ContainerStatsRequest{ContainerId: "p000-c0"},
	"ReopenContainerLog": &v1.ReopenContainerLogRequest{ContainerId: "p000-c0"},
	"ExecSync":           &v1.ExecSyncRequest{ContainerId: "p000-c0", Cmd: []string{"sh"}},
	"Exec":               &v1.ExecRequest{ContainerId: "p000-c0", Cmd: []string{"sh"}, Stdout: true, Stdin: true},
	"Attach":             &v1.AttachRequest{ContainerId: "p000-c0", Stdout: true, Stdin: true},
	"PortForward":        &v1.PortForwardRequest{PodSandboxId: "p000"},
	"PullImage":          &v1.PullImageRequest{Image: &v1.ImageSpec{Image: "i:p000"}},
	"ImageStatus":        &v1.ImageStatusRequest{Image: &v1.ImageSpec{Image: "i:p000"}},
	"RemoveImage":        &v1.RemoveImageRequest{Image: &v1.ImageSpec{Image: "i:p000"}},
	"ListImages":         &v1.ListImagesRequest{Filter: &v1.ImageFilter{Image: &v1.ImageSpec{Image: "i:p000"}}},
	"StreamImages":       &v1.StreamImagesRequest{Filter: &v1.ImageFilter{Image: &v1.ImageSpec{Image: "i:p000"}}},
}

// walked is the calls whose requests have a walk of their own.
var walked = []protoreflect.Name{"RunPodSandbox", "CreateContainer", "UpdateContainerResources", "UpdatePodSandboxResources"}

// TestFieldsOfCalls sets one field after the other of the request of every other
// RPC that crid answers, and expects that something else is asked of the node, or
// that the answer is another one.
func TestFieldsOfCalls(t *testing.T) {
	node := figuresNode(2)
	conn := newTestServer(t, node).conn
	stale := maps.Clone(without)
	for _, rpc := range rpcs() {
		if _, refused := unimplemented[string(rpc.Name())]; refused || slices.Contains(walked, rpc.Name()) {
			continue
		}
		good := goodCalls[rpc.Name()]
		if good == nil {
			good = newMessage(rpc.Input())
		}
		message := string(rpc.Input().Name())
		before := ""
		leaves(rpc.Input(), nil, func(path []protoreflect.FieldDescriptor) {
			if before == "" {
				var err error
				if before, err = effect(t, node, conn, rpc, good); err != nil {
					t.Fatalf("%s(%v) = %v", rpc.Name(), good, err)
				}
			}
			name := pathName(path)
			req := proto.Clone(good)
			set(req.ProtoReflect(), path, name)
			after, err := effect(t, node, conn, rpc, req)
			listed := lookup(without, message+"."+name)
			delete(stale, listed)
			switch changed := before != after; {
			case status.Code(err) == codes.InvalidArgument && !names(status.Convert(err).Message(), name):
				t.Errorf("%s(%v) = %v, which does not name %s", rpc.Name(), req, err, name)
			case !changed && listed == "":
				t.Errorf("%s.%s has no effect and is not in the list of such fields", message, name)
			case changed && listed != "":
				t.Errorf("%s.%s has an effect, but is listed as without: %s", message, name, without[listed])
			}
		})
	}
	for name := range stale {
		t.Errorf("%s is listed as without effect, but is not in the API", name)
	}
}

// effect is what a call asks of the node, and its answer.
func effect(t *testing.T, node *fakeNode, conn *grpc.ClientConn, rpc protoreflect.MethodDescriptor, req proto.Message) (string, error) {
	t.Helper()
	node.got = nil
	method := "/" + string(rpc.Parent().FullName()) + "/" + string(rpc.Name())
	stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, method)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(stream.SendMsg(req), stream.CloseSend()); err != nil {
		t.Fatal(err)
	}
	answer := ""
	for {
		resp := newMessage(rpc.Output())
		if err = stream.RecvMsg(resp); err != nil {
			break
		}
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(resp)
		if err != nil {
			t.Fatal(err)
		}
		answer += fmt.Sprintf("%x\n", b)
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	got, jsonErr := json.Marshal(node.got)
	if jsonErr != nil {
		t.Fatal(jsonErr)
	}
	return fmt.Sprintf("%s%s %v", answer, got, err), err
}
