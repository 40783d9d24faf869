package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/cridproject/crid/image"
	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/trace"
	"github.com/cridproject/crid/monitor"
	"github.com/cridproject/crid/sandbox/config"
	"github.com/cridproject/crid/sandbox/spec"
	"github.com/cridproject/crid/sandbox/spec/host"
)

// Create makes a container in a ready sandbox, up to its Start. Its image must be
// there; it is not pulled.
//
// A second Create with the same name and attempt is treated as Run treats it.
// Making goes on when ctx ends; when it fails, nothing is left behind.
func (m *Manager) Create(ctx context.Context, sandboxID string, w config.Container) (config.ContainerID, error) {
	s, err := m.findSandbox(sandboxID)
	if err != nil {
		return "", err
	}
	for {
		c, begin, err := m.admitContainer(ctx, s, w)
		if err != nil {
			return "", err
		}
		if begin != nil && !m.spawn(begin) {
			m.forgetContainer(c)
			return "", errClosed
		}
		if !c.over() || begin != nil {
			if err := c.wait(ctx, "making of container "+c.id.Short()); err != nil {
				return "", err
			}
		}
		switch *c.state.Load() {
		case ContainerCreated:
			return c.id, nil
		case ContainerCreating, ContainerRemoving:
			// What is left of an attempt that failed, or a removal under way.
			if err := m.Remove(ctx, string(c.id)); err != nil {
				return "", fmt.Errorf("remove what an earlier attempt has left: %w", err)
			}
		default:
			if begin != nil {
				return c.id, nil // created, and more has happened since
			}
			return "", errkind.Errorf(errkind.Exists, "container %s has this name and attempt, and has been started; remove it first", c.id)
		}
	}
}

// admitContainer finds the container of w's key, or makes its place: then begin
// is the work to do.
func (m *Manager) admitContainer(ctx context.Context, s *sandbox, w config.Container) (c *container, begin func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	// Stopping a sandbox first changes its state and then lists its containers
	// under mu: it sees this one, or this one sees it.
	if st := *s.state.Load(); st != SandboxReady {
		return nil, nil, errkind.Errorf(errkind.BadState, "create container: sandbox %s is %s, not ready", s.id.Short(), st)
	}
	key := w.Key(s.id)
	if c := m.contKey[key]; c != nil {
		if *c.state.Load() != ContainerRemoving && !sameWish(c.config, w) {
			return nil, nil, errkind.Errorf(errkind.Exists, "container %s has this name and attempt, and another config; remove it, or raise the attempt", c.id)
		}
		return c, nil, nil
	}
	id := config.ContainerID(newID())
	rec := containerRecord{
		Version: recordVersion, ID: id, Sandbox: s.id, BootID: m.bootID, State: ContainerCreating, Config: w,
		CgroupsPath: m.cgroupsPath(&s.config, string(id)),
	}
	if w.LogPath != "" && s.config.LogDirectory != "" {
		rec.LogPath = filepath.Join(string(s.config.LogDirectory), w.LogPath)
	}
	work, cancelTime := detach(ctx, createLimit)
	work, cancel := context.WithCancelCause(work)
	c = newContainer(rec, s, newAttempt(cancel))
	m.containers[id], m.contKey[key] = c, c
	unlock, err := m.containerOps.Lock(ctx, id)
	if err != nil {
		panic("sandbox: the lock of a new container is taken: " + err.Error())
	}
	return c, func() {
		defer cancelTime()
		defer cancel(nil)
		defer c.end()
		defer unlock()
		c.err = m.runCreate(containerContext(work, c), c)
	}, nil
}

// terminationPath is kubelet's annotation with the path, in the container, of the
// file for its termination message.
const terminationPath = "io.kubernetes.container.terminationMessagePath"

// sameWish reports whether b is a retry of a. kubelet mounts a new file for the
// termination message at each try; where it is, it learns from the status.
func sameWish(a, b config.Container) bool {
	if path := b.Annotations[terminationPath]; path != "" {
		for _, mounts := range []*[]config.Mount{&a.Mounts, &b.Mounts} {
			*mounts = slices.Clone(*mounts)
			for i := range *mounts {
				if m := &(*mounts)[i]; m.ContainerPath == path {
					m.HostPath = ""
				}
			}
		}
	}
	return reflect.DeepEqual(a, b)
}

// runCreate makes c, or tears it down.
//
// Preconditions: the container's operation lock is held.
func (m *Manager) runCreate(ctx context.Context, c *container) error {
	began := time.Now()
	err := m.create(ctx, c)
	if err == nil {
		klog.FromContext(ctx).V(2).Info("Created container", "duration", time.Since(began))
		m.checkContainer(c)
		return nil
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	down, cancel := detach(ctx, downLimit)
	defer cancel()
	if downErr := m.tearDownContainer(down, c, m.reach); downErr != nil {
		klog.FromContext(ctx).Error(downErr, "Could not undo a container that could not be made, will try again")
		m.later()
	}
	return createError(c, err)
}

// create makes the parts of a container: folders of its root file system, spec,
// and the container itself, in the monitor.
func (m *Manager) create(ctx context.Context, c *container) error {
	if err := m.saveContainer(ctx, c, "container.create.record", func(*containerRecord) error { return nil }); err != nil {
		return err
	}
	img, err := m.o.Images.Image(c.config.Image.Ref)
	if errkind.Is(err, errkind.NotFound) {
		return errkind.Errorf(errkind.NotFound, "image %q is not on this node, pull it first: %w", c.config.Image.Ref, err)
	}
	if err != nil {
		return err
	}
	in := m.specInput(c, img)
	if in.NS.PID, err = m.pidNamespace(ctx, c); err != nil {
		return err
	}
	var rootfs image.Rootfs
	var volumes imageVolumes
	err = parallel(ctx,
		func(ctx context.Context) (err error) {
			step, end := trace.Start(ctx, "container.rootfs")
			rootfs, err = m.o.Images.Prepare(step, img.ID, string(c.id))
			end(err)
			if err != nil {
				return err
			}
			return m.step("container.create.rootfs")
		},
		func(ctx context.Context) (err error) {
			volumes, err = m.prepareVolumes(ctx, c)
			return err
		},
		func(ctx context.Context) error { return m.lookAtNode(ctx, c, &in) },
	)
	if err != nil {
		return err
	}
	in.Passwd, in.Group = rootfs.Passwd, rootfs.Group
	_, end := trace.Start(ctx, "container.spec")
	built, err := spec.Build(in)
	end(err)
	if err != nil {
		return err
	}
	if err := m.injectDevices(ctx, c, &built); err != nil {
		return err
	}
	for _, w := range built.Warnings {
		klog.FromContext(ctx).Info("Container gets less than it asked for", "reason", w)
	}
	data, err := json.Marshal(built.Spec)
	if err != nil {
		return fmt.Errorf("encode spec: %w", err)
	}
	if err := m.store.putSpec(string(c.id), data); err != nil {
		return err
	}
	request := monitor.CreateRequest{
		ID:            string(c.id),
		Rootfs:        monitor.Rootfs{Lower: rootfs.Lower, Upper: rootfs.Upper, Work: rootfs.Work, Volatile: true, UserNS: in.NS.User},
		Images:        volumes.used(built.Spec.Mounts),
		SystemdCgroup: m.o.SystemdCgroup,
		LogPath:       c.record().LogPath,
		LogRate:       m.o.LogRate,
		TTY:           c.config.TTY, Stdin: c.config.Stdin, StdinOnce: c.config.StdinOnce,
	}
	return m.handOver(ctx, c, request, data, func(r *containerRecord) {
		r.ImageID, r.ImageRef, r.Volumes = string(img.ID), imageRef(img, c.config.Image), volumes.ids
		r.User, r.StopSignal, r.Signal = built.User, built.StopSignal, int(built.Signal)
	})
}

// handOver has the monitor make the container, and records it with what fill adds.
func (m *Manager) handOver(ctx context.Context, c *container, request monitor.CreateRequest, data []byte, fill func(*containerRecord)) error {
	mon, err := m.reach(ctx)
	if err != nil {
		return err
	}
	withSpec := request
	withSpec.Spec = data
	reply, hold, err := mon.Create(ctx, withSpec)
	if err != nil {
		return err
	}
	c.dropHold(hold)
	if err := m.step("container.create.monitor"); err != nil {
		return err
	}
	at := m.createdAt(&c.sandbox.config)
	err = m.saveContainer(ctx, c, "container.create.created", func(r *containerRecord) error {
		if err := context.Cause(ctx); err != nil {
			return err // it was removed meanwhile
		}
		fill(r)
		request.Images = nil // as good as gone
		r.PID, r.Request, r.CreatedAt = reply.PID, request, at
		r.Resources, r.Actual = c.config.Resources, actual(ctx, c.config.Resources, reply.Applied)
		return r.on(containerMade)
	})
	if err == nil {
		m.tellEarly(c)
	}
	return err
}

// imageRef is what kubelet publishes as the image's ID: a repository digest, of the
// repository that the user named where the image is known by several.
func imageRef(img image.Image, asked config.Image) string {
	if d := img.RepoDigest(asked.UserSpecified, asked.Ref); d != "" {
		return d
	}
	return string(img.ID)
}

// specInput is what spec.Build needs and is known without asking anybody.
func (m *Manager) specInput(c *container, img image.Image) spec.Input {
	s := c.sandbox
	in := spec.Input{
		SandboxID: s.id, ContainerID: c.id,
		Sandbox: s.config, Container: c.config,
		Image: spec.ImageConfig{
			Env: img.Config.Env, Entrypoint: img.Config.Entrypoint, Cmd: img.Config.Cmd,
			WorkingDir: img.Config.WorkingDir, User: img.Config.User, StopSignal: img.Config.StopSignal,
		},
		Files: spec.Files{
			ResolvConf: m.sandboxFile(s.id, fileResolvConf),
			Hosts:      m.sandboxFile(s.id, fileHosts),
			Hostname:   m.sandboxFile(s.id, fileHostname),
			Shm:        m.sandboxFile(s.id, fileShm),
		},
		CgroupsPath: m.cgroupsPath(&s.config, string(c.id)),
		Filters:     &m.filters,
		Host:        m.o.Host,
	}
	if !s.config.HostNetwork() {
		in.NS.Network, in.NS.UTS = m.netNS(s.id), m.sandboxFile(s.id, fileUTS)
	}
	if s.config.Namespaces.IPC == config.NamespaceNode {
		in.Files.Shm = "/dev/shm"
	} else {
		in.NS.IPC = m.sandboxFile(s.id, fileIPC)
	}
	if s.config.Namespaces.UserMap != nil {
		in.NS.User = m.sandboxFile(s.id, fileUser)
	}
	return in
}

// lookAtNode fills in what only the node's file systems know: sources of mounts,
// devices, profiles; and makes the log's folder.
func (m *Manager) lookAtNode(ctx context.Context, c *container, in *spec.Input) (err error) {
	ctx, end := trace.Start(ctx, "container.node")
	defer func() { end(err) }()
	mounts, err := m.mountSources(ctx, c.config.Mounts)
	if err != nil {
		return err
	}
	in.Container.Mounts = mounts
	filled := *in
	// By the name, which the next attempt has as well: it is not to hang beside this one.
	what := "devices and profiles of container " + c.config.Name + " of pod " + podRef(&c.sandbox.config).String()
	err = m.paths.do(ctx, m.o.HostPathTimeout, what, func() error {
		f := filled
		if err := host.Fill(&f, m.o.Host); err != nil {
			return err
		}
		m.appArmor.Fill(&f)
		filled = f
		return nil
	})
	if err != nil {
		return err
	}
	*in = filled
	dir := string(c.sandbox.config.LogDirectory)
	if dir == "" || c.config.LogPath == "" {
		return nil
	}
	return m.paths.do(ctx, m.o.HostPathTimeout, dir, func() error { return makeLogFolder(dir, c.config.LogPath) })
}

// pidNamespace is the path of the PID namespace that a container joins; "" for
// one of its own or the node's.
func (m *Manager) pidNamespace(ctx context.Context, c *container) (string, error) {
	switch pidMode(&c.config, &c.sandbox.config) {
	case config.NamespacePod:
		if err := m.needHolder(ctx, c.sandbox); err != nil {
			return "", err
		}
		return pidNS(c.sandbox.record().Holder.PID), nil
	case config.NamespaceTarget:
		target, err := m.pidTarget(c)
		if err != nil {
			return "", err
		}
		return pidNS(target.record().PID), nil
	}
	return "", nil
}

// needHolder makes the pod's PID namespace for the first container that shares
// it, in a sandbox that was not made for that. Two containers that come at once
// may both ask: they get the same one. Stopping the sandbox waits for the
// containers that are being made, and so for this, before it releases the holder.
func (m *Manager) needHolder(ctx context.Context, s *sandbox) error {
	if h := s.record().Holder; h != nil && h.PID != 0 {
		return nil
	}
	err := m.saveSandbox(ctx, s, "sandbox.hold.record", func(r *sandboxRecord) error {
		if r.Holder == nil {
			r.Holder = &holderRecord{CgroupsPath: m.cgroupsPath(&s.config, "hold-"+string(s.id))}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return m.holdPIDs(ctx, s)
}

func pidNS(pid int) string { return fmt.Sprintf("/proc/%d/ns/pid", pid) }

// pidTarget is the running container whose PID namespace c joins.
func (m *Manager) pidTarget(c *container) (*container, error) {
	const field = "config.linux.security_context.namespace_options.target_id"
	id := c.config.Security.Namespaces.Target
	target, err := m.findContainer(string(id))
	if err != nil || target.sandbox != c.sandbox {
		return nil, errkind.Errorf(errkind.Invalid, "%s: no container %q in this pod", field, id)
	}
	if st := *target.state.Load(); st != ContainerRunning {
		return nil, errkind.Errorf(errkind.BadState, "%s: container %s is %s, not running", field, target.id.Short(), st.public())
	}
	return target, nil
}
