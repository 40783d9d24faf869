package cri

import (
	"fmt"
	"testing"
	"time"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/sandbox"
	"github.com/cridproject/crid/sandbox/config"
)

// The lists of a full node, which kubelet asks for every second.
func BenchmarkListContainers(b *testing.B) {
	var r v1.CreateContainerRequest
	readRequest(b, "testdata/create-kubelet.json", &r)
	c, err := newDecoder().container(&r)
	if err != nil {
		b.Fatal(err)
	}
	node := &fakeNode{}
	for i := range 500 {
		node.containers = append(node.containers, sandbox.ContainerStatus{ID: config.ContainerID(fmt.Sprintf("%064x", i)), Config: c, State: sandbox.ContainerRunning, CreatedAt: time.Unix(1, 0)})
	}
	s := &Server{o: Options{Sandboxes: fakeSandboxes{node}, Images: fakeImages{node}}}
	for b.Loop() {
		if resp, err := s.ListContainers(b.Context(), &v1.ListContainersRequest{}); err != nil || len(resp.Containers) != 500 {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodeContainer(b *testing.B) {
	var r v1.CreateContainerRequest
	readRequest(b, "testdata/create-kubelet.json", &r)
	for b.Loop() {
		if _, err := newDecoder().container(&r); err != nil {
			b.Fatal(err)
		}
	}
}
