package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/monitor"
)

// handleExec takes the three files that come with the request.
func (s *Server) handleExec(ctx context.Context, c *conn, f *monitor.Frame) (reply, error) {
	var r monitor.ExecRequest
	if err := f.Decode(&r); err != nil {
		return reply{}, err
	}
	want := 3
	if r.TTY {
		want = 0
	}
	switch {
	case len(f.Files) != want:
		return reply{}, errkind.Errorf(errkind.Invalid, "exec in container %s: %d descriptors came, want %d", r.ID, len(f.Files), want)
	case len(r.Args) == 0 || r.Args[0] == "":
		return reply{}, errkind.Errorf(errkind.Invalid, "exec in container %s: no command", r.ID)
	case r.ExecID == "":
		return reply{}, errkind.Errorf(errkind.Invalid, "exec in container %s: no exec ID", r.ID)
	}
	return s.exec(ctx, c, r, f.Files)
}

// exec runs one more process. Its exit goes to conn.
func (s *Server) exec(ctx context.Context, conn *conn, r monitor.ExecRequest, files []*os.File) (_ reply, err error) {
	began := time.Now()
	c, err := s.table.container(r.ID)
	if err != nil {
		return reply{}, err
	}
	e := &execProc{id: r.ExecID, done: make(chan struct{}), conn: conn}
	if err := c.cgroup.thawed(); err != nil {
		return reply{}, fmt.Errorf("exec in container %s: %w", r.ID, err)
	}
	if err := c.join(e); err != nil {
		return reply{}, err
	}
	defer c.joining.Done()
	defer func() {
		if err != nil {
			c.leave(e)
		}
	}()
	if err := s.launchExec(c, e, r, files); err != nil {
		if errkind.Of(err) == errkind.Other && c.ending() {
			err = errkind.Errorf(errkind.BadState, "container %s ended before the command was started: %w", c.id, err)
		}
		return reply{}, err
	}
	s.execs.Add(1)
	klog.FromContext(ctx).V(4).Info("Started exec", "container", c.id, "pid", e.pid, "duration", time.Since(began))
	answer := reply{
		body:  monitor.ExecReply{PID: e.pid},
		after: func() { go s.watchExec(ctx, conn, c, e) },
	}
	if e.console != nil {
		if d, err := sys.Dup(e.console); err == nil {
			answer.files = []*os.File{d}
		}
	}
	return answer, nil
}

// endingSoon is how long the first process may take to end after the others in its
// PID namespace, which the kernel ends before it.
const endingSoon = 100 * time.Millisecond

// ending reports whether the container has ended, is being killed, or ends now: then
// an exec fails in many ways that say nothing.
func (c *container) ending() bool {
	if c.killed.Load() {
		return true
	}
	d, err := sys.Dup(c.pidfd)
	if err != nil {
		return true // it has been closed: the container is deleted
	}
	defer d.Close()
	fds := []unix.PollFd{{Fd: int32(d.Fd()), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, int(endingSoon.Milliseconds()))
	return err == nil && n > 0
}

// join takes the exec's name in the container. A delete that comes later waits
// until it has been started.
func (c *container) join(e *execProc) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.wantsLocked("exec in", stateCreated, stateRunning); err != nil {
		return err
	}
	if c.execs[e.id] != nil {
		return errkind.Errorf(errkind.Exists, "exec %s runs in container %s", e.id, c.id)
	}
	c.execs[e.id] = e
	c.joining.Add(1)
	return nil
}

func (c *container) leave(e *execProc) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.execs, e.id)
}

// launchExec starts the process and waits until its program has been executed.
// On error there is no process left.
func (s *Server) launchExec(c *container, e *execProc, r monitor.ExecRequest, files []*os.File) (err error) {
	var l launch
	var console *consoleSocket
	if r.TTY {
		if console, err = newConsoleSocket(); err != nil {
			return err
		}
		defer console.close()
		l.console = console.child
	} else {
		l.stdin, l.stdout, l.stderr = files[0], files[1], files[2]
		for _, f := range files {
			setBlocking(f)
		}
	}
	status, childStatus, err := pipeFrom()
	if err != nil {
		return fmt.Errorf("make status pipe: %w", err)
	}
	defer status.Close()
	defer childStatus.Close()
	l.status = childStatus
	pid, err := s.runtime.exec(r, l)
	_ = childStatus.Close()
	text := trimText(readAll(status, 4096)) // until the program is executed, or the process has ended
	if err != nil {
		if text != "" {
			err = fmt.Errorf("%w: %s", err, text)
		}
		return err
	}
	pidfd, err := sys.PidfdOpen(pid)
	var master *os.File
	if err == nil && text == "" && console != nil {
		master, err = console.master()
	}
	if err == nil && text != "" {
		err = errkind.New(errkind.Invalid, errors.New(text))
	}
	if err != nil {
		_ = unix.Kill(pid, unix.SIGKILL) // ours until waited for
		_, werr := s.reaper.wait(pid)
		if pidfd != nil {
			_ = pidfd.Close()
		}
		return errors.Join(err, werr)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e.pid, e.pidfd, e.console = pid, pidfd, master
	return nil
}

// watchExec waits for the end of an exec and reports it to the connection that
// asked for it.
func (s *Server) watchExec(ctx context.Context, conn *conn, c *container, e *execProc) {
	log := klog.LoggerWithValues(klog.FromContext(ctx), "container", c.id, "pid", e.pid)
	if err := untilExit(e.pidfd); err != nil {
		log.Error(err, "Lost track of an exec")
	}
	exit := monitor.Exit{ID: c.id, ExecID: e.id, At: time.Now()}
	var err error
	if exit.Code, err = s.reaper.wait(e.pid); err != nil {
		log.Error(err, "Lost exit code of an exec")
		exit.Code, exit.Lost = -1, true
	}
	c.leave(e)
	s.execs.Add(-1)
	_ = e.pidfd.Close()
	if e.console != nil {
		_ = e.console.Close()
	}
	log.V(4).Info("Exec exited", "exitCode", exit.Code)
	conn.sendExit(exit)
	close(e.done)
}

// trimText takes the line end from an error text.
func trimText(text string) string {
	return strings.TrimSpace(text)
}

// setBlocking: programs do not expect their standard files to be non-blocking,
// which they are when crid uses the other end of a socket, or of the same file.
func setBlocking(f *os.File) {
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.SetNonblock(int(fd), false) })
	}
}
