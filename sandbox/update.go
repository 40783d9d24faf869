package sandbox

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/monitor"
	"github.com/cridproject/crid/sandbox/config"
	"github.com/cridproject/crid/sandbox/spec"
)

// UpdateContainer changes the resources of a created or running container; what
// change leaves zero stays as it is, and -1 lifts a limit. Then its status has what
// the kernel has made of it. Asking for the same again does no harm.
//
// The kind is BadState when the container has exited, or uses more memory than it
// is to have, and Invalid when this node does not have what is asked for; field
// names in errors begin with "linux.". After an error the container has what it
// had. With kind Unavailable it gets the new resources, or keeps those it had,
// once the monitor is there again.
//
// An oom_score_adj becomes that of the container's processes which have not chosen
// their own. It is raised to the lowest that this node allows crid to set.
func (m *Manager) UpdateContainer(ctx context.Context, id string, change config.Resources) error {
	c, err := m.findContainer(id)
	if err != nil {
		return err
	}
	return m.outlive(containerContext(ctx, c), "update of container "+c.id.Short(), startLimit, func(ctx context.Context) error {
		mon, unlock, err := m.lockContainer(ctx, c)
		if err != nil {
			return fmt.Errorf("update container %s: %w", c.id.Short(), err)
		}
		defer unlock()
		if err := m.updateContainer(ctx, c, mon, change); err != nil {
			return fmt.Errorf("update container %s: %w", c.id.Short(), err)
		}
		m.checkContainer(c)
		return nil
	})
}

// updateContainer writes down what the resources are to be, and then carries it out.
//
// Preconditions: the container's operation lock is held.
func (m *Manager) updateContainer(ctx context.Context, c *container, mon Monitor, change config.Resources) error {
	// One that was interrupted goes first. The kernel may have it, and if this one is
	// refused, nothing else would tell.
	if err := m.finishUpdate(ctx, c, mon); err != nil {
		if c.record().Update != nil {
			return err
		}
		klog.FromContext(ctx).Error(err, "Could not finish a change of resources that was interrupted")
	}
	err := m.saveContainer(ctx, c, "container.update.record", func(r *containerRecord) error {
		if st := r.State; st != ContainerCreated && st != ContainerRunning {
			return errkind.Errorf(errkind.BadState, "it is %s; only what is created or running has resources", st.public())
		}
		wanted := r.Resources.Merge(change)
		if _, err := spec.Resources("linux.", wanted, m.o.Host); err != nil {
			return err
		}
		r.Update = &wanted
		return nil
	})
	if err != nil {
		return err
	}
	return m.finishUpdate(ctx, c, mon)
}

// finishUpdate carries out what the record says is being changed, if anything: in
// an update, and after one that was interrupted, when nobody knows what the kernel
// has.
//
// Preconditions: the container's operation lock is held.
func (m *Manager) finishUpdate(ctx context.Context, c *container, mon Monitor) error {
	r := c.record()
	if r.Update == nil || !r.State.lives() {
		return nil
	}
	applied, err := m.apply(ctx, c, mon, *r.Update, r.Resources)
	if errkind.Is(err, errkind.Unavailable) || ctx.Err() != nil {
		return err // nobody knows what became of it: the next to come finds out
	}
	if err == nil {
		if err := m.step("container.update.monitor"); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	noted := m.noteContainer(ctx, c, "container.update.done", func(r *containerRecord) error {
		if err == nil {
			r.Resources, r.Actual = *r.Update, applied
		}
		r.Update = nil
		return nil
	})
	if err == nil {
		klog.FromContext(ctx).V(2).Info("Changed resources of container")
		err = noted
	}
	return err
}

// apply has the monitor change the resources of a container from was to wanted, and
// returns what the kernel has then.
func (m *Manager) apply(ctx context.Context, c *container, mon Monitor, wanted, was config.Resources) (config.Resources, error) {
	res, err := spec.Resources("linux.", wanted, m.o.Host)
	if err != nil {
		return config.Resources{}, err
	}
	data, err := json.Marshal(res)
	if err != nil {
		return config.Resources{}, fmt.Errorf("encode resources: %w", err)
	}
	request := monitor.UpdateRequest{ID: string(c.id), Resources: data}
	if wanted.OOMScoreAdj != was.OOMScoreAdj {
		score := max(int(wanted.OOMScoreAdj), m.o.Host.MinOOMScoreAdj)
		request.OOMScoreAdj = &score
	}
	reply, err := mon.Update(ctx, request)
	m.recent.forget()
	if err != nil {
		return config.Resources{}, err
	}
	if reply.Applied.OOMScoreAdj == nil {
		wanted.OOMScoreAdj = c.record().Actual.OOMScoreAdj
	}
	return actual(ctx, wanted, reply.Applied), nil
}

// actual is wanted with what the kernel has in place of what it was to have.
func actual(ctx context.Context, wanted config.Resources, a monitor.Applied) config.Resources {
	var got specs.LinuxResources
	if len(a.Resources) > 0 {
		if err := json.Unmarshal(a.Resources, &got); err != nil {
			klog.FromContext(ctx).Error(err, "Could not read what the monitor says of a container's resources")
		}
	}
	return spec.Actual(wanted, &got, a.OOMScoreAdj)
}

// UpdateSandbox notes new overhead and resources of a sandbox; nil leaves one as it
// is. kubelet, which owns the pod's cgroup, carries them out: it asks here first,
// and again to take it back, and an error would stop it. So this fails only when
// there is no such sandbox.
func (m *Manager) UpdateSandbox(ctx context.Context, id string, overhead, resources *config.Resources) error {
	s, err := m.findSandbox(id)
	if err != nil {
		return err
	}
	if s.status.Load() == nil {
		return notFound("sandbox", id)
	}
	return m.noteSandbox(ctx, s, "sandbox.update.record", func(r *sandboxRecord) error {
		if overhead != nil {
			r.Overhead = overhead
		}
		if resources != nil {
			r.Resources = resources
		}
		return nil
	})
}
