package server

import (
	"sync"
	"time"

	"github.com/cridproject/crid/internal/errkind"
)

// makeLimit is how long the first process of a container may take until it is
// ready to execute its program. What takes longer hangs: it mounts volumes, and
// one may be of a network file system whose server is gone.
const makeLimit = 2 * time.Minute

// guard can end the making of a container. libcontainer waits for the process
// without a limit, and so must not be waited for with one; but it returns when
// the process is killed.
type guard struct {
	cgroupsPath string // as in the spec
	systemd     bool
	over        chan struct{} // closed when it is made, or not
	once        sync.Once

	mu  sync.Mutex
	why error // +checklocks:mu; set when it was cancelled
}

// guardMaking lets the making of a container end by a SIGKILL, or when it takes too
// long. The caller calls its finish.
func (s *Server) guardMaking(id, cgroupsPath string, systemd bool) *guard {
	limit := s.o.MakeLimit
	if limit == 0 {
		limit = makeLimit
	}
	g := &guard{cgroupsPath: cgroupsPath, systemd: systemd, over: make(chan struct{})}
	s.making.Store(id, g)
	go func() {
		t := time.NewTimer(limit)
		defer t.Stop()
		select {
		case <-g.over:
		case <-t.C:
			g.cancel(errkind.Errorf(errkind.Timeout,
				"its first process was not ready after %v; is the source of one of its mounts on a dead network file system?", limit))
		}
	}()
	return g
}

// cancel kills what is being made until that has ended. It does not wait.
func (g *guard) cancel(why error) {
	g.once.Do(func() {
		g.mu.Lock()
		g.why = why
		g.mu.Unlock()
		go func() {
			cg, err := newCgroup(g.cgroupsPath, g.systemd)
			if err != nil {
				return // libcontainer does not take it either
			}
			// Again and again: it may have not been in its cgroup yet.
			for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
				_ = cg.kill() // the next round tells
				select {
				case <-g.over:
					return
				case <-time.After(wait):
				}
			}
		}()
	})
}

// finish ends the guard. It returns err, or why the making was cancelled.
func (s *Server) finish(id string, g *guard, err error) error {
	s.making.Delete(id)
	close(g.over)
	g.mu.Lock()
	defer g.mu.Unlock()
	if err != nil && g.why != nil {
		return errkind.Errorf(errkind.Of(g.why), "%w (%v)", g.why, err)
	}
	return err
}

// cancelMaking ends the making of a container. It reports whether one is under way.
func (s *Server) cancelMaking(id string) bool {
	g, ok := s.making.Load(id)
	if ok {
		g.(*guard).cancel(errkind.Errorf(errkind.BadState, "it was killed while it was being made"))
	}
	return ok
}
