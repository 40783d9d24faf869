package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/monitor"
)

// signal does not take the container's ops: nothing keeps it from being killed.
func (s *Server) signal(ctx context.Context, r monitor.SignalRequest) (reply, error) {
	sig := unix.Signal(r.Signal)
	c, err := s.table.container(r.ID)
	if err != nil {
		if sig == unix.SIGKILL && r.All && r.ExecID == "" && s.cancelMaking(r.ID) {
			return reply{}, nil
		}
		return reply{}, err
	}
	if r.Signal <= 0 || r.Signal > 64 {
		return reply{}, errkind.Errorf(errkind.Invalid, "signal container %s: no signal %d", r.ID, r.Signal)
	}
	if r.All && sig != unix.SIGKILL {
		return reply{}, errkind.Errorf(errkind.Invalid, "signal container %s: all processes get SIGKILL only", r.ID)
	}
	if r.ExecID != "" {
		return reply{}, c.signalExec(ctx, r, sig)
	}
	if sig == unix.SIGKILL {
		c.killed.Store(true)
	}
	if r.All {
		kill := c.cgroup.kill
		if r.Wait {
			kill = func() error { return c.cgroup.empty(ctx) }
		}
		if err := kill(); err != nil {
			return reply{}, fmt.Errorf("kill container %s: %w", r.ID, err)
		}
	}
	if err := send(c.pidfd, sig); err != nil {
		return reply{}, fmt.Errorf("signal container %s: %w", r.ID, err)
	}
	return reply{}, nil
}

// send signals a process. One that has ended is no error.
func send(pidfd *os.File, sig unix.Signal) error {
	err := sys.PidfdSignal(pidfd, sig)
	if errors.Is(err, os.ErrProcessDone) || isClosed(err) {
		return nil
	}
	return err
}

// signalExec signals an exec, or with All kills it and all that it has started.
func (c *container) signalExec(ctx context.Context, r monitor.SignalRequest, sig unix.Signal) error {
	c.mu.Lock()
	e := c.execs[r.ExecID]
	var pidfd *os.File
	if e != nil {
		pidfd = e.pidfd
	}
	c.mu.Unlock()
	if pidfd == nil {
		return nil // has exited, or has not been started yet and nobody knows its name
	}
	if r.All {
		return c.killExec(ctx, e)
	}
	if err := send(pidfd, sig); err != nil {
		return fmt.Errorf("signal exec %s in container %s: %w", r.ExecID, r.ID, err)
	}
	return nil
}

// killExec kills an exec and its descendants until none is found. The exec leads
// a session, so that those whose parents have died are found too.
func (c *container) killExec(ctx context.Context, e *execProc) error {
	sessions := map[int]bool{e.pid: true}
	deadline := time.Now().Add(killTimeout)
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		pids, err := c.cgroup.pids()
		if err != nil {
			return fmt.Errorf("kill exec %s in container %s: %w", e.id, c.id, err)
		}
		found := descendants(e.pid, pids, sessions)
		if len(found) == 0 {
			return nil
		}
		for pid, start := range found {
			killProcess(pid, start)
		}
		if time.Now().After(deadline) {
			return errkind.Errorf(errkind.Timeout, "kill exec %s in container %s: %d processes are still there %v after SIGKILL",
				e.id, c.id, len(found), killTimeout)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// delete ends a container and removes all that is known of it. When it fails,
// the container is still there, in state deleting, and delete may be called again.
func (s *Server) delete(ctx context.Context, r monitor.DeleteRequest) (reply, error) {
	if err := checkID(r.ID); err != nil {
		return reply{}, err
	}
	unlock, err := s.ops.Lock(ctx, r.ID)
	if err != nil {
		return reply{}, err
	}
	defer unlock()
	c, err := s.table.container(r.ID)
	if err != nil {
		return reply{}, s.deleteUnknown(ctx, r)
	}
	began := time.Now()
	c.advance(stateDeleting)
	if err := c.endJoining(ctx); err != nil {
		return reply{}, fmt.Errorf("delete container %s: %w", r.ID, err)
	}
	if err := s.endProcesses(ctx, c); err != nil {
		return reply{}, fmt.Errorf("delete container %s: %w", r.ID, err)
	}
	if err := c.cgroup.remove(ctx); err != nil {
		return reply{}, fmt.Errorf("delete container %s: %w", r.ID, err)
	}
	c.io.close(ctx)
	s.o.Store.remove(r.ID, c.io.kept()...)
	if c.status != nil {
		_ = c.status.Close()
		c.status = nil
	}
	if err := errors.Join(s.removeRootfs(r.ID), s.runtime.forget(r.ID)); err != nil {
		return reply{}, fmt.Errorf("delete container %s: %w", r.ID, err)
	}
	s.table.drop(r.ID)
	_ = c.pidfd.Close()
	klog.FromContext(ctx).V(2).Info("Deleted container", "container", r.ID, "duration", time.Since(began))
	return reply{}, s.journal.remove(r.ID)
}

// endJoining waits for the execs that are being started: they end up in the
// cgroup, or fail. What takes long is killed, because the container may have
// frozen or stopped it, or serve the file system that its program comes from.
func (c *container) endJoining(ctx context.Context) error {
	joined := make(chan struct{})
	go func() {
		c.joining.Wait()
		close(joined)
	}()
	limit := time.NewTimer(killTimeout)
	defer limit.Stop()
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		select {
		case <-joined:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-limit.C:
			return errkind.Errorf(errkind.Timeout, "an exec that was being started has not ended %v after SIGKILL", killTimeout)
		case <-time.After(wait):
		}
		if err := errors.Join(send(c.pidfd, unix.SIGKILL), c.cgroup.kill()); err != nil {
			return err
		}
	}
}

// endProcesses kills everything in a container and waits until it is gone and
// reported.
func (s *Server) endProcesses(ctx context.Context, c *container) error {
	if err := send(c.pidfd, unix.SIGKILL); err != nil {
		return err
	}
	if err := c.cgroup.empty(ctx); err != nil {
		return err
	}
	// Whoever is left hangs: not even the kernel's own cleanup takes as long.
	limit := time.NewTimer(killTimeout)
	defer limit.Stop()
	select {
	case <-c.exited:
	case <-limit.C:
		return errkind.Errorf(errkind.Timeout, "process %d has not ended %v after SIGKILL", c.pid, killTimeout)
	}
	c.mu.Lock()
	execs := make([]*execProc, 0, len(c.execs))
	for _, e := range c.execs {
		execs = append(execs, e)
	}
	c.mu.Unlock()
	for _, e := range execs {
		select {
		case <-e.done:
		case <-limit.C:
			return errkind.Errorf(errkind.Timeout, "exec %s has not ended %v after SIGKILL", e.id, killTimeout)
		}
	}
	return nil
}

// deleteUnknown removes what an ID names, of a container that this monitor does
// not run: one of a monitor that died, or of a create that was cut short.
func (s *Server) deleteUnknown(ctx context.Context, r monitor.DeleteRequest) error {
	var errs []error
	var cgs []*cgroup
	if cg, _, _, err := s.runtime.restore(r.ID); err == nil {
		cgs = append(cgs, cg)
	}
	if r.CgroupsPath != "" {
		cg, err := newCgroup(r.CgroupsPath, r.SystemdCgroup)
		if err != nil {
			errs = append(errs, err)
		} else {
			cgs = append(cgs, cg)
		}
	}
	for _, cg := range cgs {
		errs = append(errs, cg.discard(ctx))
	}
	s.o.Store.remove(r.ID, allFiles...)
	errs = append(errs, s.removeRootfs(r.ID), s.runtime.forget(r.ID), s.journal.remove(r.ID))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("delete container %s, which the monitor does not run: %w", r.ID, err)
	}
	return nil
}

// discard ends all processes in a cgroup and removes it.
func (c *cgroup) discard(ctx context.Context) error {
	if err := c.empty(ctx); err != nil {
		return err
	}
	return c.remove(ctx)
}
