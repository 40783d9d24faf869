package sandbox

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/monitor"
)

const sigKill = int(syscall.SIGKILL)

// killAgain is how often SIGKILL is repeated: on cgroup v1 a fork can escape it.
const killAgain = time.Second

// Stop asks a container to end by its stop signal and waits until it has. After
// grace all its processes are killed; with a grace of 0 that is at once.
//
// The signal is sent once, whoever calls again. Of several calls that wait the
// shortest grace counts. A call whose ctx ends stops waiting and kills nothing:
// it is no order. A container that was never started is killed at once. Stopping
// what has exited or was never there does nothing.
//
// When it has not exited in time after SIGKILL, the error has kind Timeout, and
// Stop may be called again.
func (m *Manager) Stop(ctx context.Context, id string, grace time.Duration) error {
	c, err := m.findContainer(id)
	if errkind.Is(err, errkind.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	ctx = containerContext(ctx, c)
	state := *c.state.Load()
	if !state.lives() {
		return nil
	}
	if grace > 0 && state != ContainerCreated {
		began := time.Now()
		m.awaitStart(ctx, c, grace)
		if err := m.ask(ctx, c); err != nil {
			return err
		}
		ended, err := c.waitExit(ctx, grace-time.Since(began))
		if ended || err != nil {
			return err
		}
		klog.FromContext(ctx).V(2).Info("Container did not end on its stop signal", "duration", grace)
	}
	if err := m.kill(ctx, c, m.reach); err != nil {
		return err
	}
	m.checkContainer(c)
	return nil
}

// awaitStart waits for a start that is under way, for limit at most. What the first
// process is sent before it executes its program is lost.
func (m *Manager) awaitStart(ctx context.Context, c *container, limit time.Duration) {
	if *c.state.Load() != ContainerStarting {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if unlock, err := m.containerOps.Lock(ctx, c.id); err == nil {
		unlock()
	}
}

// ask sends the stop signal, unless that has been done.
func (m *Manager) ask(ctx context.Context, c *container) error {
	mon, err := m.reach(ctx)
	if err != nil {
		return err
	}
	c.mu.Lock()
	asked, n := c.asked, c.rec.Signal
	c.asked = true
	c.mu.Unlock()
	if asked {
		return nil
	}
	if n == 0 {
		n = int(syscall.SIGTERM)
	}
	err = mon.Signal(ctx, monitor.SignalRequest{ID: string(c.id), Signal: n})
	if err == nil {
		return m.step("container.stop.signal")
	}
	// A monitor that does not have it has just been found out by reconnect to be
	// another: the exit is about to be told, and if not, kill sees to it.
	if c.hasExited() || errkind.Is(err, errkind.NotFound) {
		return nil
	}
	c.mu.Lock()
	c.asked = false
	c.mu.Unlock()
	return fmt.Errorf("stop container %s: send %v: %w", c.id.Short(), syscall.Signal(n), err)
}

// waitExit waits for the exit, for limit, and for ctx.
func (c *container) waitExit(ctx context.Context, limit time.Duration) (ended bool, err error) {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-c.exited:
		return true, nil
	case <-ctx.Done():
		return false, fmt.Errorf("wait for container %s to exit: %w", c.id.Short(), context.Cause(ctx))
	case <-t.C:
		return false, nil
	}
}

func (c *container) hasExited() bool {
	select {
	case <-c.exited:
		return true
	default:
		return false
	}
}

// kill kills all processes of a container, by the monitor that find finds, and
// waits until it has exited.
func (m *Manager) kill(ctx context.Context, c *container, find func(context.Context) (Monitor, error)) error {
	c.mu.Lock()
	c.killed = true
	c.mu.Unlock()
	for tries := max(1, int(m.o.KillTimeout/killAgain)); tries > 0; tries-- {
		if c.hasExited() {
			return nil
		}
		mon, err := find(ctx)
		if err == nil {
			err = mon.Signal(ctx, monitor.SignalRequest{ID: string(c.id), Signal: sigKill, All: true})
		}
		if err == nil {
			err = m.step("container.stop.kill")
		}
		if errkind.Is(err, errkind.NotFound) {
			// The monitor does not have it, and was not able to take it over.
			m.exited(monitor.Exit{ID: string(c.id), At: m.o.Now(), Code: -1, Lost: true})
		}
		if c.hasExited() {
			return nil
		}
		if err != nil {
			return fmt.Errorf("kill container %s: %w", c.id.Short(), err)
		}
		ended, err := c.waitExit(ctx, min(killAgain, m.o.KillTimeout))
		if ended || err != nil {
			return err
		}
	}
	return errkind.Errorf(errkind.Timeout, "container %s has not exited %v after SIGKILL: a process of it may hang in the kernel, as on a dead network mount",
		c.id.Short(), m.o.KillTimeout)
}

// ReopenLog makes the container's log anew at its path, after somebody has
// renamed it. BadState unless the container runs.
func (m *Manager) ReopenLog(ctx context.Context, id string) error {
	c, err := m.findContainer(id)
	if err != nil {
		return err
	}
	if st := *c.state.Load(); st != ContainerRunning {
		return errkind.Errorf(errkind.BadState, "reopen log of container %s: it is %s, not running", c.id.Short(), st.public())
	}
	mon, err := m.reach(ctx)
	if err != nil {
		return err
	}
	return mon.ReopenLog(ctx, string(c.id))
}
