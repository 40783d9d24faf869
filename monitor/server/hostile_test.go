package server

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
	"github.com/cridproject/crid/monitor"
)

// TestDeleteEndsStuckExec: an exec that cannot go on while the container lives,
// as when that serves the file system of the program, must not keep it from going.
func TestDeleteEndsStuckExec(t *testing.T) {
	n := newNode(t)
	n.run("a", "sleep", "1000")
	c, err := n.server.table.container("a")
	if err != nil {
		t.Fatal(err)
	}
	e := &execProc{id: "x", done: make(chan struct{})}
	if err := c.join(e); err != nil {
		t.Fatal(err)
	}
	go func() {
		<-c.exited
		c.leave(e)
		c.joining.Done()
	}()
	n.delete("a")
	n.residue()
}

func TestExecInFrozen(t *testing.T) {
	n := newNode(t)
	n.run("a", "sleep", "1000")
	c, err := n.server.table.container("a")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cgroup.m.Freeze(cgroups.Frozen); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := n.exec("a", "true"); !errkind.Is(err, errkind.BadState) {
		t.Errorf("exec in a frozen container = %v, want bad state", err)
	}
	if err := c.cgroup.m.Freeze(cgroups.Thawed); err != nil {
		t.Fatal(err)
	}
	if _, _, code, err := n.exec("a", "true"); code != 0 || err != nil {
		t.Errorf("exec after that = %d, %v, want 0", code, err)
	}
}

// TestExecBelowFrozen: whoever manages the pod's cgroup has frozen that.
func TestExecBelowFrozen(t *testing.T) {
	if !cgroups.IsCgroup2UnifiedMode() {
		t.Skip("no cgroup v2: a process that is made does not begin in its cgroup")
	}
	n := newNode(t)
	n.run("a", "sleep", "1000")
	c, err := n.server.table.container("a")
	if err != nil {
		t.Fatal(err)
	}
	freeze := func(how string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(filepath.Dir(c.cgroup.m.Path("")), "cgroup.freeze"), []byte(how), 0); err != nil {
			t.Fatal(err)
		}
	}
	if n.systemd {
		t.Skip("the cgroup above is system.slice, and so the node's")
	}
	freeze("1")
	defer freeze("0")
	if _, _, _, err := n.exec("a", "true"); !errkind.Is(err, errkind.BadState) {
		t.Errorf("exec below a frozen cgroup = %v, want bad state", err)
	}
}

// TestKillForks: processes that fork as fast as they can and end, so that a
// list of them is old at once, in a PID namespace that does not end with the
// container.
func TestKillForks(t *testing.T) {
	n := newNode(t)
	script := "f() { f & }; i=0; while [ $i -lt 60 ]; do f; i=$((i+1)); done; echo ready; exec sleep 1000"
	spec := n.spec("sh", "-c", script)
	spec.Linux.Namespaces = spec.Linux.Namespaces[1:] // the node's PID namespace
	n.runSpec("a", spec)
	testutil.WaitFor(t, "forks", func() bool { return strings.Contains(n.log("a"), "ready") })
	n.delete("a")
	n.residue()
}

// TestKillFrozenBelow: a container that may manage cgroups has frozen one.
func TestKillFrozenBelow(t *testing.T) {
	n := newNode(t)
	spec := n.spec("sh", "-c", "sleep 1000 & echo $!; exec sleep 1000")
	spec.Linux.Namespaces = spec.Linux.Namespaces[1:]
	n.runSpec("a", spec)
	testutil.WaitFor(t, "a process", func() bool { return strings.Contains(n.log("a"), "\n") })
	f := strings.Fields(n.log("a"))
	c, err := n.server.table.container("a")
	if err != nil {
		t.Fatal(err)
	}
	dir, file, frozen := c.cgroup.m.Path("freezer"), "freezer.state", "FROZEN"
	if cgroups.IsCgroup2UnifiedMode() {
		dir, file, frozen = c.cgroup.m.Path(""), "cgroup.freeze", "1"
	}
	dir = filepath.Join(dir, "below")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, w := range [][2]string{{"cgroup.procs", f[len(f)-1]}, {file, frozen}} {
		if err := os.WriteFile(filepath.Join(dir, w[0]), []byte(w[1]), 0); err != nil {
			t.Fatal(err)
		}
	}
	n.delete("a")
	n.residue()
}

// TestAdoptWithoutLog: the log's folder cannot be had while a container is
// adopted, and can be later.
func TestAdoptWithoutLog(t *testing.T) {
	n, crash := crashNode(t)
	r := n.request("a", n.spec("sh", "-c", "while :; do echo x; sleep 0.01; done"))
	h := n.create(r)
	n.start("a")
	list, err := n.client.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	list[0].Hold.Close()
	logs := filepath.Dir(r.LogPath)
	if err := os.RemoveAll(logs); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(logs, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	crash()
	r.Spec = nil
	if err := n.client.Adopt(t.Context(), monitor.AdoptRequest{ID: "a", PID: list[0].PID, Create: r, Started: true}, h); err != nil {
		t.Fatal(err)
	}
	if err := n.client.ReopenLog(t.Context(), "a"); err == nil {
		t.Error("ReopenLog in a folder that is none = nil, want an error")
	}
	testutil.WaitFor(t, "the loss in the figures", func() bool {
		d, err := n.client.Dump(t.Context())
		return err == nil && d.LogDropped > 0
	})
	if err := os.Remove(logs); err != nil {
		t.Fatal(err)
	}
	if err := n.client.ReopenLog(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	testutil.WaitFor(t, "output in the new file", func() bool {
		st, err := os.Stat(r.LogPath)
		return err == nil && st.Size() > 0
	})
}

// TestLogIsNoLink: a pod that can write to the node's log folders, as a log
// collector can, must not make the monitor write elsewhere, or wait.
func TestLogIsNoLink(t *testing.T) {
	n := newNode(t)
	n.run("a", "sh", "-c", "while :; do echo x; sleep 0.01; done")
	path := filepath.Join(n.state, "logs", "a.log")
	secret := filepath.Join(n.state, "secret")
	if err := os.WriteFile(secret, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		plant func() error
	}{
		{"link", func() error { return os.Symlink(secret, path) }},
		{"fifo", func() error { return unix.Mkfifo(path, 0o600) }},
	} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := tt.plant(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), killTimeout)
		err := n.client.ReopenLog(ctx, "a")
		cancel()
		if err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("ReopenLog over a %s = %v, want an error at once", tt.name, err)
		}
	}
	if st, err := os.Stat(secret); err != nil || st.Size() > 0 {
		t.Errorf("the link's target has %d bytes, %v, want none", st.Size(), err)
	}
	if err := n.client.Signal(t.Context(), monitor.SignalRequest{ID: "a", Signal: int(syscall.SIGKILL), All: true}); err != nil {
		t.Fatal(err)
	}
}

// TestHolderOfDeadMonitor: a monitor that dies before a holder is in its cgroup
// leaves none that nobody could find.
func TestHolderOfDeadMonitor(t *testing.T) {
	testutil.RequireRoot(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{pid1Env}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0) // at its end at once, as the pipe of a dead monitor
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	cmd.ExtraFiles = []*os.File{null, null}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-ended:
	case <-time.After(killTimeout):
		_ = cmd.Process.Kill()
		<-ended
		t.Error("the holder goes on, want its end")
	}
}
