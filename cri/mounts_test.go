package cri

import (
	"testing"

	"google.golang.org/protobuf/proto"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/sandbox"
)

// What was asked for comes back in the status, all of it; an image with its ID.
func TestMountRoundTrip(t *testing.T) {
	r := goodContainer()
	r.Config.Mounts = []*v1.Mount{
		{ContainerPath: "/a/", HostPath: "/h", Readonly: true, RecursiveReadOnly: true, MountOptions: []string{"noexec", "noatime"}},
		{ContainerPath: "/b", HostPath: "/h//x/", Propagation: v1.MountPropagation_PROPAGATION_BIDIRECTIONAL, SelinuxRelabel: true},
		{ContainerPath: "/c", Readonly: true, ImageSubPath: "/etc/../usr", Image: &v1.ImageSpec{
			Image: "sha256:abc", UserSpecifiedImage: "tools:1", Annotations: map[string]string{"k": "v"},
		}},
		{ContainerPath: "/d", HostPath: "/h", Image: &v1.ImageSpec{}},  // no image: clients send an empty message
		{ContainerPath: "/e", HostPath: "/h/sub", ImageSubPath: "sub"}, // as kubelet sends it beside a mount of an image
	}
	d := &decoder{node: Node{RecursiveReadOnly: true}}
	c, err := d.container(r)
	if err != nil {
		t.Fatal(err)
	}
	got := encodeContainerStatus(&sandbox.ContainerStatus{Config: c, Volumes: map[int]string{2: "sha256:abcdef"}}, nil).Mounts
	want := proto.Clone(r).(*v1.CreateContainerRequest).Config.Mounts
	want[2].Image.ImageRef, want[3].Image = "sha256:abcdef", nil
	if len(got) != len(want) {
		t.Fatalf("mounts = %v, want %d", got, len(want))
	}
	for i := range want {
		wantMessage(t, "mount", got[i], want[i])
	}
}
