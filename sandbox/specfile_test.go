package sandbox_test

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cridproject/crid/sandbox/config"
	"github.com/cridproject/crid/sandbox/sandboxtest"
)

// TestSandboxSpecNamespaces: each namespace that a pod has of its own is in its spec, once.
func TestSandboxSpecNamespaces(t *testing.T) {
	n := sandboxtest.New(t)
	w := sandboxtest.Pod("mapped")
	ids := config.IDMapping{HostID: 1 << 18, Length: 1 << 16}
	w.Namespaces.UserMap = &config.IDMaps{UIDs: ids, GIDs: ids}
	id, err := n.Manager.Run(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	data, err := n.Manager.SandboxSpec(string(id))
	if err != nil {
		t.Fatal(err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []specs.LinuxNamespaceType{specs.NetworkNamespace, specs.UTSNamespace, specs.IPCNamespace, specs.UserNamespace} {
		found := slices.DeleteFunc(slices.Clone(spec.Linux.Namespaces), func(ns specs.LinuxNamespace) bool { return ns.Type != kind })
		if len(found) != 1 || found[0].Path == "" {
			t.Errorf("the spec has %d %s namespaces, want one: %s", len(found), kind, data)
		}
	}
	mustRemove(t, n, id)
}
