package sandbox_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/sandbox"
	"github.com/cridproject/crid/sandbox/config"
	"github.com/cridproject/crid/sandbox/sandboxtest"
)

// usernsPod has a user namespace whose root may own files for whoever runs the test.
func usernsPod() config.Sandbox {
	pod := sandboxtest.Pod("web")
	own := func(id int) config.IDMapping { return config.IDMapping{HostID: uint32(id), Length: 1000} }
	pod.Namespaces.User = config.NamespacePod
	pod.Namespaces.UserMap = &config.IDMaps{UIDs: own(os.Getuid()), GIDs: own(os.Getgid())}
	return pod
}

// TestUserNamespacePins: it is pinned with the others, before anybody needs it, and
// goes with them.
func TestUserNamespacePins(t *testing.T) {
	n := sandboxtest.New(t)
	pod := usernsPod()
	pod.Namespaces.PID = config.NamespacePod
	id, err := n.Manager.Run(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(n.Dir, "state/sandboxes", string(id), "ns/user")
	p := n.Kernel.PinsAt(path)
	if p.User != path || p.UserMap == nil || *p.UserMap != *pod.Namespaces.UserMap || p.Net == "" || p.IPC == "" || p.UTS == "" {
		t.Errorf("Pin was asked for %+v", p)
	}
	steps := n.Steps()
	if slices.Index(steps, "sandbox.run.hold") < slices.Index(steps, "sandbox.run.namespaces") {
		t.Errorf("the PID namespace was made before the user namespace that owns it: %v", steps)
	}
	n.Restart()
	if st, err := n.Manager.Sandbox(string(id)); err != nil || st.State != sandbox.SandboxReady {
		t.Errorf("after a restart the sandbox is %q, %v", st.State, err)
	}
	n.Kill()
	if err := n.Kernel.Unpin(path); err != nil {
		t.Fatal(err)
	}
	n.Restart()
	if st, err := n.Manager.Sandbox(string(id)); err != nil || st.State != sandbox.SandboxNotReady {
		t.Errorf("with its user namespace gone the sandbox is %q, %v", st.State, err)
	}
	if err := n.Manager.StopSandbox(t.Context(), string(id)); err != nil {
		t.Fatal(err)
	}
	if n.Kernel.Pinned(path) {
		t.Error("the user namespace is pinned after StopSandbox")
	}
	if err := n.Manager.RemoveSandbox(t.Context(), string(id)); err != nil {
		t.Fatal(err)
	}
	mustBeClean(t, n)
}

// TestUserNamespaceCrashes: wherever crid is killed, the next one leaves nothing.
func TestUserNamespaceCrashes(t *testing.T) {
	for _, step := range []string{
		"sandbox.run.record", "sandbox.run.files", "sandbox.run.shm", "sandbox.run.namespaces",
		"sandbox.run.network", "sandbox.run.hold", "sandbox.run.holder", "sandbox.run.ready",
	} {
		t.Run(step, func(t *testing.T) {
			n := sandboxtest.New(t)
			pod := usernsPod()
			pod.Namespaces.PID = config.NamespacePod
			n.CrashAt(step)
			_, _ = n.Manager.Run(t.Context(), pod)
			if !n.Crashed() {
				t.Fatalf("crid was not killed at %s", step)
			}
			n.Restart()
			id, err := n.Manager.Run(t.Context(), pod)
			if err != nil {
				t.Fatalf("Run after the crash = %v", err)
			}
			if err := n.Manager.RemoveSandbox(t.Context(), string(id)); err != nil {
				t.Fatal(err)
			}
			mustBeClean(t, n)
		})
	}
}

func TestUserNamespaceRefused(t *testing.T) {
	why := errors.New("its kernel is old")
	cannot := func(o *sandbox.Options) { o.NoUserNS = why }
	for _, tt := range []struct {
		name   string
		tweak  []func(*sandbox.Options)
		change func(*config.Sandbox)
		want   string
	}{
		{"on a node that cannot", []func(*sandbox.Options){cannot}, func(*config.Sandbox) {}, "its kernel is old"},
		{"the node's PIDs", nil, func(w *config.Sandbox) { w.Namespaces.PID = config.NamespaceNode }, "PID or IPC"},
		{"the node's IPC", nil, func(w *config.Sandbox) { w.Namespaces.IPC = config.NamespaceNode }, "PID or IPC"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := sandboxtest.New(t, tt.tweak...)
			pod := usernsPod()
			tt.change(&pod)
			_, err := n.Manager.Run(t.Context(), pod)
			if !errkind.Is(err, errkind.Invalid) || !strings.Contains(err.Error(), "userns_options: ") || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Run = %v, want Invalid, the field named, and %q", err, tt.want)
			}
			plain := sandboxtest.Pod("plain")
			if _, err := n.Manager.Run(t.Context(), plain); err != nil {
				t.Errorf("Run of a pod without a user namespace = %v", err)
			}
		})
	}
}
