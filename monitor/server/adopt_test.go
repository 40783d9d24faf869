package server

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
	"github.com/cridproject/crid/monitor"
)

// crashNode has a monitor of its own process, which crash replaces.
func crashNode(t *testing.T) (n *node, crash func()) {
	n = prepareNode(t)
	var cmd *exec.Cmd
	stop := func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	cmd = n.startMonitor()
	t.Cleanup(func() {
		n.client.Close()
		stop()
	})
	n.client = n.connect()
	return n, func() {
		stop()
		<-n.client.Done()
		n.client.Close()
		cmd = n.startMonitor()
		n.client = n.connect()
	}
}

func TestAdopt(t *testing.T) {
	n, crash := crashNode(t)
	ctx := context.Background()
	loop := n.request("loop", n.spec("sh", "-c", "i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done"))
	loopHold := n.create(loop)
	n.start("loop")
	waits := n.request("waits", n.spec("sh", "-c", "echo started; exit 6"))
	waitsHold := n.create(waits)
	doomed := n.request("doomed", n.spec("/nope"))
	doomedHold := n.create(doomed)
	ended := n.request("ended", n.spec("sh", "-c", "exit 9"))
	endedHold := n.create(ended)
	n.start("ended")
	want := n.exit("ended")
	list, err := n.client.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	pids := map[string]int{}
	for _, l := range list {
		pids[l.ID] = l.PID
		l.Hold.Close()
	}

	crash()
	for _, c := range []struct {
		r       monitor.CreateRequest
		h       *monitor.Hold
		started bool
	}{{loop, loopHold, true}, {waits, waitsHold, false}, {doomed, doomedHold, false}, {ended, endedHold, true}} {
		c.r.Spec = nil
		if err := n.client.Adopt(ctx, monitor.AdoptRequest{ID: c.r.ID, PID: pids[c.r.ID], Create: c.r, Started: c.started}, c.h); err != nil {
			t.Fatalf("Adopt(%s) = %v", c.r.ID, err)
		}
	}
	if e := n.exit("ended"); e.Code != 9 || !e.At.Equal(want.At) {
		t.Errorf("exit from the journal = %+v, want %+v", e, want)
	}
	if out, _, _, err := n.exec("loop", "echo", "in"); out != "in\n" || err != nil {
		t.Errorf("exec in an adopted container = %q, %v, want in", out, err)
	}
	before := strings.Count(n.log("loop"), "\n")
	testutil.WaitFor(t, "more log", func() bool { return strings.Count(n.log("loop"), "\n") > before+20 })
	wantLine := 0
	for l := range strings.Lines(texts(n.log("loop"))) {
		if l != "stdout F "+strconv.Itoa(wantLine)+"\n" {
			t.Fatalf("record %d = %q: lost or out of order", wantLine, l)
		}
		wantLine++
	}
	n.start("waits")
	if e := n.exit("waits"); e.Code != 6 && !e.Lost {
		t.Errorf("exit of what was started after its adoption = %+v, want 6 or lost", e)
	}
	if got := texts(n.log("waits")); got != "stdout F started\n" {
		t.Errorf("log of what was started after its adoption = %q", got)
	}
	if err := n.client.Start(ctx, "doomed"); !errkind.Is(err, errkind.Invalid) || !strings.Contains(err.Error(), "/nope") {
		t.Errorf("Start of a program that is not there, after adoption = %v, want its error", err)
	}
	if e := n.exit("doomed"); e.Code != 128 {
		t.Errorf("exit = %+v, want 128", e)
	}
	if err := n.client.Adopt(ctx, monitor.AdoptRequest{ID: "none", PID: 1}, nil); !errkind.Is(err, errkind.NotFound) {
		t.Errorf("Adopt of none = %v, want not found", err)
	}
	for _, id := range []string{"loop", "waits", "doomed", "ended"} {
		n.delete(id)
	}
	n.residue()
}

// confined checks that a holder waits, also after a stop, and can do nothing else,
// whoever in the pod may trace it.
func confined(t *testing.T, pid int) {
	t.Helper()
	for _, sig := range []unix.Signal{unix.SIGSTOP, unix.SIGCONT} {
		if err := unix.Kill(pid, sig); err != nil {
			t.Fatal(err)
		}
	}
	testutil.WaitFor(t, "a holder that waits under a seccomp filter", func() bool {
		b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
		status := string(b)
		return err == nil && strings.Contains(status, "\nState:\tS ") && strings.Contains(status, "\nSeccomp:\t2\n") && strings.Contains(status, "\nNoNewPrivs:\t1\n")
	})
}

func TestHolder(t *testing.T) {
	n, crash := crashNode(t)
	ctx := context.Background()
	r, pidfd, err := n.client.Hold(ctx, n.holdRequest("s"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := n.client.Release(ctx, n.releaseRequest("s")); err != nil {
			t.Error(err)
		}
		n.residue()
	}()
	proc := filepath.Join("/proc", strconv.Itoa(r.PID))
	private := rollup(t, r.PID, "Private_")
	t.Logf("private memory of a holder: %d KiB", private)
	if private > 1024 {
		t.Errorf("private memory of a holder: %d KiB, want at most 1 MiB", private)
	}
	if es, err := os.ReadDir(proc + "/root"); err != nil || len(es) > 0 {
		t.Errorf("root of a holder has %d entries, %v, want none", len(es), err)
	}
	if es, err := os.ReadDir(proc + "/fd"); err != nil || len(es) > 0 {
		t.Errorf("a holder has %d files, %v, want none", len(es), err)
		for _, e := range es {
			l, _ := os.Readlink(proc + "/fd/" + e.Name())
			t.Log(e.Name(), l)
		}
	}
	if b, _ := os.ReadFile(proc + "/comm"); string(b) != "crid-pid1\n" {
		t.Errorf("comm of a holder = %q", b)
	}
	confined(t, r.PID)
	spec := n.spec("sh", "-c", "(setsid sleep 0.01 &) ; sleep 0.1; echo $$; sleep 1000")
	spec.Linux.Namespaces[0] = specs.LinuxNamespace{Type: specs.PIDNamespace, Path: proc + "/ns/pid"}
	n.runSpec("a", spec)
	testutil.WaitFor(t, "output", func() bool { return strings.Contains(n.log("a"), "\n") })
	testutil.WaitFor(t, "no zombie", func() bool {
		out, _, _, err := n.exec("a", "ps", "-o", "pid,stat,args")
		return err == nil && strings.Contains(out, "crid-pid1") && !strings.Contains(out, " Z ")
	})
	n.client.Delete(ctx, monitor.DeleteRequest{ID: "a"})

	crash()
	if err := unix.Kill(r.PID, 0); err != nil {
		t.Fatalf("the holder after the monitor's death: %v", err)
	}
	if err := n.client.Adopt(ctx, monitor.AdoptRequest{ID: "s", PID: r.PID, Holder: true}, &monitor.Hold{PIDFD: pidfd}); err != nil {
		t.Fatal(err)
	}
	again, f, err := n.client.Hold(ctx, n.holdRequest("s"))
	if err != nil || again.PID != r.PID {
		t.Errorf("Hold after adoption = %+v, %v, want pid %d", again, err, r.PID)
	}
	f.Close()
}

func TestHolderTakesItsNamespaceAlong(t *testing.T) {
	n := newNode(t)
	r, pidfd, err := n.client.Hold(t.Context(), n.holdRequest("s"))
	if err != nil {
		t.Fatal(err)
	}
	pidfd.Close()
	spec := n.spec("sleep", "1000")
	spec.Linux.Namespaces[0].Path = "/proc/" + strconv.Itoa(r.PID) + "/ns/pid"
	n.runSpec("a", spec)
	if err := n.client.Release(t.Context(), n.releaseRequest("s")); err != nil {
		t.Fatal(err)
	}
	if e := n.exit("a"); e.Code != 128+int(syscall.SIGKILL) {
		t.Errorf("exit = %+v, want 137", e)
	}
	n.delete("a")
	n.residue()
}

// rollup adds up fields of a process's memory, in KiB.
func rollup(t testing.TB, pid int, prefix string) (sum int) {
	t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/smaps_rollup")
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); strings.HasPrefix(l, prefix) && len(f) > 1 {
			kib, _ := strconv.Atoi(f[1])
			sum += kib
		}
	}
	return sum
}
