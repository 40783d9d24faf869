package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/internal/testutil"
	"github.com/cridproject/crid/monitor"
)

// keeper is what systemd is for a service with a descriptor store.
type keeper struct {
	path string
	conn *net.UnixConn
	done chan struct{}

	mu   sync.Mutex
	kept map[string]*os.File
}

func newKeeper(t *testing.T, dir string) *keeper {
	t.Helper()
	k := &keeper{path: filepath.Join(dir, "notify"), kept: map[string]*os.File{}, done: make(chan struct{})}
	var err error
	if k.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: k.path, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	go k.run()
	t.Cleanup(func() {
		_ = k.conn.Close()
		<-k.done
		for _, f := range k.kept {
			_ = f.Close()
		}
	})
	return k
}

func (k *keeper) run() {
	defer close(k.done)
	r := sys.NewMsgReader(k.conn)
	defer r.Close()
	for buf := make([]byte, 4096); ; {
		n, err := r.Read(buf)
		if err != nil && !errors.Is(err, io.EOF) {
			return
		}
		files, _ := r.Take(r.Pending())
		_, name, _ := strings.Cut(string(buf[:n]), "FDNAME=")
		k.mu.Lock()
		if strings.HasPrefix(string(buf[:n]), "FDSTOREREMOVE=1\n") {
			_ = k.kept[name].Close()
			delete(k.kept, name)
		}
		for _, f := range files {
			k.kept[name] = f
		}
		k.mu.Unlock()
	}
}

func (k *keeper) names() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Sorted(maps.Keys(k.kept))
}

// start starts a monitor as systemd does.
func (k *keeper) start(n *node) *exec.Cmd {
	n.t.Helper()
	self := fmt.Sprintf("/proc/%d/exe", os.Getpid())
	names := k.names()
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0"`, self)
	k.mu.Lock()
	for _, name := range names {
		f, err := dup(k.kept[name])
		if err != nil {
			n.t.Fatal(err)
		}
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	k.mu.Unlock()
	cmd.Env = append(os.Environ(), monitorEnv+"="+n.state, notifyEnv+"="+k.path,
		listenFDs+"="+strconv.Itoa(len(names)), listenNames+"="+strings.Join(names, ":"))
	n.launchMonitor(cmd)
	return cmd
}

// TestBothDie: containers go on when the monitor is killed and nobody else has
// their pipes and terminals but the store, and nothing that they write is lost.
func TestBothDie(t *testing.T) {
	n := prepareNode(t)
	k := newKeeper(t, n.state)
	cmd := k.start(n)
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
	testutil.WaitFor(t, "the store to keep "+want, func() bool { return strings.Join(k.names(), " ") == want })
	lines := func(id string) int { return strings.Count(n.log(id), "\n") }
	for _, id := range []string{"loop", "tty"} {
		testutil.WaitFor(t, "a log", func() bool { return lines(id) > 5 })
	}

	stop()
	<-n.client.Done()
	n.client.Close()
	before := map[string]int{"loop": lines("loop"), "tty": lines("tty")}
	cmd = k.start(n)
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
	testutil.WaitFor(t, "an empty store", func() bool { return len(k.names()) == 0 })
	n.residue()
}
