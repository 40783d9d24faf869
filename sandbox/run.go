package sandbox

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/cridproject/crid/cni"
	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/monitor"
	"github.com/cridproject/crid/sandbox/config"
)

// Run makes a sandbox as wanted and returns when it is ready.
//
// A second Run with the same key (name, namespace, uid, attempt) and an equal
// config is a retry: it waits for the first and returns the same ID. With
// another config, or when the sandbox has been stopped, the error has kind
// Exists and names the sandbox. The key is free again after RemoveSandbox. The kind
// is Exists, too, when another sandbox has a host port that w maps.
//
// Making goes on when ctx ends. When it fails, nothing is left behind; what
// cannot be undone at once stays on record, as a sandbox that is not ready, and
// is tried again.
func (m *Manager) Run(ctx context.Context, w config.Sandbox) (config.SandboxID, error) {
	if err := m.checkSandbox(&w); err != nil {
		return "", err
	}
	for {
		s, begin, err := m.admitSandbox(ctx, w)
		if err != nil {
			return "", err
		}
		if begin != nil && !m.spawn(begin) {
			m.forgetSandbox(s)
			return "", errClosed
		}
		if !s.over() || begin != nil {
			if err := s.wait(ctx, "making of sandbox "+s.id.Short()); err != nil {
				return "", err
			}
		}
		switch *s.state.Load() {
		case SandboxReady:
			return s.id, nil
		case SandboxCreating, SandboxRemoving:
			// What is left of an attempt that failed, or a removal under way.
			if err := m.RemoveSandbox(ctx, string(s.id)); err != nil {
				return "", fmt.Errorf("remove what an earlier attempt has left: %w", err)
			}
		default:
			if begin != nil {
				return s.id, nil // ready, and stopped since
			}
			return "", errkind.Errorf(errkind.Exists, "sandbox %s of this name, namespace, uid and attempt exists and is stopped; remove it first", s.id)
		}
	}
}

// admitSandbox finds the sandbox of w's key, or makes its place: then begin is
// the work to do.
func (m *Manager) admitSandbox(ctx context.Context, w config.Sandbox) (s *sandbox, begin func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.sandboxKey[w.Key()]; s != nil {
		if *s.state.Load() != SandboxRemoving && !reflect.DeepEqual(s.config, w) {
			return nil, nil, errkind.Errorf(errkind.Exists, "sandbox %s has this name, namespace, uid and attempt, and another config; remove it, or raise the attempt", s.id)
		}
		return s, nil, nil
	}
	if err := m.checkPorts(&w); err != nil {
		return nil, nil, err
	}
	id := config.SandboxID(newID())
	rec := sandboxRecord{Version: recordVersion, ID: id, BootID: m.bootID, State: SandboxCreating, Config: w}
	if !w.HostNetwork() {
		rec.NetNS = m.netNS(id)
	}
	if w.Namespaces.PID == config.NamespacePod {
		rec.Holder = &holderRecord{CgroupsPath: m.cgroupsPath(&w, "hold-"+string(id))}
	}
	work, cancelTime := detach(ctx, createLimit)
	work, cancel := context.WithCancelCause(work)
	s = newSandbox(rec, newAttempt(cancel))
	m.sandboxes[id], m.sandboxKey[w.Key()] = s, s
	// Nobody knows the ID yet, so the lock is free.
	unlock, err := m.sandboxOps.Lock(ctx, id)
	if err != nil {
		panic("sandbox: the lock of a new sandbox is taken: " + err.Error())
	}
	return s, func() {
		defer cancelTime()
		defer cancel(nil)
		defer s.end()
		defer unlock()
		s.err = m.run(work, s)
	}, nil
}

// run makes s, or tears it down.
//
// Preconditions: the sandbox's operation lock is held.
func (m *Manager) run(ctx context.Context, s *sandbox) error {
	began := time.Now()
	log := klog.LoggerWithValues(klog.FromContext(ctx), "sandbox", s.id, "pod", podRef(&s.config))
	ctx = klog.NewContext(ctx, log)
	err := m.bringUp(ctx, s)
	if err == nil {
		log.V(2).Info("Made sandbox", "duration", time.Since(began), "ips", s.record().IPs)
		m.check(s)
		return nil
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	err = fmt.Errorf("make sandbox %s: %w", s.id.Short(), err)
	down, cancel := detach(ctx, downLimit)
	defer cancel()
	if downErr := m.tearDown(down, s); downErr != nil {
		log.Error(downErr, "Could not undo a sandbox that could not be made, will try again")
		m.expose(down, s)
		m.later()
	}
	return err
}

// expose lets clients see what is left of a sandbox, as not ready: kubelet then
// removes it, should crid's own tries not succeed.
func (m *Manager) expose(ctx context.Context, s *sandbox) {
	s.mu.Lock()
	gone := s.gone
	s.mu.Unlock()
	if gone {
		return
	}
	at := m.createdAt(&s.config)
	err := m.noteSandbox(ctx, s, "sandbox.run.failed", func(r *sandboxRecord) error {
		if r.CreatedAt.IsZero() {
			r.CreatedAt = at
		}
		return nil
	})
	if err != nil {
		klog.FromContext(ctx).Error(err, "Could not record a failed sandbox")
	}
}

// bringUp makes the parts of a sandbox. The parts do not need each other, but
// the network its namespace and a PID namespace the user namespace, so they are made side by side.
func (m *Manager) bringUp(ctx context.Context, s *sandbox) error {
	if err := m.saveSandbox(ctx, s, "sandbox.run.record", func(*sandboxRecord) error { return nil }); err != nil {
		return err
	}
	pinned := make(chan struct{})
	err := parallel(ctx,
		func(ctx context.Context) error { return m.makeFiles(ctx, s) },
		func(ctx context.Context) error {
			if err := m.makeNamespaces(ctx, s); err != nil {
				return err
			}
			close(pinned)
			return m.attach(ctx, s)
		},
		func(ctx context.Context) error {
			if s.config.Namespaces.UserMap != nil { // which owns the PID namespace
				select {
				case <-pinned:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
			return m.holdPIDs(ctx, s)
		},
	)
	if err != nil {
		return err
	}
	at := m.createdAt(&s.config)
	return m.saveSandbox(ctx, s, "sandbox.run.ready", func(r *sandboxRecord) error {
		if err := context.Cause(ctx); err != nil {
			return err // it was stopped meanwhile
		}
		r.CreatedAt = at
		return r.on(sandboxMade)
	})
}

// attach connects the sandbox to the network: on record before ADD, so that DEL
// gets it whatever happens.
func (m *Manager) attach(ctx context.Context, s *sandbox) error {
	if s.config.HostNetwork() {
		return nil
	}
	select {
	case <-m.collected: // a collection would take what it does not know
	case <-ctx.Done():
		return fmt.Errorf("wait for the network's cleaning up after the restart: %w", context.Cause(ctx))
	}
	a, err := m.attachment(s)
	if err != nil {
		return err
	}
	err = m.saveSandbox(ctx, s, "sandbox.run.attachment", func(r *sandboxRecord) error {
		r.Attachment = &a
		return nil
	})
	if err != nil {
		return err
	}
	result, err := m.o.Network.Attach(ctx, a)
	if err != nil {
		return err
	}
	if err := m.step("sandbox.run.network"); err != nil {
		return err
	}
	return m.saveSandbox(ctx, s, "sandbox.run.addresses", func(r *sandboxRecord) error {
		r.IPs, r.CNIResult = result.IPs, result.Raw
		return nil
	})
}

// attachment is what the network plugins are told of a sandbox.
func (m *Manager) attachment(s *sandbox) (cni.Attachment, error) {
	w := &s.config
	a := cni.Attachment{
		ID: string(s.id), NetNS: m.netNS(s.id),
		Name: w.Name, Namespace: w.Namespace, UID: w.UID,
		CgroupPath: w.CgroupParent, Annotations: w.Annotations,
	}
	var err error
	if a.IngressBits, err = bandwidth(w, cni.IngressAnnotation); err != nil {
		return a, err
	}
	if a.EgressBits, err = bandwidth(w, cni.EgressAnnotation); err != nil {
		return a, err
	}
	for _, p := range w.PortMappings {
		if p.HostPort != 0 {
			a.Ports = append(a.Ports, cni.Port{Protocol: p.Protocol, Container: p.ContainerPort, Host: p.HostPort, HostIP: p.HostIP})
		}
	}
	if d := w.DNS; d != nil {
		a.DNS = &cni.DNS{Servers: d.Servers, Searches: d.Searches, Options: d.Options}
	}
	return m.o.Network.Plan(a)
}

func bandwidth(w *config.Sandbox, annotation string) (uint64, error) {
	bits, err := cni.ParseBandwidth(w.Annotations[annotation])
	if err != nil {
		return 0, errkind.Errorf(errkind.Invalid, "config.annotations[%q]: %w", annotation, err)
	}
	return bits, nil
}

// holdPIDs starts the init of a PID namespace that the pod's containers share.
func (m *Manager) holdPIDs(ctx context.Context, s *sandbox) error {
	holder := s.record().Holder
	if holder == nil {
		return nil
	}
	mon, err := m.reach(ctx)
	if err != nil {
		return err
	}
	r := monitor.HoldRequest{ID: string(s.id), CgroupsPath: holder.CgroupsPath, SystemdCgroup: m.o.SystemdCgroup}
	if s.config.Namespaces.UserMap != nil {
		r.UserNS = m.sandboxFile(s.id, fileUser)
	}
	reply, pidfd, err := mon.Hold(ctx, r)
	if err != nil {
		return fmt.Errorf("make PID namespace: %w", err)
	}
	s.setHolder(pidfd)
	if err := m.step("sandbox.run.hold"); err != nil {
		return err
	}
	return m.saveSandbox(ctx, s, "sandbox.run.holder", func(r *sandboxRecord) error {
		r.Holder = &holderRecord{CgroupsPath: holder.CgroupsPath, PID: reply.PID}
		return nil
	})
}

// parallel runs all of fs at once and returns when all have returned. The first
// error ends the context of the others, and is returned.
func parallel(ctx context.Context, fs ...func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	var once sync.Once
	var first error
	for _, f := range fs {
		wg.Go(func() {
			if err := f(ctx); err != nil {
				once.Do(func() {
					first = err
					cancel(errors.New("another part of the same operation failed"))
				})
			}
		})
	}
	wg.Wait()
	return first
}
