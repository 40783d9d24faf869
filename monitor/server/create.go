package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/monitor"
)

// create makes a container: log, standard files, root file system, then
// libcontainer's part. On error all of it is undone, in reverse.
func (s *Server) create(ctx context.Context, r monitor.CreateRequest) (_ reply, err error) {
	began := time.Now()
	var spec specs.Spec
	if err := checkCreate(r, &spec); err != nil {
		return reply{}, err
	}
	unlock, err := s.ops.Lock(ctx, r.ID)
	if err != nil {
		return reply{}, err
	}
	defer unlock()
	if _, err := s.table.container(r.ID); err == nil {
		return reply{}, errkind.Errorf(errkind.Exists, "container %s exists", r.ID)
	}
	c := &container{id: r.ID, rootfs: s.rootfs(r.ID), exited: make(chan struct{}), execs: map[string]*execProc{}}
	log, made, err := openLog(r.LogPath, &s.logs)
	if err != nil {
		return reply{}, err
	}
	log.limit = newLogLimit(r.LogRate, &s.logs)
	defer func() {
		if err != nil {
			log.close()
			if made {
				_ = os.Remove(r.LogPath)
			}
		}
	}()
	label := ""
	if spec.Linux != nil {
		label = spec.Linux.MountLabel
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.removeRootfs(c.id))
		}
	}()
	if err := s.makeRootfsFolder(c.id, r.Rootfs.UserNS != ""); err != nil {
		return reply{}, err
	}
	if err := mountRootfs(c.rootfs, r.Rootfs, label); err != nil {
		return reply{}, err
	}
	if len(r.Images) > 0 {
		if err := s.mountImages(r.ID, r.Images, r.Rootfs.UserNS, &spec); err != nil {
			return reply{}, err
		}
		defer func() {
			if uerr := s.unmountImages(r.ID); uerr != nil { // Delete tries again
				klog.FromContext(ctx).Error(uerr, "Could not unmount images that a container has", "container", r.ID)
			}
		}()
	}
	if spec.Root == nil {
		spec.Root = &specs.Root{}
	}
	spec.Root.Path = c.rootfs
	if err := s.launchInit(c, r, &spec, log); err != nil {
		return reply{}, err
	}
	// The copies are made now: once the streams are read or the watcher runs,
	// they may end, and crid counts on all of them.
	names, files := c.files()
	s.o.Store.put(c.id, c.io.kept(), names, files)
	s.table.put(c)
	c.io.start(context.WithoutCancel(ctx))
	klog.FromContext(ctx).V(2).Info("Created container", "container", c.id, "pid", c.pid, "duration", time.Since(began))
	return reply{
		body:  monitor.CreateReply{PID: c.pid, Applied: c.cgroup.applied(c.pid, spec.Linux.Resources, spec.Process.OOMScoreAdj)},
		files: files,
		after: func() { go s.watch(context.WithoutCancel(ctx), c) },
	}, nil
}

func checkCreate(r monitor.CreateRequest, spec *specs.Spec) error {
	if err := checkID(r.ID); err != nil {
		return err
	}
	if err := json.Unmarshal(r.Spec, spec); err != nil {
		return errkind.Errorf(errkind.Invalid, "OCI spec of container %s: %w", r.ID, err)
	}
	switch {
	case spec.Linux == nil || spec.Process == nil || len(spec.Process.Args) == 0:
		return errkind.Errorf(errkind.Invalid, "OCI spec of container %s: linux and process.args are required", r.ID)
	case spec.Process.Terminal != r.TTY:
		return errkind.Errorf(errkind.Invalid, "OCI spec of container %s: process.terminal is %v, but tty is %v", r.ID, spec.Process.Terminal, r.TTY)
	case r.LogRate < 0:
		return errkind.Errorf(errkind.Invalid, "log rate %d of container %s is below 0", r.LogRate, r.ID)
	case r.LogPath != "" && !filepath.IsAbs(r.LogPath):
		return errkind.Errorf(errkind.Invalid, "log path %q is not absolute", r.LogPath)
	}
	return nil
}

// rootfs is where a container's root file system is mounted, and beside it, for
// as long as it is being made, the images that it gets.
func (s *Server) rootfs(id string) string { return filepath.Join(s.dir("rootfs"), id, "fs") }

// makeRootfsFolder makes the folder of rootfs. Users of the node must not pass it:
// a program with the setuid bit in a container would make them root, where the
// monitor's mounts are the node's. Root of a user namespace is such a user, and
// must pass it; its programs do no harm.
func (s *Server) makeRootfsFolder(id string, userns bool) error {
	mode := os.FileMode(0o700)
	if userns {
		mode = 0o711
	}
	if err := os.MkdirAll(filepath.Dir(s.rootfs(id)), mode); err != nil {
		return fmt.Errorf("make folder of rootfs: %w", err)
	}
	return nil
}

// removeRootfs undoes makeRootfsFolder, mountRootfs and mountImages. It is no error
// when nothing is there.
func (s *Server) removeRootfs(id string) error {
	err := errors.Join(s.unmountImages(id), unmountRootfs(s.rootfs(id)))
	if err != nil {
		return err
	}
	if err := os.Remove(filepath.Dir(s.rootfs(id))); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("remove folder of rootfs: %w", err)
	}
	return nil
}

// launchInit starts the container's first process, which then waits for start,
// and fills in c. On error it leaves nothing but the log, which stays the caller's.
func (s *Server) launchInit(c *container, r monitor.CreateRequest, spec *specs.Spec, log *criLog) (err error) {
	var l launch
	var console *consoleSocket
	child := &childFiles{}
	if r.TTY {
		if console, err = newConsoleSocket(); err != nil {
			return err
		}
		defer console.close()
		l.console = console.child
		c.io = newStdio(log, &r)
	} else {
		if c.io, child, err = newPipes(log, &r); err != nil {
			return err
		}
		l.stdin, l.stdout, l.stderr = child.stdin, child.stdout, child.stderr
	}
	defer child.close()
	status, childStatus, err := pipeFrom()
	if err != nil {
		return fmt.Errorf("make status pipe: %w", err)
	}
	l.status = childStatus
	defer func() {
		_ = childStatus.Close()
		if err != nil {
			_ = status.Close()
			c.io.closeUnstarted()
		}
	}()
	g := s.guardMaking(c.id, spec.Linux.CgroupsPath, r.SystemdCgroup)
	made, err := s.runtime.create(c.id, spec, r.SystemdCgroup, l)
	if err = s.finish(c.id, g, err); err != nil {
		_ = childStatus.Close()
		// What libcontainer's init could not say in the usual way.
		if text := readAll(status, 4096); text != "" {
			err = fmt.Errorf("%w: %s", err, text)
		}
		return err
	}
	c.pid, c.began, c.cgroup, c.status = made.pid, made.began, made.cgroup, status
	if c.pidfd, err = sys.PidfdOpen(c.pid); err == nil && console != nil {
		if c.io.console, err = console.master(); err == nil {
			c.io.streams = []*stream{newStream(c.io.console, "stdout", log)}
		}
	}
	if err != nil {
		return errors.Join(err, s.undoInit(c))
	}
	return nil
}

// undoInit removes a container of which only libcontainer's part is there.
func (s *Server) undoInit(c *container) error {
	ctx := context.Background()
	err := c.cgroup.empty(ctx)
	if _, werr := s.reaper.wait(c.pid); err == nil {
		err = werr
	}
	if c.pidfd != nil {
		_ = c.pidfd.Close()
	}
	return errors.Join(err, c.cgroup.remove(ctx), s.runtime.forget(c.id))
}

// start lets the first process execute its program and waits until it has, or
// has failed.
func (s *Server) start(ctx context.Context, r monitor.StartRequest) (_ reply, err error) {
	unlock, err := s.ops.Lock(ctx, r.ID)
	if err != nil {
		return reply{}, err
	}
	defer unlock()
	c, err := s.table.container(r.ID)
	if err != nil {
		return reply{}, err
	}
	c.gate.RLock()
	answer := reply{after: c.gate.RUnlock}
	if err := c.wants("start", stateCreated); err != nil {
		return answer, err
	}
	if doom, err := os.ReadFile(filepath.Join(s.runtime.root, c.id, doomName)); err == nil {
		c.fail()
		_ = sys.PidfdSignal(c.pidfd, unix.SIGKILL)
		return answer, errkind.New(errkind.Invalid, errors.New(startText(string(doom))))
	}
	if c.status == nil {
		return answer, errkind.Errorf(errkind.BadState, "container %s lost its start pipe, remove it", c.id)
	}
	if err := s.letExecute(c); err != nil {
		return answer, err
	}
	c.advance(stateRunning)
	klog.FromContext(ctx).V(2).Info("Started container", "container", c.id, "pid", c.pid)
	return answer, nil
}

// letExecute opens the fifo at which the first process waits. The process writes
// to it, closes it and executes its program, at which the status pipe closes too.
// If the process has died, the status pipe is closed and the fifo is empty.
func (s *Server) letExecute(c *container) error {
	path := filepath.Join(s.runtime.root, c.id, fifoName)
	// Does not wait for the process to open its end.
	fifo, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("start container: %w", err)
	}
	defer fifo.Close()
	text := readAll(c.status, 4096)
	_ = c.status.Close()
	c.status = nil
	if text != "" {
		c.fail()
		return errkind.Errorf(errkind.Invalid, "%s", startText(trimText(text)))
	}
	if n, _ := io.ReadFull(fifo, make([]byte, 1)); n == 0 {
		return errkind.Errorf(errkind.BadState, "container %s: its first process died before it could execute the program", c.id)
	}
	// Its absence is how libcontainer tells running from created.
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		klog.Background().Error(err, "Could not remove start fifo", "container", c.id)
	}
	return nil
}

// fail notes that the program was not executed: the exit code is then 128.
func (c *container) fail() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failed = true
}

// files are the copies that crid gets, pidfd first.
func (c *container) files() (names []string, files []*os.File) {
	names, files = c.io.files()
	if p, err := sys.Dup(c.pidfd); err == nil {
		names, files = append([]string{"pidfd"}, names...), append([]*os.File{p}, files...)
	}
	return names, files
}
