package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/monitor"
)

// holderOOMScoreAdj makes the OOM killer take anything of the pod first.
const holderOOMScoreAdj = -998

// hold starts the init of a PID namespace, or finds the one that runs.
func (s *Server) hold(ctx context.Context, r monitor.HoldRequest) (reply, error) {
	if err := checkID(r.ID); err != nil {
		return reply{}, err
	}
	unlock, err := s.ops.Lock(ctx, "hold/"+r.ID)
	if err != nil {
		return reply{}, err
	}
	defer unlock()
	h := s.table.holder(r.ID)
	if h == nil {
		if h, err = s.startHolder(ctx, r); err != nil {
			return reply{}, fmt.Errorf("hold PID namespace of %s: %w", r.ID, err)
		}
	}
	d, err := sys.Dup(h.pidfd)
	if err != nil {
		return reply{}, err
	}
	return reply{body: monitor.HoldReply{PID: h.pid}, files: []*os.File{d}}, nil
}

// startHolder starts this program in its C mode (pid1.go) and returns when the
// namespace is ready.
func (s *Server) startHolder(ctx context.Context, r monitor.HoldRequest) (_ *holder, err error) {
	cg, err := newCgroup(r.CgroupsPath, r.SystemdCgroup)
	if err != nil {
		return nil, err
	}
	status, childStatus, err := pipeFrom()
	if err != nil {
		return nil, err
	}
	defer status.Close()
	defer childStatus.Close()
	childGo, goAhead, err := pipeTo()
	if err != nil {
		return nil, err
	}
	defer childGo.Close()
	defer goAhead.Close()
	defer s.reaper.begin()()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{"crid-pid1"}
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{childStatus, childGo}
	cmd.Env = []string{pid1Env}
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS, Setsid: true}
	var user *userInit // where cmd is not the init itself
	if r.UserNS != "" {
		if user, err = inUserNS(cmd, r.UserNS); err != nil {
			return nil, err
		}
		defer user.close()
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s.reaper.add(cmd.Process.Pid)
	h := &holder{id: r.ID, pid: cmd.Process.Pid, cgroup: cg, done: make(chan struct{})}
	wait := func() error { return s.reaper.waitHolder(cmd) }
	defer func() {
		if err != nil {
			_ = unix.Kill(h.pid, unix.SIGKILL)
			_ = wait()
			if h.pidfd != nil {
				_ = h.pidfd.Close()
			}
			err = errors.Join(err, cg.discard(context.WithoutCancel(ctx)))
		}
	}()
	if err := cg.m.Apply(h.pid); err != nil {
		return nil, fmt.Errorf("join cgroup: %w", err)
	}
	if _, err := goAhead.Write([]byte{0}); err != nil {
		return nil, err
	}
	_ = childStatus.Close()
	if text := readAll(status, 4096); text != "" {
		return nil, errors.New(text)
	}
	if user != nil {
		pid, err := user.pid()
		if err != nil {
			return nil, err
		}
		_ = wait()
		h.pid = pid
		s.reaper.add(pid)
		wait = func() error { _, err := s.reaper.wait(h.pid); return err }
	}
	// Without the right to it, it is as likely to be killed as the monitor.
	_ = os.WriteFile("/proc/"+strconv.Itoa(h.pid)+"/oom_score_adj", []byte(strconv.Itoa(holderOOMScoreAdj)), 0)
	if h.pidfd, err = sys.PidfdOpen(h.pid); err != nil {
		return nil, err
	}
	s.table.putHolder(h)
	go s.watchHolder(context.WithoutCancel(ctx), h, wait)
	klog.FromContext(ctx).V(2).Info("Started holder", "sandbox", h.id, "pid", h.pid)
	return h, nil
}

// watchHolder waits for the end of a holder. wait is nil for an adopted one.
func (s *Server) watchHolder(ctx context.Context, h *holder, wait func() error) {
	defer close(h.done)
	log := klog.LoggerWithValues(klog.FromContext(ctx), "sandbox", h.id, "pid", h.pid)
	if err := untilExit(h.pidfd); err != nil {
		log.Error(err, "Lost track of a holder")
		return
	}
	if wait != nil {
		_ = wait()
	}
	s.table.dropHolder(h)
	log.V(2).Info("Holder ended")
}

// waitHolder waits for a holder that has been killed or has ended.
func (r *reaper) waitHolder(cmd *exec.Cmd) error {
	defer r.remove(cmd.Process.Pid)
	return cmd.Wait()
}

// release ends a holder; the kernel then ends all processes of its namespace.
func (s *Server) release(ctx context.Context, r monitor.ReleaseRequest) (reply, error) {
	if err := checkID(r.ID); err != nil {
		return reply{}, err
	}
	unlock, err := s.ops.Lock(ctx, "hold/"+r.ID)
	if err != nil {
		return reply{}, err
	}
	defer unlock()
	cg, err := s.endHolder(ctx, r)
	if err == nil && cg != nil {
		err = cg.discard(ctx)
	}
	if err != nil {
		return reply{}, fmt.Errorf("release PID namespace of %s: %w", r.ID, err)
	}
	return reply{}, nil
}

// endHolder returns the cgroup to be removed, if there is one.
func (s *Server) endHolder(ctx context.Context, r monitor.ReleaseRequest) (*cgroup, error) {
	h := s.table.holder(r.ID)
	var cg *cgroup
	switch {
	case h != nil && h.cgroup != nil:
		cg = h.cgroup
	case r.CgroupsPath != "":
		var err error
		if cg, err = newCgroup(r.CgroupsPath, r.SystemdCgroup); err != nil {
			return nil, err
		}
	}
	if h == nil {
		return cg, nil
	}
	if err := send(h.pidfd, unix.SIGKILL); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	select {
	case <-h.done:
		_ = h.pidfd.Close()
		return cg, nil
	case <-ctx.Done():
		// The init of a PID namespace ends after all other processes in it.
		return nil, errkind.Errorf(errkind.Timeout, "processes of the PID namespace of process %d have not ended %v after SIGKILL", h.pid, killTimeout)
	}
}
