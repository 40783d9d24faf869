package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"k8s.io/klog/v2"

	"github.com/cridproject/crid/monitor"
)

// How long tend waits before it tries again.
const (
	connectFirst = 50 * time.Millisecond
	connectMax   = 5 * time.Second
	connectLimit = 30 * time.Second // for one try
	sweepFirst   = time.Second
	sweepMax     = time.Minute
)

// tend runs as long as the manager: it connects to the monitor again when
// the connection is lost, and tries again what could not be torn down.
func (m *Manager) tend(ctx context.Context) {
	wait := sweepFirst
	again := time.NewTimer(0)
	again.Stop()
	wake := m.wake // nil while a sweep is to come or under way: who asks meanwhile does not put it off
	swept := make(chan struct{})
	for ctx.Err() == nil {
		conn := m.monitor.Load()
		select {
		case <-ctx.Done():
			return
		case <-conn.Done():
			m.reconnect(ctx, conn)
			wait = sweepFirst
			m.later()
		case <-wake:
			wake = nil
			again.Reset(wait)
			wait = min(2*wait, sweepMax)
		case <-again.C:
			select {
			case <-m.wake: // asked for again, before it has begun
			default:
			}
			// Not here: a plugin may hang, and the monitor die meanwhile.
			m.spawn(func() {
				m.sweep(ctx)
				select {
				case swept <- struct{}{}:
				case <-ctx.Done():
				}
			})
		case <-swept:
			wake = m.wake
		}
	}
}

// reconnect returns with a connection in place of lost, or with none when ctx
// has ended.
func (m *Manager) reconnect(ctx context.Context, lost *connection) {
	log := klog.FromContext(ctx)
	log.Info("Lost the connection to crid-monitor, connecting again")
	m.setMonitor(nil)
	lost.Close()
	began := time.Now()
	for wait := connectFirst; ctx.Err() == nil; wait = min(2*wait, connectMax) {
		limited, cancel := context.WithTimeout(ctx, connectLimit)
		mon, items, err := m.connect(limited)
		cancel()
		if err == nil {
			// Before others may use it: what was lost with the old monitor is
			// handed over first.
			exits := m.reconcile(ctx, mon, items)
			m.setMonitor(&connection{mon})
			for _, e := range exits {
				m.exited(e)
			}
			log.Info("Connected to crid-monitor again", "duration", time.Since(began))
			return
		}
		log.Error(err, "Could not connect to crid-monitor, will try again", "wait", wait)
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// reconcile compares what crid believes to live with what the monitor has, and
// hands over what it does not have. It returns the exits to be made known.
// It takes ownership of the holds in items.
func (m *Manager) reconcile(ctx context.Context, mon Monitor, items []monitor.Listed) []monitor.Exit {
	containers, holders := map[string]*monitor.Listed{}, map[string]*monitor.Listed{}
	for i := range items {
		if items[i].Holder {
			holders[items[i].ID] = &items[i]
		} else {
			containers[items[i].ID] = &items[i]
		}
	}
	for _, s := range m.allSandboxes() {
		m.meetSandbox(ctx, mon, s, holders[string(s.id)])
	}
	var exits []monitor.Exit
	for _, c := range m.allContainers() {
		exits = append(exits, m.meet(containerContext(ctx, c), mon, c, containers[string(c.id)])...)
	}
	for _, item := range items {
		item.Hold.Close() // of what nobody wants
	}
	return exits
}

// meet finds out what has become of one container. item is nil when the monitor
// does not know it. What it takes of item's hold it takes out.
func (m *Manager) meet(ctx context.Context, mon Monitor, c *container, item *monitor.Listed) []monitor.Exit {
	if st := *c.state.Load(); !st.lives() {
		if item != nil && item.Exit != nil && st == ContainerExited {
			return []monitor.Exit{*item.Exit} // to be acknowledged
		}
		return nil
	}
	// An operation under way fails now, because its connection is gone.
	unlock, err := m.containerOps.Lock(ctx, c.id)
	if err != nil {
		return nil
	}
	defer unlock()
	var exits []monitor.Exit
	switch {
	case !c.state.Load().lives():
	case item != nil:
		exits = m.resume(ctx, c, item)
	case c.record().BootID != m.bootID:
		m.exitByReboot(ctx, c)
	default:
		exits = m.adopt(ctx, mon, c)
	}
	if len(exits) == 0 {
		if err := m.finishUpdate(ctx, c, mon); err != nil {
			klog.FromContext(ctx).Error(err, "Could not finish a change of resources that was interrupted")
		}
	}
	c.mu.Lock()
	if c.early != nil {
		exits = append(exits, *c.early)
		c.early = nil
	}
	c.mu.Unlock()
	m.checkContainer(c)
	return exits
}

// resume goes on with a container that the monitor has.
func (m *Manager) resume(ctx context.Context, c *container, item *monitor.Listed) []monitor.Exit {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.setHold(item.Hold)
	item.Hold = nil
	err := m.noteContainer(ctx, c, "container.recover.record", func(r *containerRecord) error {
		switch {
		case item.Started:
			if r.StartedAt.IsZero() {
				r.StartedAt = m.o.Now()
			}
			return r.on(containerStarted)
		case r.State == ContainerStarting && item.Exit != nil:
			r.startError(item.Exit.At, fmt.Sprintf("crid ended while it was being started; its program did not run, and its first process exited with code %d", item.Exit.Code))
			return r.on(containerExit)
		case r.State == ContainerStarting:
			r.StartedAt = time.Time{}
			return r.on(containerNotStarted)
		}
		return nil
	})
	if err != nil {
		klog.FromContext(ctx).Error(err, "Could not record a container's state")
	}
	if item.Exit != nil {
		return []monitor.Exit{*item.Exit}
	}
	return nil
}

func (m *Manager) exitByReboot(ctx context.Context, c *container) {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := m.noteContainer(ctx, c, "container.recover.record", func(r *containerRecord) error {
		r.BootID = m.bootID
		r.FinishedAt = latest(m.o.Now(), r.StartedAt)
		r.ExitCode, r.Reason, r.Message = codeUnknown, ReasonUnknown, "the node was restarted"
		return r.on(containerExit)
	})
	if err != nil {
		klog.FromContext(ctx).Error(err, "Could not record that a container ended with the node's restart")
	}
}

// adopt hands a container to a monitor that does not know it, or finds out
// that it has ended.
func (m *Manager) adopt(ctx context.Context, mon Monitor, c *container) []monitor.Exit {
	r := c.record()
	c.mu.Lock()
	hold := c.hold
	c.mu.Unlock()
	exit := monitor.Exit{ID: string(c.id), At: m.o.Now(), Code: -1, Lost: true}
	if hold == nil || hold.PIDFD == nil {
		// crid has been restarted and the monitor is gone: the log is lost, the
		// process may be there.
		pidfd, err := m.o.Kernel.Process(r.PID, "crid-"+string(c.id))
		if err != nil {
			return []monitor.Exit{exit}
		}
		hold = &monitor.Hold{PIDFD: pidfd}
		c.dropHold(hold)
	}
	if ended, code, known := m.o.Kernel.Ended(hold.PIDFD); ended {
		if known {
			exit.Code, exit.Lost = code, false
		}
		return []monitor.Exit{exit}
	}
	log := klog.FromContext(ctx)
	request := monitor.AdoptRequest{ID: string(c.id), PID: r.PID, Create: r.Request, Started: r.State == ContainerRunning}
	err := mon.Adopt(ctx, request, hold)
	if c.mu.Lock(); err != nil && c.hold != hold && c.hold != nil {
		hold = c.hold // forgetStdin closed a part of the other
		c.mu.Unlock()
		err = mon.Adopt(ctx, request, hold)
	} else {
		c.mu.Unlock()
	}
	if err != nil {
		log.Error(err, "Could not hand a container to the new monitor")
		return nil
	}
	log.Info("Handed a container to the new monitor", "pid", r.PID)
	if r.State == ContainerStarting {
		// Nobody can say whether its program runs. Its exit will be told.
		err = mon.Signal(ctx, monitor.SignalRequest{ID: string(c.id), Signal: sigKill, All: true})
		c.mu.Lock()
		err = errors.Join(err, m.noteContainer(ctx, c, "container.recover.record", func(r *containerRecord) error { return r.on(containerStarted) }))
		c.mu.Unlock()
		log.Info("Killed a container whose start was interrupted", "err", err)
	}
	return nil
}

// meetSandbox finds out whether a ready sandbox still has its parts.
func (m *Manager) meetSandbox(ctx context.Context, mon Monitor, s *sandbox, item *monitor.Listed) {
	r := s.record()
	switch {
	case r.State == SandboxCreating, r.State == SandboxRemoving, s.isGone():
		return
	case r.BootID != m.bootID:
		m.lost(ctx, s, "the node was restarted")
		return
	case r.State == SandboxReady && r.NetNS != "" && !m.o.Kernel.Pinned(r.NetNS):
		m.lost(ctx, s, "its network namespace is gone")
	case r.State == SandboxReady && r.Config.Namespaces.UserMap != nil && !m.o.Kernel.Pinned(m.sandboxFile(s.id, fileUser)):
		m.lost(ctx, s, "its user namespace is gone")
	}
	if r.Holder == nil {
		return
	}
	if item != nil {
		s.setHolder(item.Hold.PIDFD)
		item.Hold.PIDFD = nil
		return
	}
	if r.Holder.PID == 0 {
		return // it was about to be made for a container, which is torn down
	}
	if err := m.adoptHolder(ctx, mon, s, r.Holder); err != nil {
		m.lost(ctx, s, "its PID namespace's init is gone: "+err.Error())
	}
}

func (m *Manager) adoptHolder(ctx context.Context, mon Monitor, s *sandbox, h *holderRecord) error {
	s.mu.Lock()
	pidfd := s.holder
	s.mu.Unlock()
	if pidfd == nil {
		f, err := m.o.Kernel.Process(h.PID, "crid-hold-"+string(s.id))
		if err != nil {
			return err
		}
		s.setHolder(f)
		pidfd = f
	}
	if ended, _, _ := m.o.Kernel.Ended(pidfd); ended {
		return os.ErrProcessDone
	}
	return mon.Adopt(ctx, monitor.AdoptRequest{
		ID: string(s.id), PID: h.PID, Holder: true, Started: true,
		Create: monitor.CreateRequest{ID: string(s.id), SystemdCgroup: m.o.SystemdCgroup},
	}, &monitor.Hold{PIDFD: pidfd})
}
