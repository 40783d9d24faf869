package sandbox

import (
	"context"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/atomicfile"
	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/monitor"
	"github.com/cridproject/crid/sandbox/config"
)

// Start lets a created container run; in any other state the error has kind
// BadState. When its program cannot be executed, the error says why, and the
// container has exited with reason StartError, code 128 and the same text.
//
// Starting goes on when ctx ends. With kind Unavailable, what became of it is
// seen in the container's status once the monitor is there again.
func (m *Manager) Start(ctx context.Context, id string) error {
	c, err := m.findContainer(id)
	if err != nil {
		return err
	}
	return m.outlive(containerContext(ctx, c), "start of container "+c.id.Short(), startLimit+m.o.KillTimeout, func(ctx context.Context) error {
		mon, unlock, err := m.lockContainer(ctx, c)
		if err != nil {
			return fmt.Errorf("start container %s: %w", c.id.Short(), err)
		}
		defer unlock()
		if err := m.start(ctx, c, mon); err != nil {
			return err
		}
		m.checkContainer(c)
		return nil
	})
}

// start is Start.
//
// Preconditions: the container's operation lock is held.
func (m *Manager) start(ctx context.Context, c *container, mon Monitor) error {
	if st := *c.sandbox.state.Load(); st != SandboxReady {
		return errkind.Errorf(errkind.BadState, "start container %s: its sandbox is %s", c.id.Short(), st)
	}
	if pidMode(&c.config, &c.sandbox.config) == config.NamespaceTarget {
		if _, err := m.pidTarget(c); err != nil {
			return err
		}
	}
	err := m.saveContainer(ctx, c, "container.start.record", func(r *containerRecord) error {
		if r.State.lives() && (c.asked || c.killed) {
			return errkind.Errorf(errkind.BadState, "start container %s: it is being stopped", c.id.Short())
		}
		r.StartedAt = m.o.Now()
		return r.on(containerStart)
	})
	if err == nil {
		began := time.Now()
		limited, cancel := context.WithTimeout(ctx, startLimit)
		err = mon.Start(limited, string(c.id))
		cancel()
		if errkind.Is(err, errkind.Unavailable) {
			// Nobody knows whether it runs. tend finds out.
			return fmt.Errorf("start container %s: %w", c.id.Short(), err)
		}
		if err == nil {
			err = m.step("container.start.monitor")
		}
		if err == nil {
			klog.FromContext(ctx).V(2).Info("Started container", "duration", time.Since(began))
		}
	}
	if *c.state.Load() != ContainerStarting {
		return err // it was not in the state for it
	}
	if err != nil {
		return m.startFailed(ctx, c, err)
	}
	c.mu.Lock()
	err = m.noteContainer(ctx, c, "container.start.running", func(r *containerRecord) error { return r.on(containerStarted) })
	c.mu.Unlock()
	m.tellEarly(c)
	return err
}

// startFailed turns a container that could not start into one that has exited.
// It returns why.
func (m *Manager) startFailed(ctx context.Context, c *container, why error) error {
	// Its first process is ending, unless the monitor did not answer in time.
	m.killRest(ctx, c)
	c.mu.Lock()
	err := m.noteContainer(ctx, c, "container.start.failed", func(r *containerRecord) error {
		r.startError(m.o.Now(), why.Error())
		return r.on(containerExit)
	})
	c.setHold(nil)
	c.mu.Unlock()
	if err != nil {
		klog.FromContext(ctx).Error(err, "Could not record that a container did not start")
	}
	m.tellEarly(c)
	return fmt.Errorf("start container %s: %w", c.id.Short(), why)
}

func (r *containerRecord) startError(at time.Time, message string) {
	r.FinishedAt = latest(at, r.StartedAt)
	r.ExitCode, r.Reason, r.Message = codeStartError, ReasonStartError, message
}

func latest(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// onExit is called by the monitor's connection and must not block.
func (m *Manager) onExit(e monitor.Exit) {
	m.spawn(func() {
		select {
		case <-m.loaded:
			m.exited(e)
		case <-m.base.Done(): // it stays in the monitor's journal
		}
	})
}

// exited makes the end of a container's first process known: what else runs in
// it dies, the record is written and published, then synced, then the
// monitor may forget. Being told twice is no harm.
func (m *Manager) exited(e monitor.Exit) {
	ctx, cancel := detach(m.base, exitLimit)
	defer cancel()
	m.mu.RLock()
	c := m.containers[config.ContainerID(e.ID)]
	s := m.sandboxes[config.SandboxID(e.ID)]
	m.mu.RUnlock()
	if c == nil {
		if s != nil {
			m.lost(ctx, s, "its PID namespace's init has ended")
		}
		m.ack(ctx, e.ID)
		return
	}
	ctx = containerContext(ctx, c)
	if !c.ownPIDs() && c.state.Load().lives() {
		m.killRest(ctx, c)
	}
	c.mu.Lock()
	switch c.rec.State {
	case ContainerCreating, ContainerStarting:
		c.early = &e
		c.mu.Unlock()
		return
	case ContainerRemoving:
		c.mu.Unlock()
		return // Delete takes it out of the journal
	case ContainerExited:
		c.mu.Unlock()
	default:
		err := m.noteContainer(ctx, c, "container.exit.record", func(r *containerRecord) error {
			r.exit(e, m.o.Now())
			return r.on(containerExit)
		})
		c.setHold(nil)
		r := c.rec
		c.mu.Unlock()
		if err != nil {
			klog.FromContext(ctx).Error(err, "Could not record an exit")
			return
		}
		klog.FromContext(ctx).V(2).Info("Container exited", "exitCode", r.ExitCode, "reason", r.Reason)
	}
	if err := m.syncExit(c); err != nil {
		klog.FromContext(ctx).Error(err, "Could not record an exit, the monitor keeps it")
		return
	}
	m.ack(ctx, e.ID)
	m.checkContainer(c)
}

// exit fills in how it ended.
func (r *containerRecord) exit(e monitor.Exit, now time.Time) {
	at := e.At
	if at.IsZero() {
		at = now
	}
	r.FinishedAt = latest(at, r.StartedAt)
	r.ExitCode, r.Message = e.Code, ""
	switch {
	case e.OOMKilled:
		r.Reason = ReasonOOMKilled
	case e.Lost && e.Code <= 0:
		r.ExitCode, r.Reason = codeUnknown, ReasonUnknown
		r.Message = "it ended while crid-monitor was not running, and its exit code is not known"
	case e.Code == 0:
		r.Reason = ReasonCompleted
	default:
		r.Reason = ReasonError
	}
}

// killRest kills what a container leaves behind in a PID namespace that is not its
// own, and waits until it is gone, so that a container that has exited runs nothing.
func (m *Manager) killRest(ctx context.Context, c *container) {
	ctx, cancel := context.WithTimeout(ctx, m.o.KillTimeout)
	defer cancel()
	mon, err := m.live()
	if err == nil {
		err = mon.Signal(ctx, monitor.SignalRequest{ID: string(c.id), Signal: sigKill, All: true, Wait: true})
	}
	if err != nil {
		klog.FromContext(ctx).Info("Could not kill what an exited container left, its removal will", "err", err)
	}
}

// syncExit writes the record of an exit so that it survives a power cut.
func (m *Manager) syncExit(c *container) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.synced || c.rec.State != ContainerExited {
		return nil // being removed: then the journal's entry goes with it
	}
	if err := m.store.put(containerKind, string(c.id), &c.rec, atomicfile.SyncFile); err != nil {
		return err
	}
	c.synced = true
	return m.step("container.exit.synced")
}

// ack lets the monitor forget an exit. When that fails, it tells it again.
func (m *Manager) ack(ctx context.Context, id string) {
	mon, err := m.live()
	if err == nil {
		err = mon.Ack(ctx, id)
	}
	if err == nil {
		err = m.step("container.exit.ack")
	}
	if err != nil {
		klog.FromContext(ctx).V(4).Info("Could not acknowledge an exit", "err", err)
	}
}

// tellEarly applies an exit that came before the answer to Create or Start.
func (m *Manager) tellEarly(c *container) {
	c.mu.Lock()
	e := c.early
	c.early = nil
	c.mu.Unlock()
	if e != nil {
		m.exited(*e)
	}
}

// lost marks a ready sandbox as one that cannot be used any more. kubelet will
// stop it and make another.
func (m *Manager) lost(ctx context.Context, s *sandbox, why string) {
	if *s.state.Load() != SandboxReady {
		return
	}
	err := m.noteSandbox(ctx, s, "sandbox.lost.record", func(r *sandboxRecord) error { return r.on(sandboxLost) })
	klog.FromContext(ctx).Error(err, "Sandbox cannot be used any more", "sandbox", s.id, "pod", podRef(&s.config), "reason", why)
}
