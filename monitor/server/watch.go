package server

import (
	"context"
	"os"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/monitor"
)

// startFailedCode is the exit code of a container whose program could not be
// executed, as containerd has it.
const startFailedCode = 128

// lostTimeout is how long the parent of an adopted container may take to make
// an end of it.
const lostTimeout = time.Second

// watch waits for the end of a container's first process and reports it. The
// order matters: the OOM counter before the process is waited for, since then
// systemd may remove the cgroup; what the process wrote before the exit; the
// journal before anyone hears of it.
func (s *Server) watch(ctx context.Context, c *container) {
	log := klog.LoggerWithValues(klog.FromContext(ctx), "container", c.id)
	if err := untilExit(c.pidfd); err != nil {
		log.Error(err, "Lost track of a container", "pid", c.pid)
		return
	}
	e := monitor.Exit{ID: c.id, At: time.Now()}
	var known bool
	e.OOMKilled, known = c.cgroup.oomKilled()
	if !c.adopted {
		var err error
		if e.Code, err = s.reaper.wait(c.pid); err != nil {
			log.Error(err, "Lost exit code of a container", "pid", c.pid)
			e.Code, e.Lost = -1, true
		}
	} else {
		e.Code, e.Lost = adoptedExit(ctx, c.pidfd, c.pid, c.began)
	}
	if !known {
		e.OOMKilled = oomKilledInLog(c.pid, c.began, c.cgroup.path())
	}
	c.io.drain(ctx)
	c.io.seal()

	// A start that is under way is answered first.
	c.gate.Lock()
	defer c.gate.Unlock()
	c.mu.Lock()
	if c.failed {
		e.Code, e.Lost = startFailedCode, false
	}
	c.exit = &e
	c.state = max(c.state, stateExited)
	c.mu.Unlock()
	if err := s.journal.put(e); err != nil {
		log.Error(err, "Could not write the exit of a container down, it is lost if the monitor dies")
	}
	log.V(2).Info("Container exited", "pid", c.pid, "exitCode", e.Code, "oomKilled", e.OOMKilled)
	s.publish(e)
	close(c.exited)
}

// adoptedExit is the exit code of a process that is not our child: as its parent
// will see it while it is a zombie, or later what the pidfd remembers (Linux
// 6.15). start tells the process from another with its pid.
func adoptedExit(ctx context.Context, pidfd *os.File, pid int, start uint64) (code int, lost bool) {
	if st, err := readStat(pid); err == nil && st.dead() && st.start == start {
		return statusCode(syscall.WaitStatus(st.exit)), false
	}
	ctx, cancel := context.WithTimeout(ctx, lostTimeout)
	defer cancel()
	_ = sys.PidfdWaitReaped(ctx, pidfd)
	if code, known := sys.PidfdExitInfo(pidfd); known {
		return code, false
	}
	return -1, true
}
