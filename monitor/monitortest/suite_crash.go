package monitortest

import (
	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/monitor"
)

// crash kills the monitor, waits until c has noticed and connects to the next.
func (s *suite) crash(c *conn) *conn {
	s.t.Helper()
	if s.env.Crash == nil {
		s.t.Skip("this monitor cannot be killed here")
	}
	s.env.Crash(s.t)
	select {
	case <-c.Done():
	case <-s.ctx.Done():
		s.t.Fatal("Done is open after the monitor's death")
	}
	s.wantKind("Start on a lost connection", c.Start(s.ctx, "any"), errkind.Unavailable)
	return s.connect()
}

func (s *suite) crashAndAdopt() {
	c := s.connect()
	r := s.request("sleep", "1000")
	h := s.create(c, r)
	s.must("Start", c.Start(s.ctx, r.ID))
	pid := s.list(c)[r.ID].PID
	hr := s.env.Hold(s.t, s.id("s"))
	hreply, pidfd, err := c.Hold(s.ctx, hr)
	s.must("Hold", err)
	defer pidfd.Close()

	c = s.crash(c)
	release := monitor.ReleaseRequest{ID: hr.ID, CgroupsPath: hr.CgroupsPath, SystemdCgroup: hr.SystemdCgroup}
	defer func() { s.must("Release", c.Release(s.ctx, release)) }()
	if got := s.list(c); len(got) != 0 {
		s.t.Errorf("List of a new monitor = %v, want none", got)
	}
	r.Spec = nil
	s.must("Adopt", c.Adopt(s.ctx, monitor.AdoptRequest{ID: r.ID, PID: pid, Create: r, Started: true}, h))
	s.must("Adopt", c.Adopt(s.ctx, monitor.AdoptRequest{ID: hr.ID, PID: hreply.PID, Holder: true}, &monitor.Hold{PIDFD: pidfd}))
	got := s.list(c)
	if l := got[r.ID]; l.PID != pid || !l.Started || l.Hold == nil || l.Hold.PIDFD == nil || l.Hold.Stdout == nil {
		s.t.Errorf("List after Adopt: %+v, want pid %d, started, with its descriptors", l.ListItem, pid)
	}
	if l := got[hr.ID]; l.PID != hreply.PID || !l.Holder {
		s.t.Errorf("List after Adopt: %+v, want a holder with pid %d", l.ListItem, hreply.PID)
	}
	s.must("Signal", c.Signal(s.ctx, monitor.SignalRequest{ID: r.ID, Signal: 9, All: true}))
	// The code of a process that is not its child is known on new kernels only.
	if e := c.exit(r.ID); !e.Lost && e.Code != 128+9 || e.Lost && e.Code != -1 {
		s.t.Errorf("exit of what was adopted = %+v, want code 137, or lost and -1", e)
	}
}

func (s *suite) crashKeepsJournal() {
	c := s.connect()
	id, _ := s.run(c, "sh", "-c", "exit 8")
	c.exit(id)
	c = s.crash(c)
	s.wantCode(c.exit(id), 8)
	s.must("Ack", c.Ack(s.ctx, id))
}
