package server

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/internal/testutil"
	"github.com/cridproject/crid/monitor"
)

// startKept starts a monitor as systemd does.
func startKept(n *node, k *testutil.Keeper) *exec.Cmd {
	n.t.Helper()
	cmd := k.Command([]string{monitorEnv + "=" + n.state}, fmt.Sprintf("/proc/%d/exe", os.Getpid()))
	n.launchMonitor(cmd)
	return cmd
}

// TestBothDie: containers go on when the monitor is killed and nobody else has
// their pipes and terminals but the store, and nothing that they write is lost.
func TestBothDie(t *testing.T) {
	n := prepareNode(t)
	k := testutil.NewKeeper(t, n.state)
	cmd := startKept(n, k)
	stop := func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	t.Cleanup(func() {
		n.client.Close()
		stop()
	})
	n.client = n.connect()
	requests := map[string]monitor.CreateRequest{}
	pids := map[string]int{}
	run := func(id string, r monitor.CreateRequest) {
		reply, h, err := n.client.Create(context.Background(), r)
		if err != nil {
			t.Fatal(err)
		}
		h.Close() // as when crid dies
		t.Cleanup(func() { n.delete(id) })
		n.start(id)
		r.Spec = nil
		requests[id], pids[id] = r, reply.PID
	}
	const loop = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.005; done"
	run("loop", n.request("loop", n.spec("sh", "-c", loop)))
	cat := n.request("cat", n.spec("cat"))
	cat.Stdin = true
	run("cat", cat)
	once := n.request("once", n.spec("sh", "-c", "cat; echo ended"))
	once.Stdin, once.StdinOnce = true, true
	run("once", once)
	run("unknown", n.request("unknown", n.spec("sleep", "1000")))
	terminal := n.spec("sh", "-c", "stty -echo; "+loop)
	terminal.Process.Terminal = true
	run("tty", n.request("tty", terminal))
	want := "cat.stderr cat.stdin cat.stdout loop.stderr loop.stdout once.stderr once.stdout tty.console unknown.stderr unknown.stdout"
	testutil.WaitFor(t, "the store to keep "+want, func() bool { return strings.Join(k.Names(), " ") == want })
	lines := func(id string) int { return strings.Count(n.log(id), "\n") }
	for _, id := range []string{"loop", "tty"} {
		testutil.WaitFor(t, "a log", func() bool { return lines(id) > 5 })
	}

	stop()
	<-n.client.Done()
	n.client.Close()
	before := map[string]int{"loop": lines("loop"), "tty": lines("tty")}
	cmd = startKept(n, k)
	n.client = n.connect()
	n.delete("unknown") // by a monitor that does not have it
	delete(requests, "unknown")
	for id, r := range requests {
		pidfd, err := sys.PidfdOpen(pids[id])
		if err != nil {
			t.Fatal(err)
		}
		h := &monitor.Hold{PIDFD: pidfd}
		if err := n.client.Adopt(context.Background(), monitor.AdoptRequest{ID: id, PID: pids[id], Create: r, Started: true}, h); err != nil {
			t.Fatalf("Adopt(%s) = %v", id, err)
		}
		h.Close()
	}
	for _, id := range []string{"loop", "tty"} {
		testutil.WaitFor(t, "more log", func() bool { return lines(id) > before[id]+20 })
		i := 0
		for l := range strings.Lines(texts(n.log(id))) {
			if l != fmt.Sprintf("stdout F %d\n", i) {
				t.Fatalf("%s: record %d = %q: lost or out of order", id, i, l)
			}
			i++
		}
	}
	a := n.attach("cat", "in out")
	say(t, a.in, "still there\n")
	if got := line(t, a.out); got != "still there\n" {
		t.Errorf("cat answered %q", got)
	}
	n.exit("once") // its stdin went with those who would have closed it
	if got := texts(n.log("once")); got != "stdout F ended\n" {
		t.Errorf("log of a container whose stdin ended = %q, want its last words", got)
	}
	for id := range requests {
		n.delete(id)
	}
	testutil.WaitFor(t, "an empty store", func() bool { return len(k.Names()) == 0 })
	n.residue()
}
