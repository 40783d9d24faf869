package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
	"github.com/cridproject/crid/sandbox"
	"github.com/cridproject/crid/sandbox/config"
	"github.com/cridproject/crid/sandbox/sandboxtest"
)

func TestMain(m *testing.M) {
	_ = os.Setenv("CRID_VERIFY", "1")
	os.Exit(m.Run())
}

// life is a pod's whole life as kubelet drives it, in steps that can each be
// asked for again.
type life struct {
	n         *sandboxtest.Node
	pod       config.SandboxID
	container config.ContainerID
}

func (l *life) steps() []func(context.Context) error {
	return []func(context.Context) error{l.run, l.create, l.start, l.stop, l.remove, l.stopPod, l.removePod}
}

func (l *life) run(ctx context.Context) (err error) {
	l.pod, err = l.n.Manager.Run(ctx, sandboxtest.Pod("web"))
	return err
}

func (l *life) create(ctx context.Context) (err error) {
	l.container, err = l.n.Manager.Create(ctx, string(l.pod), sandboxtest.Container("main"))
	return err
}

func (l *life) start(ctx context.Context) error {
	err := l.n.Manager.Start(ctx, string(l.container))
	if errkind.Is(err, errkind.BadState) {
		// kubelet looks at the status first.
		if st, serr := l.n.Manager.Container(string(l.container)); serr == nil && st.State == sandbox.ContainerRunning {
			return nil
		}
	}
	return err
}

func (l *life) stop(ctx context.Context) error {
	return l.n.Manager.Stop(ctx, string(l.container), 0)
}

func (l *life) remove(ctx context.Context) error { return l.n.Manager.Remove(ctx, string(l.container)) }

func (l *life) stopPod(ctx context.Context) error {
	return l.n.Manager.StopSandbox(ctx, string(l.pod))
}

func (l *life) removePod(ctx context.Context) error {
	return l.n.Manager.RemoveSandbox(ctx, string(l.pod))
}

func mustBeClean(t *testing.T, n *sandboxtest.Node) {
	t.Helper()
	n.Monitor.Settle()
	if left := n.Residue(); len(left) > 0 {
		t.Errorf("left behind: %q, want nothing", left)
	}
}

// mustLive makes a pod with a container that runs.
func mustLive(t *testing.T, n *sandboxtest.Node, pod config.Sandbox, c config.Container) (config.SandboxID, config.ContainerID) {
	t.Helper()
	p, err := n.Manager.Run(t.Context(), pod)
	if err != nil {
		t.Fatalf("Run = %v", err)
	}
	id, err := n.Manager.Create(t.Context(), string(p), c)
	if err != nil {
		t.Fatalf("Create = %v", err)
	}
	if err := n.Manager.Start(t.Context(), string(id)); err != nil {
		t.Fatalf("Start = %v", err)
	}
	return p, id
}

func mustRemove(t *testing.T, n *sandboxtest.Node, id config.SandboxID) {
	t.Helper()
	if err := n.Manager.RemoveSandbox(t.Context(), string(id)); err != nil {
		t.Fatalf("RemoveSandbox = %v", err)
	}
}

func status(t *testing.T, n *sandboxtest.Node, id config.ContainerID) sandbox.ContainerStatus {
	t.Helper()
	st, err := n.Manager.Container(string(id))
	if err != nil {
		t.Fatalf("Container = %v", err)
	}
	return st
}

func TestLife(t *testing.T) {
	testutil.LeakCheck(t)
	n := sandboxtest.New(t)
	l := &life{n: n}
	for i, step := range l.steps() {
		if err := step(t.Context()); err != nil {
			t.Fatalf("step %d = %v", i, err)
		}
		switch i {
		case 0:
			s, err := n.Manager.Sandbox(string(l.pod)[:10])
			if err != nil || s.State != sandbox.SandboxReady || len(s.IPs) != 1 || s.CreatedAt.IsZero() || s.HolderPID == 0 {
				t.Errorf("Sandbox = %+v, %v, want it ready with an address and a holder", s, err)
			}
		case 1:
			if st := status(t, n, l.container); st.State != sandbox.ContainerCreated || st.PID == 0 || !st.StartedAt.IsZero() || st.StopSignal != "SIGTERM" {
				t.Errorf("status after Create = %+v", st)
			}
		case 2:
			if st := status(t, n, l.container); st.State != sandbox.ContainerRunning || st.StartedAt.IsZero() {
				t.Errorf("status after Start = %+v", st)
			}
		case 3:
			st := status(t, n, l.container)
			if st.State != sandbox.ContainerExited || st.ExitCode != 137 || st.Reason != sandbox.ReasonError || st.FinishedAt.Before(st.StartedAt) || st.PID != 0 {
				t.Errorf("status after Stop = %+v", st)
			}
		case 5:
			s, err := n.Manager.Sandbox(string(l.pod))
			if err != nil || s.State != sandbox.SandboxNotReady || s.Config.Labels["app"] != "web" {
				t.Errorf("Sandbox after StopSandbox = %+v, %v, want it not ready with its config", s, err)
			}
		}
	}
	mustBeClean(t, n)
	for _, step := range l.steps()[3:] {
		if err := step(t.Context()); err != nil {
			t.Errorf("a step down after the end = %v, want nil", err)
		}
	}
	if _, err := n.Manager.Container(string(l.container)); !errkind.Is(err, errkind.NotFound) {
		t.Errorf("Container of what was removed = %v, want kind not found", err)
	}
}

// points is the names of all steps of a life.
func points(t *testing.T) []string {
	t.Helper()
	n := sandboxtest.New(t)
	n.Steps()
	l := &life{n: n}
	for i, step := range l.steps() {
		if err := step(t.Context()); err != nil {
			t.Fatalf("step %d = %v", i, err)
		}
	}
	n.Manager.Close()
	steps := n.Steps()
	return steps
}

func TestFailureLeavesNothing(t *testing.T) {
	names := points(t)
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		t.Run(name, func(t *testing.T) {
			n := sandboxtest.New(t)
			l := &life{n: n}
			n.FailAt(name)
			failed := false
			for i, step := range l.steps() {
				err := step(t.Context())
				if err == nil {
					continue
				}
				failed = true
				if !errors.Is(err, sandboxtest.ErrInjected) {
					t.Errorf("step %d = %v, want the injected error", i, err)
				}
				n.Heal()
				if i < 2 {
					if err := step(t.Context()); err != nil {
						t.Fatalf("step %d again = %v", i, err)
					}
				}
			}
			_ = failed // a failure to acknowledge an exit, for one, is nobody's error
			mustRemove(t, n, l.pod)
			mustBeClean(t, n)
		})
	}
}

func TestPartFailureLeavesNothing(t *testing.T) {
	type faults interface {
		FailAt(op string, err error)
		FailAfter(op string, err error)
	}
	for _, tc := range []struct {
		op   string
		part func(*sandboxtest.Node) faults
	}{
		{"plan", func(n *sandboxtest.Node) faults { return n.Network }},
		{"attach", func(n *sandboxtest.Node) faults { return n.Network }},
		{"detach", func(n *sandboxtest.Node) faults { return n.Network }},
		{"image", func(n *sandboxtest.Node) faults { return n.Images }},
		{"prepare", func(n *sandboxtest.Node) faults { return n.Images }},
		{"release", func(n *sandboxtest.Node) faults { return n.Images }},
		{"pin", func(n *sandboxtest.Node) faults { return n.Kernel }},
		{"unpin", func(n *sandboxtest.Node) faults { return n.Kernel }},
		{"shm", func(n *sandboxtest.Node) faults { return n.Kernel }},
		{"unmount", func(n *sandboxtest.Node) faults { return n.Kernel }},
		{"hold", func(n *sandboxtest.Node) faults { return n.Monitor }},
		{"release", func(n *sandboxtest.Node) faults { return n.Monitor }},
		{"create", func(n *sandboxtest.Node) faults { return n.Monitor }},
		{"start", func(n *sandboxtest.Node) faults { return n.Monitor }},
		{"signal", func(n *sandboxtest.Node) faults { return n.Monitor }},
		{"delete", func(n *sandboxtest.Node) faults { return n.Monitor }},
		{"ack", func(n *sandboxtest.Node) faults { return n.Monitor }},
	} {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s after=%t", tc.op, after), func(t *testing.T) {
				n := sandboxtest.New(t)
				l := &life{n: n}
				part := tc.part(n)
				set := part.FailAt
				if after {
					set = part.FailAfter
				}
				set(tc.op, sandboxtest.ErrInjected)
				for i, step := range l.steps() {
					err := step(t.Context())
					if err == nil {
						continue
					}
					if !errors.Is(err, sandboxtest.ErrInjected) {
						t.Errorf("step %d = %v, want the injected error", i, err)
					}
					set(tc.op, nil)
					if i == 2 {
						continue
					}
					if err := step(t.Context()); err != nil {
						t.Fatalf("step %d again = %v", i, err)
					}
				}
				mustBeClean(t, n)
			})
		}
	}
}

func TestCrashAnywhere(t *testing.T) {
	total := len(points(t))
	for k := 1; k <= total+2; k++ {
		t.Run(fmt.Sprint(k), func(t *testing.T) {
			n := sandboxtest.New(t)
			l := &life{n: n}
			n.Steps()
			n.CrashAfter(k)
			for i, step := range l.steps() {
				err := step(n.Context())
				for tries := 0; n.Crashed() && tries < 2; tries++ {
					at := n.Steps()
					n.Restart()
					err = step(n.Context())
					if err != nil {
						t.Fatalf("step %d after a crash at %s = %v", i, at[len(at)-1], err)
					}
				}
				if err != nil {
					t.Fatalf("step %d = %v", i, err)
				}
			}
			mustBeClean(t, n)
		})
	}
}
