package cri

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/cridproject/crid/sandbox"
)

// TestStatsFields: a node that knows every figure fills every field of both
// messages, but for those listed with a reason. It fails when the API gains a field.
func TestStatsFields(t *testing.T) {
	reasons := map[string]string{
		"PodSandboxStats.windows": "of Windows nodes",
	}
	f := figuresNode(1)
	pod := &f.sandboxes[0]
	pod.Config.Labels, pod.Config.Annotations = map[string]string{"a": "b"}, map[string]string{"c": "d"}
	pod.Config.Attempt = 1
	for i := range f.containers {
		f.containers[i].Config.Attempt = 1
	}
	container, sandboxStats := f.containerStats(&f.containers[0]), f.sandboxStats(pod)
	sandboxStats.CPUNanocores = known(3)
	sandboxStats.Network.Others = []sandbox.NetInterface{*sandboxStats.Network.Default}
	used := make(map[string]bool)
	for _, m := range []proto.Message{encodeContainerStats(&container), encodeSandboxStats(&sandboxStats)} {
		for _, path := range emptyFields(m.ProtoReflect(), string(m.ProtoReflect().Descriptor().Name())) {
			if reasons[path] == "" {
				t.Errorf("%s stays empty: fill it, or give the reason here", path)
			}
			used[path] = true
		}
	}
	for path := range reasons {
		if !used[path] {
			t.Errorf("%s is filled, or not in the API: it needs no reason", path)
		}
	}
}

// emptyFields is the paths of the fields of m that are not there, or have no
// value, at any depth; of a list only the first item is looked at.
func emptyFields(m protoreflect.Message, path string) []string {
	var empty []string
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		name := path + "." + string(f.Name())
		switch {
		case !m.Has(f):
			empty = append(empty, name)
		case f.IsMap():
		case f.IsList() && f.Message() != nil:
			empty = append(empty, emptyFields(m.Get(f).List().Get(0).Message(), name+"[]")...)
		case f.Message() != nil:
			empty = append(empty, emptyFields(m.Get(f).Message(), name)...)
		}
	}
	return slices.Compact(empty)
}
