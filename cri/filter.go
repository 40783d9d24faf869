package cri

import (
	"strings"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/sandbox"
)

var (
	sandboxStates = map[v1.PodSandboxState]sandbox.SandboxState{
		v1.PodSandboxState_SANDBOX_READY:    sandbox.SandboxReady,
		v1.PodSandboxState_SANDBOX_NOTREADY: sandbox.SandboxNotReady,
	}
	containerStates = map[v1.ContainerState]sandbox.ContainerState{
		v1.ContainerState_CONTAINER_CREATED: sandbox.ContainerCreated,
		v1.ContainerState_CONTAINER_RUNNING: sandbox.ContainerRunning,
		v1.ContainerState_CONTAINER_EXITED:  sandbox.ContainerExited,
		v1.ContainerState_CONTAINER_UNKNOWN: sandbox.ContainerUnknown,
	}
)

// sandboxFilter is the predicate of a filter: all its conditions hold. nil and
// empty let everything through. IDs may be shortened.
func sandboxFilter(f *v1.PodSandboxFilter) (func(*sandbox.SandboxStatus) bool, error) {
	var d decoder
	var state sandbox.SandboxState // "" means any
	if v := f.GetState(); v != nil {
		state = enum(&d, "filter.state.state", v.GetState(), sandboxStates)
	}
	return func(st *sandbox.SandboxStatus) bool {
		return strings.HasPrefix(string(st.ID), f.GetId()) &&
			(state == "" || st.State == state) &&
			hasLabels(st.Config.Labels, f.GetLabelSelector())
	}, d.err()
}

// containerFilter is sandboxFilter for containers.
func containerFilter(f *v1.ContainerFilter) (func(*sandbox.ContainerStatus) bool, error) {
	var d decoder
	var state sandbox.ContainerState // "" means any
	if v := f.GetState(); v != nil {
		state = enum(&d, "filter.state.state", v.GetState(), containerStates)
	}
	return func(st *sandbox.ContainerStatus) bool {
		return strings.HasPrefix(string(st.ID), f.GetId()) &&
			strings.HasPrefix(string(st.Sandbox), f.GetPodSandboxId()) &&
			(state == "" || st.State == state) &&
			hasLabels(st.Config.Labels, f.GetLabelSelector())
	}, d.err()
}

// hasLabels reports whether every label of the selector is there, with its value.
func hasLabels(labels, selector map[string]string) bool {
	for k, want := range selector {
		if got, ok := labels[k]; !ok || got != want {
			return false
		}
	}
	return true
}
