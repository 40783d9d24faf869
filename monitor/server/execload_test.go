package server

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
	"github.com/cridproject/crid/monitor"
)

// TestManyExecsLeakNothing runs 400 of all kinds, or as many as CRID_TEST_EXECS
// says, a hundred at a time, and looks at what the monitor says of itself afterwards.
func TestManyExecsLeakNothing(t *testing.T) {
	n := newNode(t)
	n.run("a", "sleep", "1000")
	kinds := []func(id string) error{n.execPlain, n.execTerminal, n.execKilled, n.execFails, n.execUnread}
	for i, kind := range kinds {
		if err := kind(fmt.Sprint("first", i)); err != nil {
			t.Fatal(err)
		}
	}
	figures := func() monitor.DumpReply {
		d, err := n.client.Dump(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	before := figures()
	execs := 400
	if v, err := strconv.Atoi(os.Getenv("CRID_TEST_EXECS")); err == nil {
		execs = v
	}
	atOnce := 100
	if runtime.NumCPU() == 1 {
		atOnce = 20 // one processor, the VM's, does not kill so many within the monitor's limit
	}
	next := make(chan int)
	var wg sync.WaitGroup
	for range atOnce {
		wg.Go(func() {
			for i := range next {
				if err := kinds[i%len(kinds)](fmt.Sprint("x", i)); err != nil {
					t.Errorf("exec %d: %v", i, err)
				}
			}
		})
	}
	for i := range execs {
		next <- i
	}
	close(next)
	wg.Wait()
	testutil.WaitFor(t, "no more goroutines and files than before", func() bool {
		after := figures()
		return after.Execs == 0 && after.Goroutines <= before.Goroutines && after.FDs <= before.FDs
	})
	t.Logf("%d execs; before: %+v, after: %+v", execs, before, figures())
}

func (n *node) execPlain(id string) error {
	_, _, code, err := n.execAs("a", id, "sh", "-c", "echo x; exit 3")
	if err == nil && code != 3 {
		err = fmt.Errorf("exit code %d, want 3", code)
	}
	return err
}

func (n *node) execTerminal(id string) error {
	p, err := n.client.Exec(context.Background(), monitor.ExecRequest{ID: "a", ExecID: id, Args: []string{"echo", "x"}, TTY: true}, [3]*os.File{})
	if err != nil {
		return err
	}
	defer p.Console.Close()
	if err := n.client.Resize(context.Background(), monitor.ResizeRequest{ID: "a", ExecID: id, Rows: 1, Columns: 2}); err != nil && !errkind.Is(err, errkind.NotFound) {
		return err
	}
	if b, _ := io.ReadAll(p.Console); string(b) != "x\r\n" {
		return fmt.Errorf("terminal shows %q, want x", b)
	}
	<-p.Done
	return nil
}

// execKilled is what crid does when the client of an exec has gone.
func (n *node) execKilled(id string) error {
	p, err := n.client.Exec(context.Background(), monitor.ExecRequest{ID: "a", ExecID: id, Args: []string{"sh", "-c", "sleep 1000 & sleep 1000"}}, [3]*os.File{})
	if err != nil {
		return err
	}
	err = n.client.Signal(context.Background(), monitor.SignalRequest{ID: "a", ExecID: id, Signal: int(unix.SIGKILL), All: true})
	if e := <-p.Done; err == nil && e.Code != 137 {
		err = fmt.Errorf("exit code %d, want 137", e.Code)
	}
	return err
}

func (n *node) execFails(id string) error {
	if _, _, _, err := n.execAs("a", id, "/nope"); err == nil {
		return fmt.Errorf("exec of /nope succeeded")
	}
	return nil
}

// execUnread writes to somebody who goes away without reading.
func (n *node) execUnread(id string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	p, err := n.client.Exec(context.Background(), monitor.ExecRequest{ID: "a", ExecID: id, Args: []string{"yes"}}, [3]*os.File{nil, w, nil})
	_ = w.Close()
	_ = r.Close()
	if err != nil {
		return err
	}
	if e := <-p.Done; e.Code == 0 {
		return fmt.Errorf("yes ended with code 0, want it to notice that nobody reads")
	}
	return nil
}

// TestExecOnSockets: the streams of an exec may be sockets, one for both ways.
func TestExecOnSockets(t *testing.T) {
	n := newNode(t)
	n.run("a", "sleep", "1000")
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "socket")
	f := os.NewFile(uintptr(pair[0]), "socket")
	ours, err := net.FileConn(f)
	_ = f.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	p, err := n.client.Exec(context.Background(), monitor.ExecRequest{ID: "a", ExecID: "x", Args: []string{"sh", "-c", "cat; echo end >&2"}}, [3]*os.File{theirs, theirs, theirs})
	_ = theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(ours, "both ways\n"); err != nil {
		t.Fatal(err)
	}
	if err := ours.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(ours); string(b) != "both ways\nend\n" {
		t.Errorf("exec wrote %q, %v", b, err)
	}
	if e := <-p.Done; e.Code != 0 {
		t.Errorf("exit = %+v, want 0", e)
	}
}
