package cri

import (
	"reflect"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/sandbox/config"
)

func TestUpdateResources(t *testing.T) {
	node := &fakeNode{}
	client := v1.NewRuntimeServiceClient(newTestServer(t, node).conn)

	_, err := client.UpdateContainerResources(t.Context(), &v1.UpdateContainerResourcesRequest{
		ContainerId: "c", Linux: &v1.LinuxContainerResources{CpuQuota: -1, MemoryLimitInBytes: 1 << 30},
	})
	if want := []any{"c", config.Resources{CPUQuota: -1, MemoryLimit: 1 << 30}}; err != nil || !reflect.DeepEqual(node.got, want) {
		t.Errorf("UpdateContainerResources passed on %v, %v, want %v", node.got, err, want)
	}
	_, err = client.UpdatePodSandboxResources(t.Context(), &v1.UpdatePodSandboxResourcesRequest{
		PodSandboxId: "s", Resources: &v1.LinuxContainerResources{CpuShares: 2},
	})
	if want := []any{"s", (*config.Resources)(nil), &config.Resources{CPUShares: 2}}; err != nil || !reflect.DeepEqual(node.got, want) {
		t.Errorf("UpdatePodSandboxResources passed on %v, %v, want %v", node.got, err, want)
	}

	bad := &v1.LinuxContainerResources{CpusetCpus: "all"}
	_, err = client.UpdateContainerResources(t.Context(), &v1.UpdateContainerResourcesRequest{ContainerId: "c", Linux: bad})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "linux.cpuset_cpus: ") {
		t.Errorf("UpdateContainerResources = %v, want InvalidArgument that names linux.cpuset_cpus", err)
	}
	_, err = client.UpdatePodSandboxResources(t.Context(), &v1.UpdatePodSandboxResourcesRequest{PodSandboxId: "s", Overhead: bad})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "overhead.cpuset_cpus: ") {
		t.Errorf("UpdatePodSandboxResources = %v, want InvalidArgument that names overhead.cpuset_cpus", err)
	}
}
