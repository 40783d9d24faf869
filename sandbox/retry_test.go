package sandbox_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
	"github.com/cridproject/crid/monitor"
	"github.com/cridproject/crid/sandbox"
	"github.com/cridproject/crid/sandbox/config"
	"github.com/cridproject/crid/sandbox/sandboxtest"
)

// kubelet takes a pod's newest sandbox, and each container's newest, for the one
// that counts. A clock that was set back must not make it an old one.
func TestNewerIsCreatedLater(t *testing.T) {
	var at atomic.Int64
	at.Store(2_000_000_000)
	n := sandboxtest.New(t, func(o *sandbox.Options) {
		o.Now = func() time.Time { return time.Unix(at.Load(), 0) }
	})
	pod := sandboxtest.Pod("web")
	oldPod, oldID := mustLive(t, n, pod, sandboxtest.Container("main"))
	old := status(t, n, oldID)
	at.Add(-1000)
	n.Restart() // what is known of the time before comes from the records
	c := sandboxtest.Container("main")
	c.Attempt = 1
	again, err := n.Manager.Create(t.Context(), string(oldPod), c)
	if err != nil {
		t.Fatal(err)
	}
	if st := status(t, n, again); !st.CreatedAt.After(old.CreatedAt) {
		t.Errorf("attempt 1 was created at %v, attempt 0 at %v", st.CreatedAt, old.CreatedAt)
	}
	if err := n.Manager.StopSandbox(t.Context(), string(oldPod)); err != nil {
		t.Fatal(err)
	}
	pod.Attempt = 1
	newPod, newID := mustLive(t, n, pod, sandboxtest.Container("main"))
	before, err := n.Manager.Sandbox(string(oldPod))
	if err != nil {
		t.Fatal(err)
	}
	after, err := n.Manager.Sandbox(string(newPod))
	if err != nil {
		t.Fatal(err)
	}
	if !after.CreatedAt.After(before.CreatedAt) {
		t.Errorf("sandbox of attempt 1 was created at %v, of attempt 0 at %v", after.CreatedAt, before.CreatedAt)
	}
	if st := status(t, n, newID); !st.CreatedAt.After(status(t, n, again).CreatedAt) {
		t.Errorf("container in the new sandbox was created at %v, in the old one at %v", st.CreatedAt, status(t, n, again).CreatedAt)
	}
	if other, err := n.Manager.Run(t.Context(), sandboxtest.Pod("other")); err != nil {
		t.Fatal(err)
	} else if st, _ := n.Manager.Sandbox(string(other)); st.CreatedAt.Unix() != at.Load() {
		t.Errorf("another pod's sandbox was created at %v, want the clock's time", st.CreatedAt)
	}
}

// kubelet mounts a new file for the termination message at each try: a retry is
// never quite the same request.
func TestRetryWithAnotherTerminationLog(t *testing.T) {
	const annotation = "io.kubernetes.container.terminationMessagePath"
	n := sandboxtest.New(t)
	pod, err := n.Manager.Run(t.Context(), sandboxtest.Pod("web"))
	if err != nil {
		t.Fatal(err)
	}
	wanted := func(file, data string) config.Container {
		c := sandboxtest.Container("main")
		c.Annotations = map[string]string{annotation: "/dev/termination-log"}
		c.Mounts = []config.Mount{
			{HostPath: config.HostPath(t.TempDir() + "/" + file), ContainerPath: "/dev/termination-log"},
			{HostPath: config.HostPath(data), ContainerPath: "/data"},
		}
		return c
	}
	data := t.TempDir()
	reached, release := n.Monitor.Block(monitor.OpCreate)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := n.Manager.Create(ctx, string(pod), wanted("aaaaaaaa", data))
		done <- err
	}()
	<-reached
	cancel()
	<-done
	if _, err := n.Manager.Create(t.Context(), string(pod), wanted("bbbbbbbb", t.TempDir())); !errkind.Is(err, errkind.Exists) {
		t.Errorf("Create with another volume = %v, want kind exists", err)
	}
	release()
	id, err := n.Manager.Create(t.Context(), string(pod), wanted("bbbbbbbb", data))
	if err != nil {
		t.Fatalf("Create again = %v, want the first container", err)
	}
	if all := n.Manager.Containers(); len(all) != 1 || all[0].ID != id {
		t.Errorf("Containers = %v, want the one, %s", all, id)
	}
	mustRemove(t, n, pod)
	mustBeClean(t, n)
}

func TestNamesWithSeparators(t *testing.T) {
	n := sandboxtest.New(t)
	seen := map[config.SandboxID]bool{}
	for _, name := range [][2]string{{"a_b", "c"}, {"a", "b_c"}} {
		pod := sandboxtest.Pod("x")
		pod.Name, pod.Namespace, pod.PortMappings = name[0], name[1], nil
		id, err := n.Manager.Run(t.Context(), pod)
		if err != nil {
			t.Errorf("Run of %q = %v, want a sandbox of its own", name, err)
			continue
		}
		seen[id] = true
	}
	for id := range seen {
		mustRemove(t, n, id)
	}
	mustBeClean(t, n)
}

// Requests that come while crid connects to the monitor again wait for it; the
// connecting must not in turn wait for them.
func TestRequestsWaitForTheMonitor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var gate atomic.Pointer[chan struct{}]
		n := sandboxtest.New(t, func(o *sandbox.Options) {
			connect := o.ConnectMonitor
			o.ConnectMonitor = func(ctx context.Context, onExit func(monitor.Exit)) (sandbox.Monitor, error) {
				if g := gate.Load(); g != nil {
					<-*g
				}
				return connect(ctx, onExit)
			}
		})
		pod, running := mustLive(t, n, sandboxtest.Pod("web"), sandboxtest.Container("main"))
		created, err := n.Manager.Create(t.Context(), string(pod), sandboxtest.Container("second"))
		if err != nil {
			t.Fatal(err)
		}
		open := make(chan struct{})
		gate.Store(&open)
		n.Monitor.Disconnect()
		synctest.Wait()
		results := make(chan error, 2)
		go func() { results <- n.Manager.Start(t.Context(), string(created)) }()
		go func() { results <- n.Manager.Remove(t.Context(), string(running)) }()
		synctest.Wait()
		close(open)
		for range 2 {
			if err := <-results; err != nil {
				t.Errorf("a request while the monitor comes back = %v, want it carried out", err)
			}
		}
		mustRemove(t, n, pod)
		mustBeClean(t, n)
	})
}

// A client may not come back: what it has begun to take down, crid finishes.
func TestFailedStopIsTriedAgain(t *testing.T) {
	n := sandboxtest.New(t)
	pod, id := mustLive(t, n, sandboxtest.Pod("web"), sandboxtest.Container("main"))
	n.Network.FailAt("detach", sandboxtest.ErrInjected)
	if err := n.Manager.StopSandbox(t.Context(), string(pod)); !errors.Is(err, sandboxtest.ErrInjected) {
		t.Fatalf("StopSandbox = %v, want the injected error", err)
	}
	n.Network.FailAt("detach", nil)
	testutil.WaitFor(t, "DEL", func() bool { return n.Network.Detached(string(pod)) == 1 })
	n.Images.FailAt("release", sandboxtest.ErrInjected)
	if err := n.Manager.Remove(t.Context(), string(id)); !errors.Is(err, sandboxtest.ErrInjected) {
		t.Fatalf("Remove = %v, want the injected error", err)
	}
	n.Images.FailAt("release", nil)
	testutil.WaitFor(t, "the container to go", func() bool { return len(n.Manager.Containers()) == 0 })
	mustRemove(t, n, pod)
	mustBeClean(t, n)
}

// A plugin that hangs while crid tries again must not keep the node from its monitor.
func TestMonitorIsKilledWhileAPluginHangs(t *testing.T) {
	n := sandboxtest.New(t)
	stuck, _ := mustLive(t, n, sandboxtest.Pod("stuck"), sandboxtest.Container("main"))
	pod, id := mustLive(t, n, sandboxtest.Pod("web"), sandboxtest.Container("main"))
	n.Network.FailAt("detach", sandboxtest.ErrInjected)
	if err := n.Manager.StopSandbox(t.Context(), string(stuck)); !errors.Is(err, sandboxtest.ErrInjected) {
		t.Fatalf("StopSandbox = %v, want the injected error", err)
	}
	n.Network.FailAt("detach", nil)
	reached, release := n.Network.Block("detach")
	defer release()
	<-reached // crid has tried again
	n.Monitor.Disconnect()
	awaitMonitor(t, n, id)
	release()
	mustRemove(t, n, pod)
	mustRemove(t, n, stuck)
	mustBeClean(t, n)
}
