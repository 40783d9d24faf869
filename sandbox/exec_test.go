package sandbox_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/internal/testutil"
	"github.com/cridproject/crid/monitor"
	"github.com/cridproject/crid/monitor/monitortest"
	"github.com/cridproject/crid/sandbox"
	"github.com/cridproject/crid/sandbox/sandboxtest"
)

const outputMax = 16 << 20

// programs are what execs run, by name.
func programs(e *monitortest.Exec) int {
	switch e.Request.Args[0] {
	case "echo":
		_, _ = io.WriteString(e.Stdout, strings.Join(e.Request.Args[1:], " "))
		_, _ = io.WriteString(e.Stderr, "oops")
		return 0
	case "false":
		return 1
	case "flood":
		chunk := bytes.Repeat([]byte("x"), 1<<20)
		for range 17 {
			if _, err := e.Stdout.Write(chunk); err != nil {
				return 2 // it must not notice
			}
		}
		return 0
	case "hang":
		<-e.Killed
		return 137
	}
	return 127
}

func TestExecSync(t *testing.T) {
	testutil.LeakCheck(t)
	n := sandboxtest.NewWith(t, monitortest.Options{Exec: programs})
	pod, id := mustLive(t, n, sandboxtest.Pod("web"), sandboxtest.Container("main"))
	exec := func(timeout time.Duration, args ...string) (sandbox.ExecResult, error) {
		return n.Manager.ExecSync(t.Context(), string(id), args, timeout)
	}
	if r, err := exec(0, "echo", "a", "b"); err != nil || string(r.Stdout) != "a b" || string(r.Stderr) != "oops" || r.Code != 0 {
		t.Errorf("echo = %+v, %v", r, err)
	}
	if r, err := exec(never, "false"); err != nil || r.Code != 1 {
		t.Errorf("false = %+v, %v, want code 1 and no error", r, err)
	}
	if r, err := exec(0, "flood"); err != nil || len(r.Stdout) != outputMax || r.Code != 0 {
		t.Errorf("flood = %d bytes, code %d, %v, want %d and 0", len(r.Stdout), r.Code, err, outputMax)
	}
	if _, err := exec(time.Millisecond, "hang"); !errkind.Is(err, errkind.Timeout) {
		t.Errorf("hang = %v, want kind timeout", err)
	}
	if _, err := exec(0); !errkind.Is(err, errkind.Invalid) {
		t.Errorf("no command = %v, want kind invalid", err)
	}
	if _, err := n.Manager.ExecSync(t.Context(), "xyz", []string{"true"}, 0); !errkind.Is(err, errkind.NotFound) {
		t.Errorf("no container = %v, want kind not found", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := n.Manager.ExecSync(ctx, string(id), []string{"hang"}, 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with its caller gone = %v, want deadline exceeded", err)
	}
	if err := n.Manager.Stop(t.Context(), string(id), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := exec(0, "echo"); !errkind.Is(err, errkind.BadState) {
		t.Errorf("exec in what has exited = %v, want kind bad state", err)
	}
	mustRemove(t, n, pod)
	mustBeClean(t, n)
}

// grandchild is a monitor whose execs leave somebody behind that holds stdout.
type grandchild struct {
	sandbox.Monitor
	held *[]*os.File
}

func (g grandchild) Exec(ctx context.Context, r monitor.ExecRequest, stdio [3]*os.File) (*monitor.ExecProcess, error) {
	dup, err := sys.Dup(stdio[1])
	if err != nil {
		return nil, err
	}
	*g.held = append(*g.held, dup)
	return g.Monitor.Exec(ctx, r, stdio)
}

func TestExecDoesNotWaitForGrandchildren(t *testing.T) {
	testutil.LeakCheck(t)
	var held []*os.File
	n := sandboxtest.NewWith(t, monitortest.Options{Exec: programs}, func(o *sandbox.Options) {
		connect := o.ConnectMonitor
		o.ConnectMonitor = func(ctx context.Context, onExit func(monitor.Exit)) (sandbox.Monitor, error) {
			m, err := connect(ctx, onExit)
			return grandchild{m, &held}, err
		}
	})
	_, id := mustLive(t, n, sandboxtest.Pod("web"), sandboxtest.Container("main"))
	r, err := n.Manager.ExecSync(t.Context(), string(id), []string{"echo", "hello"}, 0)
	if err != nil || string(r.Stdout) != "hello" {
		t.Errorf("ExecSync = %+v, %v, want what was written", r, err)
	}
	for _, f := range held {
		if _, err := f.WriteString("late"); err == nil {
			t.Error("the pipe is still read after ExecSync, want it closed")
		}
		_ = f.Close()
	}
}

func TestExecWithTheMonitorGone(t *testing.T) {
	started := make(chan struct{})
	n := sandboxtest.NewWith(t, monitortest.Options{Exec: func(e *monitortest.Exec) int {
		close(started)
		<-e.Killed
		return 0
	}})
	_, id := mustLive(t, n, sandboxtest.Pod("web"), sandboxtest.Container("main"))
	done := make(chan error)
	go func() {
		_, err := n.Manager.ExecSync(t.Context(), string(id), []string{"x"}, 0)
		done <- err
	}()
	<-started
	n.Monitor.Disconnect()
	if err := <-done; !errkind.Is(err, errkind.Unavailable) {
		t.Errorf("ExecSync = %v, want kind unavailable", err)
	}
}
