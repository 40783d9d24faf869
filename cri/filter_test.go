package cri

import (
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/image"
	"github.com/cridproject/crid/sandbox"
	"github.com/cridproject/crid/sandbox/config"
)

func TestListPodSandbox(t *testing.T) {
	labelled := func(l map[string]string) config.Sandbox { return config.Sandbox{Labels: l} }
	s := newTestServer(t, &fakeNode{sandboxes: []sandbox.SandboxStatus{
		{ID: "aa1", State: sandbox.SandboxReady, Config: labelled(map[string]string{"app": "web", "tier": "front"})},
		{ID: "aa2", State: sandbox.SandboxNotReady, Config: labelled(map[string]string{"app": "web"})},
		{ID: "bb1", State: sandbox.SandboxReady},
	}})
	state := func(s v1.PodSandboxState) *v1.PodSandboxStateValue { return &v1.PodSandboxStateValue{State: s} }
	for _, test := range []struct {
		name   string
		filter *v1.PodSandboxFilter
		want   []string
	}{
		{"none", nil, []string{"aa1", "aa2", "bb1"}},
		{"empty", &v1.PodSandboxFilter{}, []string{"aa1", "aa2", "bb1"}},
		{"whole id", &v1.PodSandboxFilter{Id: "aa1"}, []string{"aa1"}},
		{"short id", &v1.PodSandboxFilter{Id: "aa"}, []string{"aa1", "aa2"}},
		{"unknown id", &v1.PodSandboxFilter{Id: "aa12"}, nil},
		{"ready", &v1.PodSandboxFilter{State: state(v1.PodSandboxState_SANDBOX_READY)}, []string{"aa1", "bb1"}},
		{"not ready", &v1.PodSandboxFilter{State: state(v1.PodSandboxState_SANDBOX_NOTREADY)}, []string{"aa2"}},
		{"a label", &v1.PodSandboxFilter{LabelSelector: map[string]string{"app": "web"}}, []string{"aa1", "aa2"}},
		{"two labels", &v1.PodSandboxFilter{LabelSelector: map[string]string{"app": "web", "tier": "front"}}, []string{"aa1"}},
		{"an empty value is a value", &v1.PodSandboxFilter{LabelSelector: map[string]string{"none": ""}}, nil},
		{"all at once", &v1.PodSandboxFilter{
			Id: "a", State: state(v1.PodSandboxState_SANDBOX_NOTREADY), LabelSelector: map[string]string{"app": "web"},
		}, []string{"aa2"}},
	} {
		resp, err := s.ListPodSandbox(t.Context(), &v1.ListPodSandboxRequest{Filter: test.filter})
		var got []string
		for _, i := range resp.GetItems() {
			got = append(got, i.Id)
		}
		if err != nil || !slices.Equal(got, test.want) {
			t.Errorf("ListPodSandbox, filter %s = %v, %v, want %v", test.name, got, err, test.want)
		}
	}
	_, err := s.ListPodSandbox(t.Context(), &v1.ListPodSandboxRequest{Filter: &v1.PodSandboxFilter{State: state(7)}})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("ListPodSandbox with state 7 = %v, want InvalidArgument", err)
	}
}

func TestListContainers(t *testing.T) {
	s := newTestServer(t, &fakeNode{containers: []sandbox.ContainerStatus{
		{ID: "c1", Sandbox: "aa1", State: sandbox.ContainerCreated},
		{ID: "c2", Sandbox: "aa1", State: sandbox.ContainerRunning, Config: config.Container{Labels: map[string]string{"k": "v"}}},
		{ID: "d1", Sandbox: "bb1", State: sandbox.ContainerExited},
		{ID: "d2", Sandbox: "bb1", State: sandbox.ContainerUnknown},
	}})
	state := func(s v1.ContainerState) *v1.ContainerStateValue { return &v1.ContainerStateValue{State: s} }
	for _, test := range []struct {
		name   string
		filter *v1.ContainerFilter
		want   []string
	}{
		{"none", nil, []string{"c1", "c2", "d1", "d2"}},
		{"short id", &v1.ContainerFilter{Id: "c"}, []string{"c1", "c2"}},
		{"short sandbox", &v1.ContainerFilter{PodSandboxId: "b"}, []string{"d1", "d2"}},
		{"created", &v1.ContainerFilter{State: state(v1.ContainerState_CONTAINER_CREATED)}, []string{"c1"}},
		{"running", &v1.ContainerFilter{State: state(v1.ContainerState_CONTAINER_RUNNING)}, []string{"c2"}},
		{"exited", &v1.ContainerFilter{State: state(v1.ContainerState_CONTAINER_EXITED)}, []string{"d1"}},
		{"unknown", &v1.ContainerFilter{State: state(v1.ContainerState_CONTAINER_UNKNOWN)}, []string{"d2"}},
		{"a label", &v1.ContainerFilter{LabelSelector: map[string]string{"k": "v"}}, []string{"c2"}},
		{"another value", &v1.ContainerFilter{LabelSelector: map[string]string{"k": "w"}}, nil},
		{"sandbox and state", &v1.ContainerFilter{PodSandboxId: "aa1", State: state(v1.ContainerState_CONTAINER_EXITED)}, nil},
	} {
		resp, err := s.ListContainers(t.Context(), &v1.ListContainersRequest{Filter: test.filter})
		var got []string
		for _, c := range resp.GetContainers() {
			got = append(got, c.Id)
		}
		if err != nil || !slices.Equal(got, test.want) {
			t.Errorf("ListContainers, filter %s = %v, %v, want %v", test.name, got, err, test.want)
		}
	}
	_, err := s.ListContainers(t.Context(), &v1.ListContainersRequest{Filter: &v1.ContainerFilter{State: state(-1)}})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("ListContainers with state -1 = %v, want InvalidArgument", err)
	}
}

func TestListImages(t *testing.T) {
	s := newTestServer(t, &fakeNode{images: []image.Image{{ID: "sha256:1", RepoTags: []string{"a:1"}}, {ID: "sha256:2"}}})
	filter := func(name string) *v1.ImageFilter { return &v1.ImageFilter{Image: &v1.ImageSpec{Image: name}} }
	for _, test := range []struct {
		filter *v1.ImageFilter
		want   []string
	}{
		{nil, []string{"sha256:1", "sha256:2"}},
		{&v1.ImageFilter{}, []string{"sha256:1", "sha256:2"}},
		{filter(""), []string{"sha256:1", "sha256:2"}},
		{filter("a:1"), []string{"sha256:1"}},
		{filter("sha256:2"), []string{"sha256:2"}},
		{filter("b"), nil},
	} {
		resp, err := s.images.ListImages(t.Context(), &v1.ListImagesRequest{Filter: test.filter})
		var got []string
		for _, i := range resp.GetImages() {
			got = append(got, i.Id)
		}
		if err != nil || !slices.Equal(got, test.want) {
			t.Errorf("ListImages, filter %v = %v, %v, want %v", test.filter, got, err, test.want)
		}
	}
	if _, err := s.images.ListImages(t.Context(), &v1.ListImagesRequest{Filter: filter("a b")}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("ListImages of a malformed name = %v, want InvalidArgument", err)
	}
	if r, err := s.images.ImageStatus(t.Context(), &v1.ImageStatusRequest{Image: &v1.ImageSpec{Image: "b"}}); err != nil || r.Image != nil {
		t.Errorf("ImageStatus of an unknown image = %v, %v, want no image and no error", r, err)
	}
}
