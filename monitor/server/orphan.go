package server

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// hangUpGrace is how long the programs of a terminal have to end on SIGHUP.
const hangUpGrace = time.Second

// endExecs ends the execs that a connection which is lost has asked for, and
// waits for that: nobody reads what they write, stops them when their time is
// over, or is told how they end.
func (s *Server) endExecs(ctx context.Context, conn *conn) {
	var wg sync.WaitGroup
	containers, _ := s.table.snapshot()
	for _, c := range containers {
		c.mu.Lock()
		for _, e := range c.execs {
			if e.conn == conn && e.pidfd != nil {
				terminal := e.console != nil
				wg.Go(func() { c.endExec(ctx, e, terminal) })
			}
		}
		c.mu.Unlock()
	}
	wg.Wait()
}

// endExec kills an exec with its descendants. A terminal is hung up first, so that
// what was started to survive that does.
func (c *container) endExec(ctx context.Context, e *execProc, terminal bool) {
	log := klog.FromContext(ctx).WithValues("container", c.id, "exec", e.id, "pid", e.pid)
	if terminal && send(e.pidfd, unix.SIGHUP) == nil {
		t := time.NewTimer(hangUpGrace)
		defer t.Stop()
		select {
		case <-e.done:
			log.V(2).Info("Hung up an exec whose connection was lost")
			return
		case <-t.C:
		}
	}
	if err := c.killExec(ctx, e); err != nil {
		log.Error(err, "Could not kill an exec whose connection was lost")
		return
	}
	log.V(2).Info("Killed an exec whose connection was lost")
}
