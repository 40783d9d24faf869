package sandbox

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/monitor"
)

// hangUpGrace is how long the programs of a terminal have to end on SIGHUP.
const hangUpGrace = time.Second

// MayExec says why Exec in the container could not be done now, nil if it could,
// and the whole ID.
func (m *Manager) MayExec(id string) (string, error) {
	c, err := m.findContainer(id)
	if err != nil {
		return "", err
	}
	return string(c.id), c.mayExec()
}

// Exec runs a program in a container that is created or runs, with a client's
// streams, and returns its exit code (128 + signal). All that the program itself has written is with the
// client by then; what holds its output open after it has exited is waited for a
// moment only.
//
// ctx ends when the client has gone. Then, and when the container ends, the
// program is killed with all its descendants. A terminal is hung up first, and
// its programs have a moment: what was started to survive that (nohup) does.
func (m *Manager) Exec(ctx context.Context, id string, args []string, s Streams) (int, error) {
	c, err := m.findContainer(id)
	if err != nil {
		return 0, err
	}
	if len(args) == 0 {
		return 0, errkind.Errorf(errkind.Invalid, "cmd: no command is given")
	}
	if err := c.mayExec(); err != nil {
		return 0, err
	}
	mon, err := m.reach(ctx)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancel(containerContext(ctx, c))
	defer cancel()
	x := &execution{m: m, mon: mon, c: c, id: newID()[:16]}
	p, err := x.start(ctx, args, s)
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", c.id.Short(), err)
	}
	defer p.close()
	p.run(s)
	if s.TTY {
		go resize(ctx, mon, monitor.ResizeRequest{ID: string(c.id), ExecID: x.id}, s.Resize)
	}
	e, err := x.wait(ctx, s.TTY)
	p.finish(ctx, m.o.ExecDrain)
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", c.id.Short(), err)
	}
	return e.Code, nil
}

// execution is an exec with streams under way.
type execution struct {
	m    *Manager
	mon  Monitor
	c    *container
	id   string
	done <-chan monitor.Exit
}

// start starts the program. The pipes are the caller's to run and to close.
func (x *execution) start(ctx context.Context, args []string, s Streams) (*pipes, error) {
	r := monitor.ExecRequest{ID: string(x.c.id), ExecID: x.id, Args: args, TTY: s.TTY}
	if s.TTY {
		size := s.firstSize(ctx)
		r.Rows, r.Columns = size.Rows, size.Columns
		proc, err := x.mon.Exec(ctx, r, [3]*os.File{})
		if err != nil {
			return nil, err
		}
		x.done = proc.Done
		return newConsolePipes(proc.Console, s), nil
	}
	p, err := newPipes(s)
	if err != nil {
		return nil, err
	}
	proc, err := x.mon.Exec(ctx, r, p.theirs)
	p.closeTheirs()
	if err != nil {
		p.close()
		return nil, err
	}
	x.done = proc.Done
	return p, nil
}

// wait waits for the exit, and sees to it when the client or the container goes.
func (x *execution) wait(ctx context.Context, tty bool) (monitor.Exit, error) {
	var why error
	select {
	case e := <-x.done:
		return ended(e)
	case <-ctx.Done():
		why = fmt.Errorf("it was killed: %w", context.Cause(ctx))
		if tty && x.hangUp(ctx) {
			return monitor.Exit{}, why
		}
	case <-x.c.exited:
		// Most execs end with the container at once, as its PID namespace does.
		if e, ok := x.within(x.m.o.ExecDrain); ok {
			return ended(e)
		}
		why = errkind.Errorf(errkind.BadState, "it was killed, because the container has exited")
	}
	x.m.killExec(ctx, x.mon, x.c, x.id, x.done)
	return monitor.Exit{}, why
}

// hangUp ends the session of a terminal as a lost line does, and reports whether
// its first process has ended on that.
func (x *execution) hangUp(ctx context.Context) bool {
	ctx, cancel := detach(ctx, x.m.o.KillTimeout)
	defer cancel()
	r := monitor.SignalRequest{ID: string(x.c.id), ExecID: x.id, Signal: int(syscall.SIGHUP)}
	if err := x.mon.Signal(ctx, r); err != nil {
		return false // so will the kill that follows, which logs it
	}
	_, ok := x.within(hangUpGrace)
	return ok
}

// within waits for the exit for limit.
func (x *execution) within(limit time.Duration) (monitor.Exit, bool) {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case e := <-x.done:
		return e, true
	case <-t.C:
		return monitor.Exit{}, false
	}
}
