package sandbox_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
	"github.com/cridproject/crid/monitor"
	"github.com/cridproject/crid/sandbox"
	"github.com/cridproject/crid/sandbox/config"
	"github.com/cridproject/crid/sandbox/sandboxtest"
)

func TestRestartForgetsNothing(t *testing.T) {
	n := sandboxtest.New(t)
	pod, id := mustLive(t, n, sandboxtest.Pod("web"), sandboxtest.Container("main"))
	before, err := n.Manager.Sandbox(string(pod))
	if err != nil {
		t.Fatal(err)
	}
	beforeC := status(t, n, id)
	n.Restart()
	after, err := n.Manager.Sandbox(string(pod))
	if err != nil || after.State != sandbox.SandboxReady || len(after.IPs) != 1 || after.IPs[0] != before.IPs[0] ||
		!after.CreatedAt.Equal(before.CreatedAt) || after.HolderPID != before.HolderPID {
		t.Errorf("Sandbox after a restart = %+v, %v, want %+v", after, err, before)
	}
	if st := status(t, n, id); st.State != sandbox.ContainerRunning || st.PID != beforeC.PID || !st.StartedAt.Equal(beforeC.StartedAt) || st.ImageRef != beforeC.ImageRef {
		t.Errorf("Container after a restart = %+v, want %+v", st, beforeC)
	}
	if gc := n.Network.Collected(); len(gc) != 2 || len(gc[1]) != 1 || gc[1][0].ID != string(pod) {
		t.Errorf("Network.GC was told %v, want the one pod", gc)
	}
	mustRemove(t, n, pod)
	mustBeClean(t, n)
}

// awaitMonitor waits until crid is connected to the monitor again.
func awaitMonitor(t *testing.T, n *sandboxtest.Node, id config.ContainerID) {
	t.Helper()
	testutil.WaitFor(t, "the connection to the monitor", func() bool {
		err := n.Manager.ReopenLog(t.Context(), string(id))
		return err == nil || errkind.Is(err, errkind.BadState) // it has exited
	})
}

func TestMonitorIsKilled(t *testing.T) {
	n := sandboxtest.New(t)
	pod, id := mustLive(t, n, sandboxtest.Pod("web"), sandboxtest.Container("main"))
	n.Monitor.Crash()
	awaitMonitor(t, n, id)
	s, err := n.Manager.Sandbox(string(pod))
	if err != nil || s.State != sandbox.SandboxReady {
		t.Errorf("Sandbox = %+v, %v, want it ready", s, err)
	}
	if st := status(t, n, id); st.State != sandbox.ContainerRunning {
		t.Errorf("Container = %+v, want it running", st)
	}
	n.Monitor.Exit(string(id), 7)
	awaitExit(t, n, id)
	if st := status(t, n, id); st.ExitCode != 7 {
		t.Errorf("Container = %+v, want its exit code from the new monitor", st)
	}
	mustRemove(t, n, pod)
	mustBeClean(t, n)
}

func TestContainerEndsWithoutMonitor(t *testing.T) {
	for _, known := range []bool{true, false} {
		n := sandboxtest.New(t)
		pod, id := mustLive(t, n, sandboxtest.Pod("web"), sandboxtest.Container("main"))
		// The pidfd that crid keeps tells.
		n.Kernel.HasEnded = func(*os.File) (bool, int, bool) { return true, 5, known }
		n.Monitor.Crash()
		awaitExit(t, n, id)
		want, reason := 5, sandbox.ReasonError
		if !known {
			want, reason = 255, sandbox.ReasonUnknown
		}
		if st := status(t, n, id); st.ExitCode != want || st.Reason != reason {
			t.Errorf("Container = %+v, want %d %s", st, want, reason)
		}
		if s, err := n.Manager.Sandbox(string(pod)); err != nil || s.State != sandbox.SandboxNotReady {
			t.Errorf("Sandbox whose holder has ended = %+v, %v, want it not ready", s, err)
		}
		awaitMonitor(t, n, id)
		mustRemove(t, n, pod)
		mustBeClean(t, n)
	}
}

func TestBothAreKilled(t *testing.T) {
	for _, alive := range []bool{true, false} {
		n := sandboxtest.New(t)
		pod, id := mustLive(t, n, sandboxtest.Pod("web"), sandboxtest.Container("main"))
		n.Kill()
		n.Monitor.Crash()
		n.Kernel.Running = func(int) bool { return alive }
		n.Restart()
		st := status(t, n, id)
		if alive && st.State != sandbox.ContainerRunning {
			t.Errorf("Container that lives = %+v, want it running", st)
		}
		if !alive && (st.State != sandbox.ContainerExited || st.ExitCode != 255 || st.Reason != sandbox.ReasonUnknown) {
			t.Errorf("Container that is gone = %+v, want exited, 255, Unknown", st)
		}
		mustRemove(t, n, pod)
		mustBeClean(t, n)
	}
}

func TestCallsWithoutMonitor(t *testing.T) {
	broken := make(chan struct{}, 100)
	fail := false
	n := sandboxtest.New(t, func(o *sandbox.Options) {
		connect := o.ConnectMonitor
		o.ConnectMonitor = func(ctx context.Context, onExit func(monitor.Exit)) (sandbox.Monitor, error) {
			if fail {
				broken <- struct{}{}
				return nil, sandboxtest.ErrInjected
			}
			return connect(ctx, onExit)
		}
		o.MonitorTimeout = time.Millisecond
	})
	pod, id := mustLive(t, n, sandboxtest.Pod("web"), sandboxtest.Container("main"))
	fail = true
	n.Monitor.Disconnect()
	<-broken
	for what, err := range map[string]error{
		"Stop":        n.Manager.Stop(t.Context(), string(id), 0),
		"StopSandbox": n.Manager.StopSandbox(t.Context(), string(pod)),
		"Create": func() error {
			_, err := n.Manager.Create(t.Context(), string(pod), sandboxtest.Container("x"))
			return err
		}(),
	} {
		if kind := errkind.Of(err); kind != errkind.Unavailable && kind != errkind.BadState {
			t.Errorf("%s without a monitor = %v, want kind unavailable", what, err)
		}
	}
	status(t, n, id) // readers do not care
}

func TestReboot(t *testing.T) {
	n := sandboxtest.New(t)
	pod, id := mustLive(t, n, sandboxtest.Pod("web"), sandboxtest.Container("main"))
	n.Reboot()
	if st := status(t, n, id); st.State != sandbox.ContainerExited || st.ExitCode != 255 || st.Reason != sandbox.ReasonUnknown || st.Message == "" {
		t.Errorf("Container = %+v, want exited, 255, Unknown", st)
	}
	s, err := n.Manager.Sandbox(string(pod))
	if err != nil || s.State != sandbox.SandboxNotReady {
		t.Errorf("Sandbox = %+v, %v, want it not ready", s, err)
	}
	if n.Network.Detached(string(pod)) != 1 {
		t.Errorf("DEL was called %d times, want once", n.Network.Detached(string(pod)))
	}
	n.Restart()
	if n.Network.Detached(string(pod)) != 1 {
		t.Error("DEL was called again at the next start")
	}
	mustRemove(t, n, pod)
	mustBeClean(t, n)
}

func TestUnreadableRecords(t *testing.T) {
	for name, data := range map[string]string{"empty": "", "cut off": `{"Version":1,"ID"`, "newer": `{"Version":99}`, "other": `{"Version":1,"ID":"x"}`, "state": `{"Version":1,"ID":"ID","State":"asleep"}`} {
		t.Run(name, func(t *testing.T) {
			n := sandboxtest.New(t)
			pod, id := mustLive(t, n, sandboxtest.Pod("web"), sandboxtest.Container("main"))
			pod2, id2 := mustLive(t, n, sandboxtest.Pod("whole"), sandboxtest.Container("main"))
			n.Kill()
			for _, path := range []string{"sandboxes/" + string(pod), "containers/" + string(id2)} {
				data := strings.ReplaceAll(data, `"ID":"ID"`, `"ID":"`+filepath.Base(path)+`"`)
				if err := os.WriteFile(filepath.Join(n.Dir, "root", path+".json"), []byte(data), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			n.Restart()
			for what, want := range map[string]bool{"quarantine/sandbox-" + string(pod): true, "quarantine/container-" + string(id2): true, "containers/" + string(id): false} {
				if _, err := os.Stat(filepath.Join(n.Dir, "root", what+".json")); (err == nil) != want {
					t.Errorf("%s: %v, want it there: %t", what, err, want)
				}
			}
			if s, err := n.Manager.Sandbox(string(pod2)); err != nil || s.State != sandbox.SandboxReady {
				t.Errorf("the other sandbox = %+v, %v, want it ready", s, err)
			}
			mustRemove(t, n, pod2)
			if err := os.RemoveAll(filepath.Join(n.Dir, "root/quarantine")); err != nil {
				t.Fatal(err)
			}
			mustBeClean(t, n)
		})
	}
}

func TestStrangersAndLeftovers(t *testing.T) {
	n := sandboxtest.New(t)
	front := n.Monitor.Connect(monitor.ClientOptions{})
	_, hold, err := front.Create(t.Context(), monitor.CreateRequest{ID: "stranger", Spec: []byte("{}")})
	if err != nil {
		t.Fatal(err)
	}
	hold.Close()
	_, pidfd, err := front.Hold(t.Context(), monitor.HoldRequest{ID: "stranger"})
	if err != nil {
		t.Fatal(err)
	}
	_ = pidfd.Close()
	front.Close()
	if _, err := n.Images.Prepare(t.Context(), "", "nobody"); err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(n.Dir, "state/sandboxes/nobody")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := n.Kernel.Pin(sandbox.Pins{IPC: filepath.Join(folder, "ns/ipc")}); err != nil {
		t.Fatal(err)
	}
	n.Restart()
	mustBeClean(t, n)
}

func TestLostNamespace(t *testing.T) {
	n := sandboxtest.New(t)
	pod, err := n.Manager.Run(t.Context(), sandboxtest.Pod("web"))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Kernel.Unpin(filepath.Join(n.Dir, "netns/crid-"+string(pod))); err != nil {
		t.Fatal(err)
	}
	n.Restart()
	if s, err := n.Manager.Sandbox(string(pod)); err != nil || s.State != sandbox.SandboxNotReady {
		t.Errorf("Sandbox without its network namespace = %+v, %v, want it not ready", s, err)
	}
	mustRemove(t, n, pod)
	mustBeClean(t, n)
}
