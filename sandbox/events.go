package sandbox

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/cridproject/crid/internal/errkind"
)

// EventKind is what has happened to a sandbox or container.
type EventKind int

// The kinds of events, in the order in which each of them happens once at most.
const (
	EventCreated EventKind = iota + 1
	EventStarted
	EventStopped
	EventDeleted
)

// Event is a change that clients can see, with how its pod was right after it.
type Event struct {
	Kind EventKind
	ID   string // of the sandbox or container that has changed
	PodStatus
}

// PodStatus is a sandbox with all of its containers, at one moment. What it points
// to is shared and must not be changed.
type PodStatus struct {
	At         time.Time      // later than that of whatever was told before
	Sandbox    *SandboxStatus // nil: it has been removed
	Containers []*ContainerStatus
}

// eventRoom is how many events may wait for a subscriber before it is given up:
// those of a few hundred pods that come and go at once.
const eventRoom = 2048

// subscription is one who wants to know of events.
type subscription struct {
	c      chan Event // closed when it ends
	reason error      // +checklocks:events.mu; why it ended
}

// events hands events to subscribers. It never waits for one of them.
type events struct {
	mu          sync.Mutex             // after sandbox.mu and container.mu, before Manager.mu; never held across I/O
	subscribers map[*subscription]bool // +checklocks:mu
	last        time.Time              // +checklocks:mu; the newest time that was told
	dropped     uint64                 // +checklocks:mu; subscribers that were too slow
	ended       bool                   // +checklocks:mu
}

// WatchEvents calls subscribed, and then each for what happens from now on, in order,
// until one of them fails or ctx ends. The error has kind Unavailable when too many
// events wait for each, which may take its time: others do not notice. So it has when
// crid ends.
func (m *Manager) WatchEvents(ctx context.Context, subscribed func() error, each func(*Event) error) error {
	s := m.events.subscribe()
	defer m.events.unsubscribe(s, nil)
	if err := subscribed(); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e, ok := <-s.c:
			if !ok {
				return m.events.reason(s)
			}
			if err := each(&e); err != nil {
				return err
			}
		}
	}
}

func (h *events) subscribe() *subscription {
	s := &subscription{c: make(chan Event, eventRoom)}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.subscribers == nil {
		h.subscribers = make(map[*subscription]bool)
	}
	h.subscribers[s] = true
	if h.ended {
		h.end(s, errClosed)
	}
	return s
}

func (h *events) unsubscribe(s *subscription, reason error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.end(s, reason)
}

func (h *events) reason(s *subscription) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return s.reason
}

// Subscribers is how many WatchEvents there are, and how many have ended because
// they were too slow.
func (m *Manager) Subscribers() (now int, dropped uint64) {
	m.events.mu.Lock()
	defer m.events.mu.Unlock()
	return len(m.events.subscribers), m.events.dropped
}

// EndEvents ends all WatchEvents, and those to come at once.
func (m *Manager) EndEvents() {
	m.events.mu.Lock()
	defer m.events.mu.Unlock()
	m.events.ended = true
	for s := range m.events.subscribers {
		m.events.end(s, errClosed)
	}
}

// end is for a subscription that may have ended.
//
// Preconditions: h.mu is held.
func (h *events) end(s *subscription, reason error) {
	if h.subscribers[s] {
		delete(h.subscribers, s)
		s.reason = reason
		close(s.c)
	}
}

// tell hands on what happened to id, of sandbox s.
func (m *Manager) tell(s *sandbox, id string, kinds []EventKind) {
	if len(kinds) == 0 {
		return
	}
	h := &m.events
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.subscribers) == 0 {
		return
	}
	for _, kind := range kinds {
		e := Event{kind, id, m.podStatus(s)}
		for sub := range h.subscribers {
			select {
			case sub.c <- e:
			default:
				h.dropped++
				h.end(sub, errkind.Errorf(errkind.Unavailable,
					"the client of the events is too slow: %d of them wait for it; list everything and subscribe again", eventRoom))
			}
		}
	}
}

// podStatus has containers oldest first.
//
// Preconditions: m.events.mu is held.
func (m *Manager) podStatus(s *sandbox) PodStatus {
	at := m.o.Now()
	if !at.After(m.events.last) {
		at = m.events.last.Add(time.Nanosecond)
	}
	m.events.last = at
	p := PodStatus{At: at, Sandbox: s.status.Load()}
	for _, c := range m.containersOf(s) {
		if st := c.status.Load(); st != nil {
			p.Containers = append(p.Containers, st)
		}
	}
	slices.SortFunc(p.Containers, func(a, b *ContainerStatus) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	return p
}

// PodStatus is the sandbox with the ID id, or one that begins so, and its
// containers. Kinds are as with Sandbox.
func (m *Manager) PodStatus(id string) (PodStatus, error) {
	s, err := m.findSandbox(id)
	if err != nil {
		return PodStatus{}, err
	}
	m.events.mu.Lock()
	defer m.events.mu.Unlock()
	p := m.podStatus(s)
	if p.Sandbox == nil {
		return PodStatus{}, notFound("sandbox", id)
	}
	return p, nil
}

// tellSandbox hands on what clients have not been told of the sandbox. It is called
// after each change, so each event comes once and in its order.
//
// Preconditions: s.mu is held.
func (m *Manager) tellSandbox(s *sandbox) {
	m.tell(s, string(s.id), upTo(&s.told, s.happened()))
}

// tellEnd is for a sandbox that is removed without having been stopped: it has
// stopped now.
//
// Preconditions: s.mu is held.
func (m *Manager) tellEnd(s *sandbox) {
	if s.told != 0 {
		m.tell(s, string(s.id), upTo(&s.told, EventStopped))
	}
}

// tellContainer is tellSandbox.
//
// Preconditions: c.mu is held.
func (m *Manager) tellContainer(c *container) {
	kinds := upTo(&c.told, c.happened())
	if c.rec.StartedAt.IsZero() || c.rec.Reason == ReasonStartError {
		kinds = slices.DeleteFunc(kinds, func(k EventKind) bool { return k == EventStarted })
	}
	m.tell(c.sandbox, string(c.id), kinds)
}

// happened is the last event. A sandbox that is stopping has not stopped before its
// containers have, and one that is removed not before they are gone.
//
// Preconditions: s.mu is held, or s is not yet shared.
func (s *sandbox) happened() EventKind {
	switch {
	case s.gone:
		return EventDeleted
	case s.status.Load() == nil:
		return 0
	case s.rec.State == SandboxNotReady:
		return EventStopped
	}
	return EventStarted
}

// happened is the last event.
//
// Preconditions: c.mu is held, or c is not yet shared.
func (c *container) happened() EventKind {
	switch {
	case c.gone:
		return EventDeleted
	case c.status.Load() == nil:
		return 0
	case c.rec.State == ContainerRunning:
		return EventStarted
	case c.rec.State == ContainerExited, c.rec.State == ContainerRemoving:
		return EventStopped
	}
	return EventCreated
}

// upTo is the events after *told up to now, which is told then. What was never
// shown to clients has none.
func upTo(told *EventKind, now EventKind) []EventKind {
	if *told == 0 && now == EventDeleted {
		*told = now
		return nil
	}
	var kinds []EventKind
	for *told < now {
		*told++
		kinds = append(kinds, *told)
	}
	return kinds
}
