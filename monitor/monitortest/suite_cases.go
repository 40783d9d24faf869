package monitortest

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
	"github.com/cridproject/crid/monitor"
)

func (s *suite) exitCodeArrives() {
	c := s.connect()
	for _, code := range []int{0, 7, 255} {
		id, _ := s.run(c, "sh", "-c", fmt.Sprintf("exit %d", code))
		s.wantCode(c.exit(id), code)
		if l := s.list(c)[id]; l.Exit == nil || l.Exit.Code != code {
			s.t.Errorf("List: exit of %s = %+v, want code %d", id, l.Exit, code)
		}
	}
}

func (s *suite) exitIsJournalledUntilAck() {
	first := s.connect()
	id, _ := s.run(first, "sh", "-c", "exit 3")
	want := first.exit(id)
	first.Close()

	for range 2 {
		again := s.connect()
		got := again.exit(id)
		if got.Code != 3 || !got.At.Equal(want.At) {
			s.t.Errorf("exit after reconnect = %+v, want %+v", got, want)
		}
		again.Close()
	}
	acked := s.connect()
	acked.exit(id)
	s.must("Ack", acked.Ack(s.ctx, id))
	s.must("Ack again", acked.Ack(s.ctx, id))
	acked.Close()

	last := s.connect()
	s.fence(last)
	if n := last.count(id); n != 0 {
		s.t.Errorf("after Ack the exit came %d times, want 0", n)
	}
	if l := s.list(last)[id]; l.Exit == nil || l.Exit.Code != 3 {
		s.t.Errorf("List after Ack: exit = %+v, want code 3 until Delete", l.Exit)
	}
}

// fence returns when all exits that were to come on c so far have come: the
// journal is sent before anything that happens later.
func (s *suite) fence(c *conn) {
	s.t.Helper()
	id, _ := s.run(c, "true")
	c.exit(id)
}

func (s *suite) exitGoesToEveryConnection() {
	a, b := s.connect(), s.connect()
	id, _ := s.run(a, "sh", "-c", "exit 4")
	s.wantCode(a.exit(id), 4)
	s.wantCode(b.exit(id), 4)
	s.fence(a)
	if n := a.count(id); n != 1 {
		s.t.Errorf("the exit came %d times on one connection, want once", n)
	}
}

func (s *suite) listAfterReconnect() {
	first := s.connect()
	waiting := s.request("sleep", "1000")
	s.create(first, waiting)
	runs, _ := s.run(first, "sleep", "1000")
	ended, _ := s.run(first, "sh", "-c", "exit 5")
	first.exit(ended)
	first.Close()

	c := s.connect()
	got := s.list(c)
	if len(got) != 3 {
		s.t.Errorf("List has %d items, want 3: %v", len(got), got)
	}
	for id, started := range map[string]bool{waiting.ID: false, runs: true, ended: true} {
		l, ok := got[id]
		if !ok {
			s.t.Errorf("List has no %s", id)
			continue
		}
		if l.Started != started || (l.Exit != nil) != (id == ended) || l.Holder || l.PID <= 0 {
			s.t.Errorf("List: %+v, want started %t, exit %t, a pid", l.ListItem, started, id == ended)
		}
		if l.Exit == nil && (l.Hold.PIDFD == nil || l.Hold.Stdout == nil || l.Hold.Stderr == nil) {
			s.t.Errorf("List: %s came with %v, want pidfd, stdout and stderr", id, l.FDs)
		}
	}
	s.must("Start after reconnect", c.Start(s.ctx, waiting.ID))
	s.kill(c, waiting.ID)
	s.kill(c, runs)
}

func (s *suite) holdNamesDescriptors() {
	c := s.connect()
	plain := s.create(c, s.request("sleep", "1000"))
	in := s.request("sleep", "1000")
	in.Stdin = true
	stdin := s.create(c, in)
	tty := s.create(c, s.withTerminal(s.request("sleep", "1000")))
	for _, tt := range []struct {
		name string
		h    *monitor.Hold
		want string
	}{{"plain", plain, "pidfd stdout stderr"}, {"stdin", stdin, "pidfd stdout stderr stdin"}, {"tty", tty, "pidfd console"}} {
		var got []string
		for _, d := range []struct {
			name string
			f    *os.File
		}{
			{"pidfd", tt.h.PIDFD},
			{"stdout", tt.h.Stdout},
			{"stderr", tt.h.Stderr},
			{"stdin", tt.h.Stdin},
			{"console", tt.h.Console},
		} {
			if d.f != nil {
				got = append(got, d.name)
			}
		}
		if got := strings.Join(got, " "); got != tt.want {
			s.t.Errorf("%s: Create came with %s, want %s", tt.name, got, tt.want)
		}
	}
}

func (s *suite) programThatIsNotThere() {
	c := s.connect()
	r := s.request("no-such-program")
	_, h, err := c.Create(s.ctx, r)
	if err == nil {
		// Found out at Start: then it has begun, and an exit follows.
		s.t.Cleanup(h.Close)
		if err = c.Start(s.ctx, r.ID); err != nil {
			if e := c.exit(r.ID); e.Code == 0 {
				s.t.Errorf("exit of what could not be started: code %d, want another than 0", e.Code)
			}
		}
	} else if _, ok := s.list(c)[r.ID]; ok {
		s.t.Error("List has a container whose Create failed")
	}
	if err == nil || !strings.Contains(err.Error(), "no-such-program") {
		s.t.Errorf("Create and Start of no-such-program = %v, want an error that names it", err)
	}
}

// output runs an exec, and is what it wrote and its exit.
func (s *suite) output(c *conn, id, execID, stdin string, args ...string) (stdout, stderr string, e monitor.Exit) {
	s.t.Helper()
	var ours, theirs [3]*os.File
	for i := range ours {
		r, w, err := os.Pipe()
		if err != nil {
			s.t.Fatal(err)
		}
		defer r.Close()
		defer w.Close()
		if ours[i], theirs[i] = r, w; i == 0 {
			ours[i], theirs[i] = w, r
		}
	}
	p, err := c.Exec(s.ctx, monitor.ExecRequest{ID: id, ExecID: execID, Args: args}, theirs)
	s.must("Exec", err)
	if p.PID <= 0 || p.Console != nil {
		s.t.Errorf("Exec: pid %d, console %v, want a pid and none", p.PID, p.Console)
	}
	for _, f := range theirs {
		// Still ours to close: a second owner would make this an error.
		if err := f.Close(); err != nil {
			s.t.Errorf("Close of what Exec was given = %v, want nil", err)
		}
	}
	_, _ = io.WriteString(ours[0], stdin) // it may have ended without reading
	_ = ours[0].Close()
	errs := make(chan string)
	go func() {
		b, _ := io.ReadAll(ours[2])
		errs <- string(b)
	}()
	b, _ := io.ReadAll(ours[1])
	return string(b), <-errs, s.execEnd(p)
}

func (s *suite) execExits() {
	c := s.connect()
	id, _ := s.run(c, "sleep", "1000")
	stdout, stderr, e := s.output(c, id, "e1", "", "sh", "-c", "echo out; echo err >&2; exit 5")
	s.wantCode(e, 5)
	if e.ID != id || e.ExecID != "e1" {
		s.t.Errorf("exit is of %s, %s, want %s, e1", e.ID, e.ExecID, id)
	}
	if stdout != "out\n" || stderr != "err\n" {
		s.t.Errorf("exec wrote %q and %q, want out and err", stdout, stderr)
	}
	stdout, _, e = s.output(c, id, "e2", "through", "cat")
	if s.wantCode(e, 0); stdout != "through" {
		s.t.Errorf("cat wrote %q, want through", stdout)
	}
	// The name of one that has ended is free.
	_, _, e = s.output(c, id, "e1", "", "echo", "again")
	s.wantCode(e, 0)
	if n := c.count(id); n != 0 {
		s.t.Errorf("OnExit was called %d times for a container that runs, want 0", n)
	}
	// Before its start a container has all that an exec joins.
	waiting := s.request("sleep", "1000")
	s.create(c, waiting)
	if stdout, _, e = s.output(c, waiting.ID, "e1", "", "echo", "early"); stdout != "early\n" {
		s.t.Errorf("exec before the start wrote %q, want early", stdout)
	}
	s.wantCode(e, 0)
	s.must("Start after an exec", c.Start(s.ctx, waiting.ID))
}

func (s *suite) execsAtOnce() {
	const execs = 20
	c := s.connect()
	id, _ := s.run(c, "sleep", "1000")
	results := make(chan error, execs)
	for i := range execs {
		go func() {
			p, err := c.Exec(s.ctx, monitor.ExecRequest{ID: id, ExecID: fmt.Sprint("e", i), Args: []string{"echo", "x"}}, [3]*os.File{})
			if err == nil {
				select {
				case e := <-p.Done:
					if e.Code != 0 {
						err = fmt.Errorf("exit %+v", e)
					}
				case <-s.ctx.Done():
					err = s.ctx.Err()
				}
			}
			results <- err
		}()
	}
	for range execs {
		if err := <-results; err != nil {
			s.t.Errorf("one of %d execs at once: %v, want exit 0", execs, err)
		}
	}
}

func (s *suite) execIsKilled() {
	c := s.connect()
	id, _ := s.run(c, "sleep", "1000")
	for _, all := range []bool{false, true} {
		p, err := c.Exec(s.ctx, monitor.ExecRequest{ID: id, ExecID: "e", Args: []string{"sleep", "1000"}}, [3]*os.File{})
		s.must("Exec", err)
		s.must("Signal", c.Signal(s.ctx, monitor.SignalRequest{ID: id, ExecID: "e", Signal: int(syscall.SIGKILL), All: all}))
		s.wantCode(s.execEnd(p), 128+9)
	}
	s.must("Signal to an exec that ended", c.Signal(s.ctx, monitor.SignalRequest{ID: id, ExecID: "e", Signal: int(syscall.SIGKILL)}))
	// An exec does not outlive its container.
	p, err := c.Exec(s.ctx, monitor.ExecRequest{ID: id, ExecID: "e", Args: []string{"sleep", "1000"}}, [3]*os.File{})
	s.must("Exec", err)
	s.kill(c, id)
	s.wantCode(s.execEnd(p), 128+9)
}

func (s *suite) execWithTerminal() {
	c := s.connect()
	id, _ := s.run(c, "sleep", "1000")
	p, err := c.Exec(s.ctx, monitor.ExecRequest{ID: id, ExecID: "e", Args: []string{"sleep", "1000"}, TTY: true}, [3]*os.File{})
	s.must("Exec", err)
	if p.Console == nil {
		s.t.Fatal("Exec with TTY came without a console")
	}
	defer p.Console.Close()
	s.must("Resize", c.Resize(s.ctx, monitor.ResizeRequest{ID: id, ExecID: "e", Rows: 40, Columns: 100}))
	s.must("Signal", c.Signal(s.ctx, monitor.SignalRequest{ID: id, ExecID: "e", Signal: int(syscall.SIGKILL)}))
	s.wantCode(s.execEnd(p), 128+9)
}

// What runs for a connection ends with it, and nothing else does.
func (s *suite) execEndsWithConnection() {
	lost, other := s.connect(), s.connect()
	id, _ := s.run(other, "sleep", "1000")
	r, w, err := os.Pipe()
	s.must("Pipe", err)
	defer r.Close()
	_, err = lost.Exec(s.ctx, monitor.ExecRequest{ID: id, ExecID: "lost", Args: []string{"sleep", "1000"}}, [3]*os.File{nil, w, nil})
	_ = w.Close()
	s.must("Exec", err)
	p, err := lost.Exec(s.ctx, monitor.ExecRequest{ID: id, ExecID: "terminal", Args: []string{"sleep", "1000"}, TTY: true}, [3]*os.File{})
	s.must("Exec with TTY", err)
	defer p.Console.Close()
	stays, err := other.Exec(s.ctx, monitor.ExecRequest{ID: id, ExecID: "stays", Args: []string{"sleep", "1000"}}, [3]*os.File{})
	s.must("Exec", err)
	lost.Close()
	defer context.AfterFunc(s.ctx, func() { _ = r.Close() })()
	if _, err := io.ReadAll(r); err != nil {
		s.t.Error(err)
	}
	testutil.WaitFor(s.t, "one exec to be left", func() bool {
		d, err := other.Dump(s.ctx)
		return err == nil && d.Execs == 1
	})
	s.must("Signal", other.Signal(s.ctx, monitor.SignalRequest{ID: id, ExecID: "stays", Signal: int(syscall.SIGKILL)}))
	s.wantCode(s.execEnd(stays), 128+9)
}

func (s *suite) signalAll() {
	c := s.connect()
	id, _ := s.run(c, "sh", "-c", "sleep 1000 & sleep 1000")
	s.kill(c, id)
}

func (s *suite) signalToExited() {
	c := s.connect()
	id, _ := s.run(c, "true")
	c.exit(id)
	for _, all := range []bool{false, true} {
		s.must("Signal to what has exited", c.Signal(s.ctx, monitor.SignalRequest{ID: id, Signal: int(syscall.SIGKILL), All: all}))
	}
}

func (s *suite) deleteIsIdempotent() {
	c := s.connect()
	id, r := s.run(c, "true")
	c.exit(id)
	for range 2 {
		s.must("Delete", c.Delete(s.ctx, deleteOf(r)))
	}
	if got := s.list(c); len(got) != 0 {
		s.t.Errorf("List after Delete = %v, want none", got)
	}
	unknown := deleteOf(s.env.Container(s.t, "unknown", "true"))
	unknown.ID = "unknown"
	s.must("Delete of what never was", c.Delete(s.ctx, unknown))
	// The ID is free again.
	s.create(c, r)
	s.must("Start", c.Start(s.ctx, id))
}

func (s *suite) deleteOfRunning() {
	c := s.connect()
	_, r := s.run(c, "sh", "-c", "sleep 1000 & sleep 1000")
	waiting := s.request("sleep", "1000")
	s.create(c, waiting)
	s.must("Delete of what runs", c.Delete(s.ctx, deleteOf(r)))
	s.must("Delete of what waits for Start", c.Delete(s.ctx, deleteOf(waiting)))
	if got := s.list(c); len(got) != 0 {
		s.t.Errorf("List after Delete = %v, want none", got)
	}
}

func (s *suite) deleteForgetsExit() {
	first := s.connect()
	id, r := s.run(first, "sh", "-c", "exit 3")
	first.exit(id)
	s.must("Delete", first.Delete(s.ctx, deleteOf(r)))
	first.Close()
	c := s.connect()
	s.fence(c)
	if n := c.count(id); n != 0 {
		s.t.Errorf("after Delete the exit came %d times on a new connection, want 0", n)
	}
}

func (s *suite) errorsKeepKinds() {
	c := s.connect()
	runs, r := s.run(c, "sleep", "1000")
	ended, _ := s.run(c, "true")
	c.exit(ended)
	exec := func(id string) error {
		_, err := c.Exec(s.ctx, monitor.ExecRequest{ID: id, ExecID: "e", Args: []string{"true"}}, [3]*os.File{})
		return err
	}
	update := func(id string) error {
		_, err := c.Update(s.ctx, monitor.UpdateRequest{ID: id, Resources: []byte("{}")})
		return err
	}
	kill := monitor.SignalRequest{ID: "none", Signal: int(syscall.SIGKILL)}

	_, _, err := c.Create(s.ctx, r)
	s.wantKind("Create of what is there", err, errkind.Exists)
	s.wantKind("Start of none", c.Start(s.ctx, "none"), errkind.NotFound)
	s.wantKind("Exec in none", exec("none"), errkind.NotFound)
	s.wantKind("Signal to none", c.Signal(s.ctx, kill), errkind.NotFound)
	s.wantKind("Resize of none", c.Resize(s.ctx, monitor.ResizeRequest{ID: "none"}), errkind.NotFound)
	s.wantKind("ReopenLog of none", c.ReopenLog(s.ctx, "none"), errkind.NotFound)
	s.wantKind("Update of none", update("none"), errkind.NotFound)
	s.wantKind("Update of what ended", update(ended), errkind.BadState)
	s.wantKind("Start of what runs", c.Start(s.ctx, runs), errkind.BadState)
	s.wantKind("Start of what ended", c.Start(s.ctx, ended), errkind.BadState)
	s.wantKind("Exec in what ended", exec(ended), errkind.BadState)
	s.wantKind("ReopenLog of what ended", c.ReopenLog(s.ctx, ended), errkind.BadState)
	s.wantKind("Resize without a terminal", c.Resize(s.ctx, monitor.ResizeRequest{ID: runs, Rows: 1, Columns: 1}), errkind.BadState)
	if _, ok := s.list(c)[runs]; !ok {
		s.t.Error("the container is gone after a second Create of its ID")
	}
}

func (s *suite) holdAndRelease() {
	c := s.connect()
	r := s.env.Hold(s.t, s.id("s"))
	release := monitor.ReleaseRequest{ID: r.ID, CgroupsPath: r.CgroupsPath, SystemdCgroup: r.SystemdCgroup}
	s.t.Cleanup(func() { _ = c.Release(context.Background(), release) })
	var pids [2]int
	for i := range pids {
		reply, f, err := c.Hold(s.ctx, r)
		s.must("Hold", err)
		if pids[i] = reply.PID; f == nil || reply.PID <= 0 {
			s.t.Fatalf("Hold: pid %d, pidfd %v, want both", reply.PID, f)
		}
		_ = f.Close()
	}
	if pids[0] != pids[1] {
		s.t.Errorf("Hold twice: pids %v, want the same", pids)
	}
	l := s.list(c)[r.ID]
	if !l.Holder || l.PID != pids[0] || l.Hold == nil || l.Hold.PIDFD == nil {
		s.t.Errorf("List: %+v, want a holder with pid %d and pidfd", l.ListItem, pids[0])
	}
	for range 2 {
		s.must("Release", c.Release(s.ctx, release))
	}
	if got := s.list(c); len(got) != 0 {
		s.t.Errorf("List after Release = %v, want none", got)
	}
}

func (s *suite) endedContextLeavesConnection() {
	c := s.connect()
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	if err := c.Start(ctx, "none"); !isEnded(err) {
		s.t.Errorf("Start with a context that has ended = %v, want its error", err)
	}
	id, _ := s.run(c, "sh", "-c", "exit 6")
	s.wantCode(c.exit(id), 6)
}

func (s *suite) shutdownOnlyWhenEmpty() {
	c := s.connect()
	_, r := s.run(c, "sleep", "1000")
	s.wantKind("Shutdown of a monitor with a container", c.Shutdown(s.ctx), errkind.BadState)
	d, err := c.Dump(s.ctx)
	if s.must("Dump", err); d.Containers != 1 || d.Execs != 0 || d.Holders != 0 || d.PID <= 0 {
		s.t.Errorf("Dump = %+v, want one container and a pid", d)
	}
	s.must("Delete", c.Delete(s.ctx, deleteOf(r)))
	d, err = c.Dump(s.ctx)
	if s.must("Dump", err); d.Containers != 0 {
		s.t.Errorf("Dump = %+v, want no container", d)
	}
}
