package sandbox_test

import (
	"context"
	"errors"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
	"github.com/cridproject/crid/monitor"
	"github.com/cridproject/crid/sandbox"
	"github.com/cridproject/crid/sandbox/config"
	"github.com/cridproject/crid/sandbox/sandboxtest"
)

const (
	term = int(syscall.SIGTERM)
	kill = int(syscall.SIGKILL)
	usr1 = int(syscall.SIGUSR1)
)

// never is a grace that no test waits for.
const never = time.Hour

func TestStopSignals(t *testing.T) {
	for _, tc := range []struct {
		name   string
		signal string
		ignore bool
		grace  time.Duration
		want   []int
		code   int
	}{
		{"ends on its signal", "", false, never, []int{term}, 128 + term},
		{"signal of the config", "SIGUSR1", false, never, []int{usr1}, 128 + usr1},
		{"ignores it", "", true, time.Millisecond, []int{term, kill}, 128 + kill},
		{"no grace", "", false, 0, []int{kill}, 128 + kill},
		{"negative grace", "", false, -time.Second, []int{kill}, 128 + kill},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := sandboxtest.New(t)
			c := sandboxtest.Container("main")
			c.StopSignal = tc.signal
			pod, id := mustLive(t, n, sandboxtest.Pod("web"), c)
			if tc.ignore {
				n.Monitor.IgnoreSignals(string(id))
			}
			if err := n.Manager.Stop(t.Context(), string(id), tc.grace); err != nil {
				t.Fatalf("Stop = %v", err)
			}
			if got := n.Monitor.Signals(string(id)); !slices.Equal(got, tc.want) {
				t.Errorf("signals sent: %v, want %v", got, tc.want)
			}
			if st := status(t, n, id); st.State != sandbox.ContainerExited || st.ExitCode != tc.code {
				t.Errorf("status = %+v, want exited with %d", st, tc.code)
			}
			if err := n.Manager.Stop(t.Context(), string(id), never); err != nil {
				t.Errorf("Stop again = %v", err)
			}
			mustRemove(t, n, pod)
			mustBeClean(t, n)
		})
	}
}

func TestStopOfWhatNeverStarted(t *testing.T) {
	n := sandboxtest.New(t)
	pod, err := n.Manager.Run(t.Context(), sandboxtest.Pod("web"))
	if err != nil {
		t.Fatal(err)
	}
	id, err := n.Manager.Create(t.Context(), string(pod), sandboxtest.Container("main"))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Manager.Stop(t.Context(), string(id), never); err != nil {
		t.Fatalf("Stop = %v", err)
	}
	if st := status(t, n, id); st.State != sandbox.ContainerExited || st.ExitCode != 137 || st.FinishedAt.IsZero() {
		t.Errorf("status = %+v, want exited, 137", st)
	}
	if err := n.Manager.Start(t.Context(), string(id)); !errkind.Is(err, errkind.BadState) {
		t.Errorf("Start of it = %v, want kind bad state", err)
	}
}

func TestShorterStopShortens(t *testing.T) {
	n := sandboxtest.New(t)
	_, id := mustLive(t, n, sandboxtest.Pod("web"), sandboxtest.Container("main"))
	n.Monitor.IgnoreSignals(string(id))
	long := make(chan error)
	go func() { long <- n.Manager.Stop(t.Context(), string(id), never) }()
	awaitSignal(t, n, id)
	if err := n.Manager.Stop(t.Context(), string(id), time.Millisecond); err != nil {
		t.Fatalf("shorter Stop = %v", err)
	}
	if err := <-long; err != nil {
		t.Errorf("longer Stop = %v", err)
	}
	if got, want := n.Monitor.Signals(string(id)), []int{term, kill}; !slices.Equal(got, want) {
		t.Errorf("signals sent: %v, want %v: SIGTERM once", got, want)
	}
}

// awaitSignal waits until the stop signal has been sent.
func awaitSignal(t *testing.T, n *sandboxtest.Node, id config.ContainerID) {
	t.Helper()
	testutil.WaitFor(t, "a signal", func() bool { return len(n.Monitor.Signals(string(id))) > 0 })
}

func TestCancelledStopKillsNothing(t *testing.T) {
	n := sandboxtest.New(t)
	_, id := mustLive(t, n, sandboxtest.Pod("web"), sandboxtest.Container("main"))
	n.Monitor.IgnoreSignals(string(id))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- n.Manager.Stop(ctx, string(id), never) }()
	awaitSignal(t, n, id)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Stop = %v, want canceled", err)
	}
	if got := n.Monitor.Signals(string(id)); !slices.Equal(got, []int{term}) {
		t.Errorf("signals sent: %v, want SIGTERM only", got)
	}
	if st := status(t, n, id); st.State != sandbox.ContainerRunning {
		t.Errorf("status = %+v, want running", st)
	}
	// Asked again, the signal is not.
	if err := n.Manager.Stop(t.Context(), string(id), time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if got := n.Monitor.Signals(string(id)); !slices.Equal(got, []int{term, kill}) {
		t.Errorf("signals sent: %v, want SIGTERM once", got)
	}
}

func TestUnkillable(t *testing.T) {
	n := sandboxtest.New(t, func(o *sandbox.Options) { o.KillTimeout = 10 * time.Millisecond })
	pod, id := mustLive(t, n, sandboxtest.Pod("web"), sandboxtest.Container("main"))
	_, release := n.Monitor.Block(monitor.OpSignal)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := n.Manager.Stop(ctx, string(id), 0); !errkind.Is(err, errkind.Timeout) {
		t.Errorf("Stop of what hangs = %v, want kind timeout", err)
	}
	if _, err := n.Manager.ExecSync(t.Context(), string(id), []string{"true"}, 0); !errkind.Is(err, errkind.BadState) {
		t.Errorf("ExecSync in what is being killed = %v, want kind bad state", err)
	}
	release()
	mustRemove(t, n, pod)
	mustBeClean(t, n)
}

func TestSignalFailureIsTriedAgain(t *testing.T) {
	n := sandboxtest.New(t)
	_, id := mustLive(t, n, sandboxtest.Pod("web"), sandboxtest.Container("main"))
	n.Monitor.FailAt(monitor.OpSignal, sandboxtest.ErrInjected)
	if err := n.Manager.Stop(t.Context(), string(id), never); !errors.Is(err, sandboxtest.ErrInjected) {
		t.Errorf("Stop = %v, want the injected error", err)
	}
	n.Monitor.FailAt(monitor.OpSignal, nil)
	if err := n.Manager.Stop(t.Context(), string(id), never); err != nil {
		t.Errorf("Stop again = %v", err)
	}
}
