package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/monitor"
)

// handleAdopt takes the files that come with the request.
func (s *Server) handleAdopt(ctx context.Context, _ *conn, f *monitor.Frame) (reply, error) {
	var r monitor.AdoptRequest
	if err := f.Decode(&r); err != nil {
		return reply{}, err
	}
	if err := checkID(r.ID); err != nil {
		return reply{}, err
	}
	if len(r.FDs) != len(f.Files) {
		return reply{}, errkind.Errorf(errkind.Invalid, "adopt %s: %d descriptors came, %d are named", r.ID, len(f.Files), len(r.FDs))
	}
	var h monitor.Hold
	defer h.Close()
	for i, name := range r.FDs {
		to := map[string]**os.File{
			"pidfd": &h.PIDFD, "stdout": &h.Stdout, "stderr": &h.Stderr, "stdin": &h.Stdin, "console": &h.Console,
		}[name]
		if to == nil || *to != nil {
			return reply{}, errkind.Errorf(errkind.Invalid, "adopt %s: descriptor %q is unknown or there twice", r.ID, name)
		}
		*to = f.Files[i]
	}
	f.Files = nil // h closes what is not kept
	var err error
	if r.Holder {
		err = s.adoptHolder(ctx, r, &h)
	} else {
		err = s.adopt(ctx, r, &h)
	}
	if err != nil {
		return reply{}, fmt.Errorf("adopt %s: %w", r.ID, err)
	}
	return reply{}, nil
}

// adopt takes over a container that is not our child. What a dead monitor knew
// of it is in libcontainer's state, in the journal and in the request.
func (s *Server) adopt(ctx context.Context, r monitor.AdoptRequest, h *monitor.Hold) error {
	unlock, err := s.ops.Lock(ctx, r.ID)
	if err != nil {
		return err
	}
	defer unlock()
	if c, err := s.table.container(r.ID); err == nil {
		if c.pid == r.PID {
			return nil
		}
		return errkind.Errorf(errkind.Exists, "the monitor has a container of that ID, with process %d", c.pid)
	}
	cg, pid, start, err := s.runtime.restore(r.ID)
	if err != nil {
		return err
	}
	if pid != r.PID {
		return errkind.Errorf(errkind.Invalid, "its first process is %d, not %d", pid, r.PID)
	}
	c := &container{
		id: r.ID, pid: r.PID, began: start, adopted: true, cgroup: cg, rootfs: s.rootfs(r.ID),
		exited: make(chan struct{}), execs: map[string]*execProc{},
	}
	if r.Started {
		c.state = stateRunning
	}
	exit, hasExit := s.journal.get(r.ID)
	if c.pidfd, err = adoptPidfd(h, r.PID, start, hasExit); err != nil {
		return err
	}
	log, _, err := openLog(r.Create.LogPath, &s.logs)
	if err != nil {
		// Better without a log than without a parent.
		klog.FromContext(ctx).Error(err, "Lost log of a container, will try again with what it writes next", "container", r.ID)
	}
	log.limit = newLogLimit(r.Create.LogRate, &s.logs)
	s.o.Store.complete(r.ID, h)
	if c.io, err = adoptStdio(log, &r.Create, h); err != nil {
		log.close()
		_ = c.pidfd.Close()
		return err
	}
	if !r.Started {
		c.status = reopenStatus(r.PID)
	}
	s.table.put(c)
	c.io.start(context.WithoutCancel(ctx))
	if hasExit {
		c.io.seal()
		c.exit, c.state = &exit, stateExited
		close(c.exited)
	} else {
		go s.watch(context.WithoutCancel(ctx), c)
	}
	klog.FromContext(ctx).Info("Adopted container", "container", r.ID, "pid", r.PID, "exited", hasExit)
	return nil
}

// adoptPidfd takes the pidfd that came, or opens one of the process if that is
// still the one that started at start.
func adoptPidfd(h *monitor.Hold, pid int, start uint64, exited bool) (*os.File, error) {
	if h.PIDFD != nil {
		f := h.PIDFD
		h.PIDFD = nil
		return pollable(f)
	}
	f, err := sys.PidfdOpen(pid)
	if err != nil {
		return nil, errkind.New(errkind.NotFound, err)
	}
	// Opened before it is looked at: it cannot become another one in between.
	if st, err := readStat(pid); err != nil || start != 0 && st.start != start && !exited {
		_ = f.Close()
		return nil, errkind.Errorf(errkind.NotFound, "process %d is gone", pid)
	}
	return f, nil
}

// reopenStatus opens the other end of the status pipe of a process that waits to
// be started. The end that the dead monitor had is gone, the pipe is not.
func reopenStatus(pid int) *os.File {
	path := filepath.Join("/proc", strconv.Itoa(pid), "fd", strconv.Itoa(statusFD))
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil // start then says so
	}
	return f
}

// adoptHolder takes over the init of a PID namespace.
func (s *Server) adoptHolder(ctx context.Context, r monitor.AdoptRequest, h *monitor.Hold) error {
	unlock, err := s.ops.Lock(ctx, "hold/"+r.ID)
	if err != nil {
		return err
	}
	defer unlock()
	if old := s.table.holder(r.ID); old != nil {
		if old.pid == r.PID {
			return nil
		}
		return errkind.Errorf(errkind.Exists, "the monitor has a holder of that ID, with process %d", old.pid)
	}
	if h.PIDFD == nil {
		return errkind.Errorf(errkind.Invalid, "a holder needs its pidfd")
	}
	pidfd, err := pollable(h.PIDFD)
	h.PIDFD = nil
	if err != nil {
		return err
	}
	if err := sys.PidfdSignal(pidfd, 0); errors.Is(err, os.ErrProcessDone) {
		_ = pidfd.Close()
		return errkind.Errorf(errkind.NotFound, "process %d has ended", r.PID)
	}
	own := &holder{id: r.ID, pid: r.PID, pidfd: pidfd, done: make(chan struct{})}
	s.table.putHolder(own)
	go s.watchHolder(context.WithoutCancel(ctx), own, nil)
	klog.FromContext(ctx).Info("Adopted holder", "sandbox", r.ID, "pid", r.PID)
	return nil
}
