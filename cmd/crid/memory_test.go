package main

import (
	"strings"
	"testing"

	"google.golang.org/grpc"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Each RPC of the interface either works or reads; one that the interface gains must be
// looked at.
func TestWorkVerbs(t *testing.T) {
	reads := []string{
		"List", "Stream", "Version", "Status", "RuntimeConfig", "PodSandboxStatus", "PodSandboxStats", "ContainerStatus",
		"ContainerStats", "ImageStatus", "ImageFsInfo", "GetContainerEvents", "Attach", "PortForward", "Update", "ReopenContainerLog",
		"Checkpoint", "RestorePod", // refused
	}
	has := func(prefixes []string, name string) bool {
		for _, p := range prefixes {
			if strings.HasPrefix(name, p) {
				return true
			}
		}
		return false
	}
	seen := 0
	for _, service := range []grpc.ServiceDesc{v1.RuntimeService_ServiceDesc, v1.ImageService_ServiceDesc} {
		for _, method := range service.Methods {
			seen++
			work, read := has(workVerbs, method.MethodName), has(reads, method.MethodName)
			read = read && method.MethodName != "ListPodSandboxMetrics" // the one that reads and leaves much
			if work == read {
				t.Errorf("%s: work is %v and reading is %v, want one of them", method.MethodName, work, read)
			}
		}
	}
	if seen < 30 {
		t.Errorf("saw %d RPCs", seen)
	}
}
