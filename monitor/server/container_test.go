package server

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
	"github.com/cridproject/crid/monitor"
)

func TestLastWordsAndGrandchild(t *testing.T) {
	n := newNode(t)
	spec := n.spec("sh", "-c", "setsid sh -c 'sleep 0.3; echo later; sleep 1000' & echo last; printf words; exit 5")
	// Without a PID namespace of its own the grandchild lives on.
	spec.Linux.Namespaces = spec.Linux.Namespaces[1:]
	n.runSpec("a", spec)
	e := n.exit("a")
	if e.Code != 5 {
		t.Errorf("exit code %d, want 5", e.Code)
	}
	if got, want := texts(n.log("a")), "stdout F last\nstdout P words\n"; got != want {
		t.Errorf("log at exit = %q, want %q", got, want)
	}
	testutil.WaitFor(t, "the grandchild's line", func() bool { return strings.Contains(n.log("a"), "stdout F later\n") })
	n.delete("a")
	n.residue()
}

func TestChattyGrandchildDoesNotDelayExit(t *testing.T) {
	n := newNode(t)
	spec := n.spec("sh", "-c", "setsid yes & sleep 0.2; exit 0")
	spec.Linux.Namespaces = spec.Linux.Namespaces[1:]
	r := n.request("a", spec)
	r.LogPath = ""
	n.create(r)
	n.start("a")
	if e := n.exit("a"); e.Code != 0 {
		t.Errorf("exit code %d, want 0", e.Code)
	}
	n.delete("a")
}

func TestUserOwnsItsStreams(t *testing.T) {
	n := newNode(t)
	spec := n.spec("sh", "-c", "echo out >/dev/stdout; echo err >/dev/stderr; id -u; id -g; id -G; pwd; echo $X; sleep 1000")
	spec.Process.User = specs.User{UID: 1000, GID: 100, AdditionalGids: []uint32{5, 7}}
	spec.Process.Cwd = "/tmp"
	spec.Process.Env = append(spec.Process.Env, "X=y")
	n.runSpec("a", spec)
	testutil.WaitFor(t, "output", func() bool { return strings.Contains(n.log("a"), " y\n") })
	got := texts(n.log("a"))
	for _, want := range []string{"stdout F out", "stderr F err", "F 1000", "F 100\n", "F 100 5 7", "F /tmp"} {
		if !strings.Contains(got, want) {
			t.Errorf("log = %q, want %q in it", got, want)
		}
	}
	out, errOut, _, err := n.exec("a", "sh", "-c", "id -u; id -g; id -G; pwd; echo $X; echo e >/dev/stderr; grep CapEff /proc/self/status")
	if want := "1000\n100\n100 5 7\n/tmp\ny\nCapEff:\t0000000000000000\n"; out != want || errOut != "e\n" || err != nil {
		t.Errorf("exec wrote %q, %q, %v, want %q", out, errOut, err, want)
	}
}

func TestStdin(t *testing.T) {
	n := newNode(t)
	r := n.request("a", n.spec("cat"))
	r.Stdin = true
	h := n.create(r)
	n.start("a")
	if _, err := h.Stdin.WriteString("through\n"); err != nil {
		t.Fatal(err)
	}
	testutil.WaitFor(t, "output", func() bool { return texts(n.log("a")) == "stdout F through\n" })
	r = n.request("b", n.spec("cat")) // /dev/null
	n.create(r)
	n.start("b")
	if e := n.exit("b"); e.Code != 0 {
		t.Errorf("cat of no stdin = %+v, want 0", e)
	}
}

func TestTerminal(t *testing.T) {
	n := newNode(t)
	spec := n.spec("sh", "-c", "stty size; read x; stty size; echo got $x; exit 4")
	spec.Process.Terminal = true
	spec.Process.ConsoleSize = &specs.Box{Height: 30, Width: 90}
	h := n.create(n.request("a", spec))
	n.start("a")
	testutil.WaitFor(t, "first size", func() bool { return strings.Contains(n.log("a"), "stdout F 30 90\n") })
	if err := n.client.Resize(t.Context(), monitor.ResizeRequest{ID: "a", Rows: 40, Columns: 100}); err != nil {
		t.Error(err)
	}
	if _, err := h.Console.WriteString("line\n"); err != nil {
		t.Fatal(err)
	}
	if e := n.exit("a"); e.Code != 4 {
		t.Errorf("exit = %+v, want 4", e)
	}
	if got := n.log("a"); !strings.Contains(got, "F 40 100\n") || !strings.Contains(got, "F got line\n") {
		t.Errorf("log = %q, want the new size and the line", got)
	}
	if err := n.client.Resize(t.Context(), monitor.ResizeRequest{ID: "a", Rows: 4, Columns: 10}); err != nil {
		t.Errorf("Resize after the exit = %v, want nil", err)
	}
}

func TestExecTerminal(t *testing.T) {
	n := newNode(t)
	n.run("a", "sleep", "1000")
	p, err := n.client.Exec(t.Context(), monitor.ExecRequest{ID: "a", ExecID: "x", Args: []string{"sh", "-c", "read x; echo $TERM; stty size"}, TTY: true}, [3]*os.File{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Console.Close()
	if err := n.client.Resize(t.Context(), monitor.ResizeRequest{ID: "a", ExecID: "x", Rows: 4, Columns: 10}); err != nil {
		t.Error(err)
	}
	if _, err := p.Console.WriteString("\n"); err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(p.Console) // ends with EIO
	if got := string(b); !strings.Contains(got, "xterm\r\n4 10\r\n") {
		t.Errorf("terminal shows %q, want xterm and 4 10", got)
	}
	if e := <-p.Done; e.Code != 0 {
		t.Errorf("exit = %+v, want 0", e)
	}
}

func TestOOM(t *testing.T) {
	n := newNode(t)
	limit := int64(64 << 20) // with the race detector libcontainer's init alone takes 17 MiB
	spec := n.spec("sh", "-c", "x=y; while :; do x=$x$x; done")
	spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &limit}
	// A name of its own: within two seconds the kernel's log cannot tell it from the next.
	n.runSpec("hungry", spec)
	if e := n.exit("hungry"); !e.OOMKilled || e.Code != 137 {
		t.Errorf("exit = %+v, want 137, OOM killed", e)
	}
	n.run("b", "sh", "-c", "kill -9 $$; sleep 1000")
	// Signals from within do not reach the init of a PID namespace.
	if err := n.client.Signal(t.Context(), monitor.SignalRequest{ID: "b", Signal: int(syscall.SIGKILL)}); err != nil {
		t.Fatal(err)
	}
	if e := n.exit("b"); e.OOMKilled || e.Code != 137 {
		t.Errorf("exit = %+v, want 137, not OOM killed", e)
	}
}

func TestSignals(t *testing.T) {
	n := newNode(t)
	n.run("a", "sh", "-c", "trap 'echo term; exit 3' TERM; echo ready; while :; do sleep 0.05; done")
	testutil.WaitFor(t, "trap", func() bool { return strings.Contains(n.log("a"), "ready") })
	if err := n.client.Signal(t.Context(), monitor.SignalRequest{ID: "a", Signal: int(syscall.SIGTERM)}); err != nil {
		t.Fatal(err)
	}
	if e := n.exit("a"); e.Code != 3 {
		t.Errorf("exit = %+v, want 3", e)
	}
	for _, r := range []monitor.SignalRequest{{ID: "a", Signal: 0}, {ID: "a", Signal: 99}, {ID: "a", Signal: 15, All: true}} {
		if err := n.client.Signal(t.Context(), r); !errkind.Is(err, errkind.Invalid) {
			t.Errorf("Signal(%+v) = %v, want invalid", r, err)
		}
	}
}

func TestKillBeforeStart(t *testing.T) {
	n := newNode(t)
	n.create(n.request("a", n.spec("sleep", "1000")))
	if err := n.client.Signal(t.Context(), monitor.SignalRequest{ID: "a", Signal: int(syscall.SIGKILL), All: true}); err != nil {
		t.Fatal(err)
	}
	if e := n.exit("a"); e.Code != 137 {
		t.Errorf("exit = %+v, want 137", e)
	}
	if err := n.client.Start(t.Context(), "a"); !errkind.Is(err, errkind.BadState) {
		t.Errorf("Start = %v, want bad state", err)
	}
	n.delete("a")
	n.residue()
}

func TestKillFrozen(t *testing.T) {
	n := newNode(t)
	n.run("a", "sh", "-c", "sleep 1000 & sleep 1000")
	c, err := n.server.table.container("a")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cgroup.m.Freeze(cgroups.Frozen); err != nil {
		t.Fatal(err)
	}
	if err := n.client.Signal(t.Context(), monitor.SignalRequest{ID: "a", Signal: int(syscall.SIGKILL), All: true}); err != nil {
		t.Fatal(err)
	}
	if e := n.exit("a"); e.Code != 137 {
		t.Errorf("exit = %+v, want 137", e)
	}
}

func TestKillExecTree(t *testing.T) {
	n := newNode(t)
	n.run("a", "sleep", "1000")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	// A child, a daemon that lost its parent, and one in a session of its own.
	script := "sleep 2000 & (sleep 2001 &) ; setsid sh -c 'sleep 2002 & sleep 2003' & echo ready; sleep 2004"
	p, err := n.client.Exec(t.Context(), monitor.ExecRequest{ID: "a", ExecID: "x", Args: []string{"sh", "-c", script}}, [3]*os.File{nil, w, nil})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	testutil.WaitFor(t, "the children", func() bool {
		out, _, _, err := n.exec("a", "ps", "-o", "args")
		return err == nil && strings.Contains(out, "sleep 2002")
	})
	if err := n.client.Signal(t.Context(), monitor.SignalRequest{ID: "a", ExecID: "x", Signal: int(syscall.SIGKILL), All: true}); err != nil {
		t.Fatal(err)
	}
	if e := <-p.Done; e.Code != 137 {
		t.Errorf("exit = %+v, want 137", e)
	}
	out, _, _, err := n.exec("a", "ps", "-o", "args")
	if err != nil || strings.Contains(out, "sleep 200") || !strings.Contains(out, "sleep 1000") {
		t.Errorf("left in the container: %s, %v, want its own sleep 1000 alone", out, err)
	}
}

func TestHundredExecs(t *testing.T) {
	n := newNode(t)
	n.run("a", "sleep", "1000")
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			out, _, code, err := n.execAs("a", fmt.Sprint("x", i), "sh", "-c", fmt.Sprintf("echo %d; exit %d", i, i))
			if out != fmt.Sprintln(i) || code != i || err != nil {
				t.Errorf("exec %d = %q, %d, %v", i, out, code, err)
			}
		})
	}
	wg.Wait()
	d, err := n.client.Dump(t.Context())
	if err != nil || d.Execs != 0 {
		t.Errorf("Dump = %+v, %v, want no exec", d, err)
	}
}

func TestNoLeak(t *testing.T) {
	testutil.RequireRoot(t)
	n := newNode(t)
	one := func(i int) {
		id := fmt.Sprint("c", i)
		r := n.request(id, n.spec("sleep", "1000"))
		r.Stdin = i%2 == 0
		_, h, err := n.client.Create(t.Context(), r)
		if err != nil {
			t.Error(err)
			return
		}
		h.Close()
		n.start(id)
		if i%4 == 0 {
			if _, _, _, err := n.execAs(id, "x", "true"); err != nil {
				t.Error(err)
			}
		}
		n.delete(id)
	}
	one(-1)
	before, err := n.client.Dump(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const rounds = 200
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := w; i < rounds; i += 4 {
				one(i)
			}
		})
	}
	wg.Wait()
	var after monitor.DumpReply
	testutil.WaitFor(t, "no more goroutines and files than before", func() bool {
		after, err = n.client.Dump(t.Context())
		return err == nil && after.Goroutines <= before.Goroutines && after.FDs <= before.FDs
	})
	t.Logf("before %+v, after %+v", before, after)
	n.residue()
}

func TestReopenLog(t *testing.T) {
	n := newNode(t)
	n.run("a", "sh", "-c", "i=0; while :; do echo $i; i=$((i+1)); done")
	path := filepath.Join(n.state, "logs", "a.log")
	for i := range 5 {
		if err := os.Rename(path, fmt.Sprint(path, ".", i)); err != nil {
			t.Fatal(err)
		}
		if err := n.client.ReopenLog(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		size := func() int64 {
			st, err := os.Stat(fmt.Sprint(path, ".", i))
			if err != nil {
				t.Fatal(err)
			}
			return st.Size()
		}
		old := size()
		testutil.WaitFor(t, "output in the new file", func() bool {
			st, err := os.Stat(path)
			return err == nil && st.Size() > 0
		})
		if now := size(); now != old {
			t.Errorf("the old file grew from %d to %d after ReopenLog", old, now)
		}
	}
	if err := n.client.Signal(t.Context(), monitor.SignalRequest{ID: "a", Signal: 9, All: true}); err != nil {
		t.Fatal(err)
	}
	n.exit("a")
	var all string
	for i := range 5 {
		b, err := os.ReadFile(fmt.Sprint(path, ".", i))
		if err != nil {
			t.Fatal(err)
		}
		all += string(b)
	}
	all += n.log("a")
	want := 0
	for l := range strings.Lines(texts(all)) {
		if l != fmt.Sprintf("stdout F %d\n", want) && !strings.HasPrefix(l, "stdout P ") {
			t.Fatalf("record %d = %q: lost or out of order", want, l)
		}
		want++
	}
}

func TestOrphansAreReaped(t *testing.T) {
	n := newNode(t)
	spec := n.spec("sh", "-c", "i=0; while [ $i -lt 20 ]; do (setsid sleep 0.05 &); i=$((i+1)); done; echo done; sleep 1000")
	spec.Linux.Namespaces = spec.Linux.Namespaces[1:] // the node's PIDs: we are the subreaper
	n.runSpec("a", spec)
	testutil.WaitFor(t, "orphans", func() bool { return strings.Contains(n.log("a"), "done") })
	// While operations of libcontainer come and go.
	for range 10 {
		if _, _, _, err := n.exec("a", "true"); err != nil {
			t.Error(err)
		}
	}
	testutil.WaitFor(t, "no zombie", func() bool {
		for _, pid := range ownChildren() {
			if st, err := readStat(pid); err == nil && st.dead() {
				return false
			}
		}
		return true
	})
}

func TestDeleteUnknownCleans(t *testing.T) {
	n := newNode(t)
	n.run("a", "sleep", "1000")
	// The monitor forgets it, as one that starts anew.
	c, err := n.server.table.container("a")
	if err != nil {
		t.Fatal(err)
	}
	n.server.table.drop("a")
	n.delete("a")
	<-c.exited // its watcher is still there, and has written the exit down
	n.delete("a")
	n.residue()
	c.io.close(context.Background())
	c.pidfd.Close()
	for _, id := range []string{"", ".", "..", "a/b", "../x", strings.Repeat("x", 200)} {
		err := n.client.Delete(t.Context(), monitor.DeleteRequest{ID: id})
		if !errkind.Is(err, errkind.Invalid) {
			t.Errorf("Delete(%q) = %v, want invalid", id, err)
		}
	}
}

func TestCreateFailsAndLeavesNothing(t *testing.T) {
	n := newNode(t)
	badMount := n.spec("true")
	badMount.Mounts = append(badMount.Mounts, specs.Mount{Destination: "/x", Type: "bind", Source: "/no/such/folder", Options: []string{"rbind"}})
	badCwd := n.spec("true")
	badCwd.Process.Cwd = "relative"
	badSysctl := n.spec("true")
	badSysctl.Linux.Sysctl = map[string]string{"kernel.no_such_thing": "1"}
	noLayer := n.request("no-layer", n.spec("true"))
	noLayer.Rootfs = monitor.Rootfs{Lower: []string{"/no/such/layer"}}
	relative := n.request("relative-log", n.spec("true"))
	relative.LogPath = "x.log"
	// The first one leaves what libcontainer opens once, the cgroup root and "/".
	if _, _, err := n.client.Create(t.Context(), n.request("first", badMount)); err == nil {
		t.Error("Create(first) = nil, want an error")
	}
	for _, r := range []monitor.CreateRequest{
		n.request("bad-mount", badMount), n.request("bad-cwd", badCwd), n.request("bad-sysctl", badSysctl), noLayer, relative,
		{ID: "a/b"},
		{ID: "no-spec"},
		{ID: "bad-spec", Spec: []byte("{}")},
	} {
		before, err := n.client.Dump(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = n.client.Create(t.Context(), r)
		if err == nil {
			t.Errorf("Create(%s) = nil, want an error", r.ID)
		}
		t.Logf("%s: %v (%v)", r.ID, err, errkind.Of(err))
		testutil.WaitFor(t, "files as before", func() bool {
			after, err := n.client.Dump(t.Context())
			return err == nil && after.FDs <= before.FDs && after.Goroutines <= before.Goroutines
		})
	}
	if logs, _ := os.ReadDir(filepath.Join(n.state, "logs")); len(logs) > 0 {
		t.Errorf("left log files %v, want none", logs)
	}
	n.residue()
}

func TestClamp(t *testing.T) {
	n := newNode(t)
	spec := n.spec("sh", "-c", "cat /proc/self/oom_score_adj; ulimit -n; sleep 1000")
	adj := -999
	spec.Process.OOMScoreAdj = &adj
	spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1 << 30, Soft: 1000}}
	if hasCapability(24) {
		spec.Process.Rlimits[0].Hard = 4096
	}
	n.runSpec("a", spec)
	testutil.WaitFor(t, "output", func() bool { return strings.Contains(n.log("a"), "F 1000\n") })
	out, _, _, err := n.exec("a", "sh", "-c", "ulimit -n")
	if out != "1000\n" || err != nil {
		t.Errorf("exec: ulimit -n = %q, %v, want 1000 as the container has", out, err)
	}
}

func TestShutdownRemovesSocket(t *testing.T) {
	n := newNode(t)
	if err := n.client.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-n.client.Done():
	case <-time.After(30 * time.Second):
		t.Fatal("the connection is still there")
	}
	testutil.WaitFor(t, "the socket's end", func() bool {
		_, err := os.Lstat(n.socket())
		return os.IsNotExist(err)
	})
}
