package sandbox

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/cridproject/crid/cni"
	"github.com/cridproject/crid/image"
	"github.com/cridproject/crid/monitor"
	"github.com/cridproject/crid/sandbox/config"
)

// recover makes the manager know what there is: records, compared with what the
// monitor has. What it finds half done it finishes, behind itself if that takes
// longer than Options.RecoverTimeout.
func (m *Manager) recover(ctx context.Context) error {
	began := time.Now()
	log := klog.FromContext(ctx)
	if err := m.load(ctx); err != nil {
		return err
	}
	m.rememberEnds()
	mon, items, err := m.connect(ctx)
	if err != nil {
		return fmt.Errorf("connect to crid-monitor: %w", err)
	}
	strangers := m.strangers(items)
	exits := m.reconcile(ctx, mon, items)
	m.setMonitor(&connection{mon})
	close(m.loaded)
	for _, e := range exits {
		m.exited(e)
	}
	// Listed now, because from now on there will be new ones.
	rootfs, folders, err := m.leftovers()
	if err != nil {
		return err
	}
	done := make(chan struct{})
	m.spawn(func() {
		defer close(done)
		ctx := klog.NewContext(m.base, log)
		// Side by side: a plugin that hangs for one sandbox must not keep others
		// from the network, which waits for collect.
		_ = parallel(ctx,
			func(ctx context.Context) error { m.collect(ctx); return nil },
			func(ctx context.Context) error {
				m.removeStrangers(ctx, strangers)
				m.sweep(ctx)
				m.removeLeftovers(ctx, rootfs, folders)
				return nil
			})
	})
	t := time.NewTimer(m.o.RecoverTimeout)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
		log.Info("Cleaning up after the restart takes long, goes on in the background")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	log.Info("Recovered", "sandboxes", len(m.allSandboxes()), "containers", len(m.allContainers()), "duration", time.Since(began))
	return nil
}

// load reads the records. What cannot be read is taken for something that is
// being removed, and all that its ID names goes.
func (m *Manager) load(ctx context.Context) error {
	log := klog.FromContext(ctx)
	sandboxes, err := load[sandboxRecord](&m.store, sandboxKind)
	if err != nil {
		return err
	}
	containers, err := load[containerRecord](&m.store, containerKind)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range sandboxes {
		if l.err != nil {
			log.Error(l.err, "Could not read the record of a sandbox: it is put aside, and the sandbox removed", "sandbox", l.id)
			l.record = m.guessSandbox(config.SandboxID(l.id))
		}
		s := newSandbox(l.record, finished())
		s.corrupt = l.err != nil
		m.sandboxes[s.id] = s
		if key := s.config.Key(); !s.corrupt && (m.sandboxKey[key] == nil || s.rec.State != SandboxRemoving) {
			m.sandboxKey[key] = s
		}
	}
	for _, l := range containers {
		s := m.sandboxes[l.record.Sandbox]
		if l.err != nil {
			log.Error(l.err, "Could not read the record of a container: it is put aside, and the container removed", "container", l.id)
			l.record = containerRecord{ID: config.ContainerID(l.id), State: ContainerRemoving, CgroupsPath: m.cgroupsPath(&config.Sandbox{}, l.id)}
			s = nil
		}
		if s == nil {
			// Its sandbox is not there, so it has no business to be either.
			s = newSandbox(sandboxRecord{ID: l.record.Sandbox, State: SandboxRemoving}, finished())
			l.record.State = ContainerRemoving
		}
		c := newContainer(l.record, s, finished())
		c.corrupt = l.err != nil
		m.containers[c.id] = c
		if !c.corrupt {
			m.contKey[c.config.Key(s.id)] = c
		}
	}
	return nil
}

// guessSandbox is a record of all that a sandbox may have, from its ID alone.
func (m *Manager) guessSandbox(id config.SandboxID) sandboxRecord {
	r := sandboxRecord{
		ID: id, State: SandboxRemoving, NetNS: m.netNS(id),
		Holder: &holderRecord{CgroupsPath: m.cgroupsPath(&config.Sandbox{}, "hold-"+string(id))},
	}
	// With the network of today, which is most likely that of then.
	if a, err := m.o.Network.Plan(cni.Attachment{ID: string(id), NetNS: r.NetNS}); err == nil {
		r.Attachment = &a
	}
	return r
}

// connect connects to the monitor and asks what it has. The holds in the answer
// are the caller's.
func (m *Manager) connect(ctx context.Context) (Monitor, []monitor.Listed, error) {
	mon, err := m.o.ConnectMonitor(ctx, m.onExit)
	if err != nil {
		return nil, nil, err
	}
	items, err := mon.List(ctx)
	if err != nil {
		mon.Close()
		return nil, nil, err
	}
	return mon, items, nil
}

// strangers is what the monitor has and no record knows.
func (m *Manager) strangers(items []monitor.Listed) []monitor.ListItem {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var found []monitor.ListItem
	for _, item := range items {
		known := m.containers[config.ContainerID(item.ID)] != nil
		if item.Holder {
			s := m.sandboxes[config.SandboxID(item.ID)]
			known = s != nil && s.record().Holder != nil
		}
		if !known {
			found = append(found, item.ListItem)
		}
	}
	return found
}

func (m *Manager) removeStrangers(ctx context.Context, items []monitor.ListItem) {
	_ = each(items, func(item monitor.ListItem) error {
		klog.FromContext(ctx).Info("Removing what the monitor has and no record knows", "id", item.ID, "holder", item.Holder, "pid", item.PID)
		mon, err := m.live()
		switch {
		case err != nil:
		case item.Holder:
			cgroup := m.cgroupsPath(&config.Sandbox{}, "hold-"+item.ID)
			err = mon.Release(ctx, monitor.ReleaseRequest{ID: item.ID, CgroupsPath: cgroup, SystemdCgroup: m.o.SystemdCgroup})
		default:
			cgroup := m.cgroupsPath(&config.Sandbox{}, item.ID)
			err = mon.Delete(ctx, monitor.DeleteRequest{ID: item.ID, CgroupsPath: cgroup, SystemdCgroup: m.o.SystemdCgroup})
		}
		if err != nil {
			klog.FromContext(ctx).Error(err, "Could not remove it, will try again at the next start", "id", item.ID)
		}
		return nil
	})
}

// sweep finishes what is half done and that nobody works on: attempts that
// a crash has ended, stops and removals that a crash or an error has ended.
func (m *Manager) sweep(ctx context.Context) {
	log := klog.FromContext(ctx)
	_ = each(m.allSandboxes(), func(s *sandbox) error {
		if !s.over() {
			return nil
		}
		var err error
		switch st := *s.state.Load(); {
		case st == SandboxCreating, st == SandboxRemoving:
			err = m.RemoveSandbox(ctx, string(s.id))
		case st == SandboxStopping, st == SandboxNotReady && !s.record().Released:
			err = m.StopSandbox(ctx, string(s.id))
		}
		if err != nil {
			log.Error(err, "Could not take down what is left of a sandbox, will try again", "sandbox", s.id)
			m.later()
		}
		return nil
	})
	_ = each(m.allContainers(), func(c *container) error {
		if st := *c.state.Load(); !c.over() || st != ContainerCreating && st != ContainerRemoving {
			return nil
		}
		if err := m.Remove(ctx, string(c.id)); err != nil {
			log.Error(err, "Could not take down what is left of a container, will try again", "container", c.id)
			m.later()
		}
		return nil
	})
}

// leftovers is root file systems and folders of sandboxes without a record: a
// disk that was full or a record that was deleted by hand.
func (m *Manager) leftovers() (rootfs []string, folders []*sandbox, err error) {
	entries, err := os.ReadDir(filepath.Join(m.o.StateDir, "sandboxes"))
	if err != nil {
		return nil, nil, fmt.Errorf("look for folders of sandboxes: %w", err)
	}
	keys := m.o.Images.Prepared()
	m.mu.RLock()
	defer m.mu.RUnlock()
	rootfs = slices.DeleteFunc(slices.Clone(keys), func(key string) bool { return m.containers[config.ContainerID(image.VolumeOwner(key))] != nil })
	for _, e := range entries {
		if id := config.SandboxID(e.Name()); m.sandboxes[id] == nil {
			folders = append(folders, newSandbox(sandboxRecord{ID: id, State: SandboxRemoving}, finished()))
		}
	}
	return rootfs, folders, nil
}

func (m *Manager) removeLeftovers(ctx context.Context, rootfs []string, folders []*sandbox) {
	log := klog.FromContext(ctx)
	for _, key := range rootfs {
		log.Info("Removing a root file system that no record knows", "container", key)
		if err := m.o.Images.Release(ctx, key); err != nil {
			log.Error(err, "Could not remove it, will try again at the next start", "container", key)
		}
	}
	for _, s := range folders {
		log.Info("Removing a sandbox's folder that no record knows", "sandbox", s.id)
		err := m.removeParts(s)
		if err == nil {
			err = m.removeFiles(s)
		}
		if err != nil {
			log.Error(err, "Could not remove it, will try again at the next start", "sandbox", s.id)
		}
	}
}

// collect has the network release what is of no sandbox, and then lets new
// sandboxes attach.
func (m *Manager) collect(ctx context.Context) {
	defer close(m.collected)
	ctx, cancel := context.WithTimeout(ctx, gcLimit)
	defer cancel()
	var live []cni.Attachment
	for _, s := range m.allSandboxes() {
		if a := s.record().Attachment; a != nil {
			live = append(live, *a)
		}
	}
	if err := m.o.Network.GC(ctx, live); err != nil {
		klog.FromContext(ctx).Error(err, "Could not collect what is left of old network attachments, will try again at the next start")
	}
}
