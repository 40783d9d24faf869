package server

import (
	"context"
	"os"
	"runtime"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/monitor"
)

func (s *Server) resize(_ context.Context, r monitor.ResizeRequest) (reply, error) {
	c, err := s.table.container(r.ID)
	if err != nil {
		return reply{}, err
	}
	console := c.io.console
	if r.ExecID != "" {
		c.mu.Lock()
		e := c.execs[r.ExecID]
		if e != nil {
			console = e.console // set by an exec that is being started
		}
		c.mu.Unlock()
		if e == nil {
			return reply{}, errkind.Errorf(errkind.NotFound, "no exec %s in container %s", r.ExecID, r.ID)
		}
	}
	if console == nil {
		return reply{}, errkind.Errorf(errkind.BadState, "resize terminal of container %s: it has none", r.ID)
	}
	return reply{}, resize(console, r.Rows, r.Columns)
}

// reopenLog waits for nothing but a write to the log that is under way.
func (s *Server) reopenLog(_ context.Context, r monitor.ReopenLogRequest) (reply, error) {
	c, err := s.table.container(r.ID)
	if err != nil {
		return reply{}, err
	}
	if err := c.wants("reopen the log of", stateRunning); err != nil {
		return reply{}, err
	}
	return reply{}, c.io.log.reopen()
}

func (s *Server) ack(_ context.Context, r monitor.AckRequest) (reply, error) {
	if err := checkID(r.ID); err != nil {
		return reply{}, err
	}
	return reply{}, s.journal.remove(r.ID)
}

// list is what runs and what has exited and was not deleted.
func (s *Server) list(context.Context, monitor.ListRequest) (reply, error) {
	cs, hs := s.table.snapshot()
	var l monitor.ListReply
	var files []*os.File
	for _, c := range cs {
		names, fs := c.files()
		c.mu.Lock()
		item := monitor.ListItem{ID: c.id, PID: c.pid, Started: c.state != stateCreated, Exit: c.exit, FDs: names}
		c.mu.Unlock()
		l.Items, files = append(l.Items, item), append(files, fs...)
	}
	for _, h := range hs {
		item := monitor.ListItem{ID: h.id, PID: h.pid, Holder: true, Started: true}
		if d, err := sys.Dup(h.pidfd); err == nil {
			item.FDs, files = []string{"pidfd"}, append(files, d)
		}
		l.Items = append(l.Items, item)
	}
	return reply{body: l, files: files}, nil
}

func (s *Server) dump(context.Context, monitor.DumpRequest) (reply, error) {
	cs, hs := s.table.snapshot()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	fds, _ := os.ReadDir("/proc/self/fd")
	return reply{body: monitor.DumpReply{
		Build:      s.o.Build,
		PID:        os.Getpid(),
		Containers: len(cs),
		Execs:      int(s.execs.Load()),
		Holders:    len(hs),
		Goroutines: runtime.NumGoroutine(),
		FDs:        max(0, len(fds)-1), // one is the folder's own
		HeapInUse:  m.HeapInuse,
		LogDropped: s.logs.dropped.Load(),
		LogLimited: s.logs.limited.Load(),

		LogWritten:        s.logs.written.Load(),
		LogErrors:         s.logs.failed.Load(),
		LogLimitedRecords: s.logs.limitedRecords.Load(),
	}}, nil
}

// Empty reports whether the monitor holds no container and no PID namespace.
func (s *Server) Empty() bool {
	cs, hs := s.table.snapshot()
	return len(cs)+len(hs) == 0
}

// shutdown is granted when nothing would be left without a parent.
func (s *Server) shutdown(context.Context, monitor.ShutdownRequest) (reply, error) {
	if cs, hs := s.table.snapshot(); len(cs)+len(hs) > 0 {
		return reply{}, errkind.Errorf(errkind.BadState, "the monitor still has %d containers and %d holders", len(cs), len(hs))
	}
	return reply{after: func() { s.once.Do(func() { close(s.stop) }) }}, nil
}
