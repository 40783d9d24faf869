package sandbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/monitor"
)

// errStopped ends an attempt to make something that is to go.
var errStopped = errkind.Errorf(errkind.BadState, "it was stopped while it was being made")

// StopSandbox kills the sandbox's containers, takes it off the network and lets
// its namespaces go. The sandbox stays, not ready, with its config.
//
// Stopping one that is stopped or was never there does nothing; one that is still
// being made is removed. After an error it may be called again. Stopping goes on
// when ctx ends.
func (m *Manager) StopSandbox(ctx context.Context, id string) error {
	return m.downSandbox(ctx, id, func(ctx context.Context, s *sandbox) error {
		if st := *s.state.Load(); st == SandboxCreating || st == SandboxRemoving {
			return m.tearDown(ctx, s)
		}
		return m.quiesce(ctx, s)
	})
}

// RemoveSandbox stops the sandbox and removes it with its containers. Removing
// what was never there does nothing. After an error it may be called again.
// Removing goes on when ctx ends.
func (m *Manager) RemoveSandbox(ctx context.Context, id string) error {
	return m.downSandbox(ctx, id, m.tearDown)
}

func (m *Manager) downSandbox(ctx context.Context, id string, work func(context.Context, *sandbox) error) error {
	s, err := m.findSandbox(id)
	if errkind.Is(err, errkind.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	s.cancel(errStopped)
	unlock, err := m.sandboxOps.Lock(ctx, s.id)
	if err != nil {
		return err
	}
	log := klog.LoggerWithValues(klog.FromContext(ctx), "sandbox", s.id, "pod", podRef(&s.config))
	err = m.outlive(klog.NewContext(ctx, log), "taking down of sandbox "+s.id.Short(), downLimit, func(ctx context.Context) error {
		defer unlock()
		if err := work(ctx, s); err != nil {
			m.later() // the client may not ask again
			return fmt.Errorf("take down sandbox %s: %w", s.id.Short(), err)
		}
		m.check(s)
		return nil
	})
	if errors.Is(err, errClosed) {
		unlock()
	}
	return err
}

// quiesce is what stopping a sandbox is.
//
// Preconditions: the sandbox's operation lock is held.
func (m *Manager) quiesce(ctx context.Context, s *sandbox) error {
	if s.record().Released || s.isGone() {
		return nil
	}
	began := time.Now()
	err := m.noteSandbox(ctx, s, "sandbox.stop.record", func(r *sandboxRecord) error { return r.on(sandboxStop) })
	if err != nil {
		return err
	}
	if err := m.release(ctx, s); err != nil {
		return err
	}
	klog.FromContext(ctx).V(2).Info("Stopped sandbox", "duration", time.Since(began))
	return m.noteSandbox(ctx, s, "sandbox.stop.done", func(r *sandboxRecord) error {
		r.Released, r.IPs = true, nil
		return r.on(sandboxStopped)
	})
}

// tearDown is the one way down: Run that failed, Remove and recovery all call it.
// It does not matter how much of the sandbox there is, and it may be called
// again after an error or a crash. The record goes last.
//
// Preconditions: the sandbox's operation lock is held.
func (m *Manager) tearDown(ctx context.Context, s *sandbox) error {
	if s.isGone() {
		return nil
	}
	began := time.Now()
	err := m.noteSandbox(ctx, s, "sandbox.remove.intent", func(r *sandboxRecord) error { return r.on(sandboxRemove) })
	if err != nil {
		return err
	}
	if !s.record().Released {
		if err := m.release(ctx, s); err != nil {
			return err
		}
	}
	err = each(m.containersOf(s), func(c *container) error { return m.removeContainer(ctx, c) })
	if err != nil {
		return err
	}
	if err := m.removeFiles(s); err != nil {
		return err
	}
	if err := m.step("sandbox.remove.record"); err != nil {
		return err
	}
	if err := m.deleteSandbox(s); err != nil {
		return err
	}
	klog.FromContext(ctx).V(2).Info("Removed sandbox", "duration", time.Since(began))
	return m.step("sandbox.remove.done")
}

// release ends everything that lives in a sandbox: its containers first, then
// the network, which plugins undo inside the namespace if they can, then
// the namespaces. Idempotent.
func (m *Manager) release(ctx context.Context, s *sandbox) error {
	err := each(m.containersOf(s), func(c *container) error { return m.end(ctx, c) })
	if err != nil {
		return err
	}
	err = parallel(ctx,
		func(context.Context) error { return m.detachNetwork(ctx, s) },
		func(context.Context) error { return m.releasePIDs(ctx, s) })
	if err != nil {
		return err
	}
	return m.removeParts(s)
}

// end kills a container, or the attempt to make it.
func (m *Manager) end(ctx context.Context, c *container) error {
	c.cancel(errStopped)
	select {
	case <-c.done:
	case <-ctx.Done():
		return fmt.Errorf("wait for the making of container %s to end: %w", c.id.Short(), context.Cause(ctx))
	}
	if !c.state.Load().lives() {
		return nil
	}
	return m.kill(ctx, c, m.reach)
}

// detachNetwork takes the sandbox off the network if it may be on it.
func (m *Manager) detachNetwork(ctx context.Context, s *sandbox) error {
	a := s.record().Attachment
	if a == nil {
		return nil
	}
	if err := m.step("sandbox.down.network"); err != nil {
		return err
	}
	if err := m.o.Network.Detach(ctx, *a); err != nil {
		return err
	}
	return m.noteSandbox(ctx, s, "sandbox.down.detached", func(r *sandboxRecord) error {
		r.Attachment, r.CNIResult = nil, nil
		return nil
	})
}

// releasePIDs ends the holder of the sandbox's PID namespace and all that is in it.
func (m *Manager) releasePIDs(ctx context.Context, s *sandbox) error {
	holder := s.record().Holder
	if holder == nil {
		return nil
	}
	mon, err := m.reach(ctx)
	if err != nil {
		return err
	}
	if err := m.step("sandbox.down.hold"); err != nil {
		return err
	}
	err = mon.Release(ctx, monitor.ReleaseRequest{ID: string(s.id), CgroupsPath: holder.CgroupsPath, SystemdCgroup: m.o.SystemdCgroup})
	if err != nil {
		return fmt.Errorf("end PID namespace: %w", err)
	}
	s.setHolder(nil)
	return m.noteSandbox(ctx, s, "sandbox.down.released", func(r *sandboxRecord) error {
		r.Holder = nil
		return nil
	})
}

func (s *sandbox) isGone() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gone
}

// deleteSandbox deletes the record, and with it the sandbox: its ID and its key
// are free again.
func (m *Manager) deleteSandbox(s *sandbox) error {
	remove := m.store.delete
	if s.corrupt {
		remove = m.store.quarantine
	}
	s.mu.Lock()
	err := remove(sandboxKind, string(s.id))
	if err == nil {
		m.tellEnd(s)
		s.gone = true
		s.publish()
		m.tellSandbox(s)
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	s.setHolder(nil)
	m.forgetSandbox(s)
	return nil
}

func (m *Manager) forgetSandbox(s *sandbox) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.sandboxes, s.id)
	if key := s.config.Key(); m.sandboxKey[key] == s {
		delete(m.sandboxKey, key)
	}
}

// Remove removes a container, after killing it if it lives. Its log file stays.
// Removing what was never there does nothing. After an error it may be
// called again. Removing goes on when ctx ends.
func (m *Manager) Remove(ctx context.Context, id string) error {
	c, err := m.findContainer(id)
	if errkind.Is(err, errkind.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return m.outlive(containerContext(ctx, c), "removing of container "+c.id.Short(), downLimit, func(ctx context.Context) error {
		err := m.removeContainer(ctx, c)
		if err != nil {
			m.later() // the client may not ask again
		}
		return err
	})
}

// removeContainer is tearDownContainer, with what goes before.
func (m *Manager) removeContainer(ctx context.Context, c *container) error {
	c.cancel(errStopped)
	mon, unlock, err := m.lockContainer(ctx, c)
	if err == nil {
		defer unlock()
		err = m.tearDownContainer(ctx, c, func(context.Context) (Monitor, error) { return mon, nil })
	}
	if err != nil {
		return fmt.Errorf("remove container %s: %w", c.id.Short(), err)
	}
	return nil
}

// tearDownContainer is the one way down for containers: Create that failed,
// Remove, the sandbox's removal and recovery all call it. Idempotent; the record
// goes last.
//
// Preconditions: the container's operation lock is held. find does not wait for
// the monitor, unless the container is still being made: see lockContainer.
func (m *Manager) tearDownContainer(ctx context.Context, c *container, find func(context.Context) (Monitor, error)) error {
	if c.isGone() {
		return nil
	}
	began := time.Now()
	if c.state.Load().lives() {
		// By its exit, so that there is an exit to be seen.
		if err := m.kill(ctx, c, find); err != nil {
			return err
		}
	}
	c.mu.Lock()
	err := m.noteContainer(ctx, c, "container.remove.intent", func(r *containerRecord) error { return r.on(containerRemove) })
	cgroup := c.rec.CgroupsPath
	c.mu.Unlock()
	if err != nil {
		return err
	}
	mon, err := find(ctx)
	if err != nil {
		return err
	}
	err = mon.Delete(ctx, monitor.DeleteRequest{ID: string(c.id), CgroupsPath: cgroup, SystemdCgroup: m.o.SystemdCgroup})
	if err != nil {
		return err
	}
	c.dropHold(nil)
	if err := m.step("container.remove.monitor"); err != nil {
		return err
	}
	for _, key := range m.imageKeys(c) {
		if err := m.o.Images.Release(ctx, key); err != nil {
			return err
		}
	}
	if err := m.step("container.remove.rootfs"); err != nil {
		return err
	}
	if err := m.deleteContainer(c); err != nil {
		return err
	}
	klog.FromContext(ctx).V(2).Info("Removed container", "container", c.id, "duration", time.Since(began))
	return m.step("container.remove.record")
}

func (c *container) isGone() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gone
}

// deleteContainer deletes the record, and with it the container: its ID and its
// key are free again.
func (m *Manager) deleteContainer(c *container) error {
	remove := m.store.delete
	if c.corrupt {
		remove = m.store.quarantine
	}
	if err := m.store.deleteSpec(string(c.id)); err != nil {
		return err
	}
	c.mu.Lock()
	err := remove(containerKind, string(c.id))
	if err == nil {
		c.gone = true
		c.setHold(nil)
		c.publish()
		m.tellContainer(c)
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	m.forgetContainer(c)
	return nil
}

func (m *Manager) forgetContainer(c *container) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.containers, c.id)
	if key := c.config.Key(c.sandbox.id); m.contKey[key] == c {
		delete(m.contKey, key)
	}
}

// each runs f for all items at once and returns all errors.
func each[T any](items []T, f func(T) error) error {
	var wg sync.WaitGroup
	errs := make([]error, len(items))
	for i, item := range items {
		wg.Go(func() { errs[i] = f(item) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// containerContext gives ctx's logger the names of a container.
func containerContext(ctx context.Context, c *container) context.Context {
	log := klog.FromContext(ctx).WithValues("container", c.id, "sandbox", c.sandbox.id, "pod", podRef(&c.sandbox.config))
	return klog.NewContext(ctx, log)
}
