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
	At         time.Time          // later than that of whatever was told before
	Sandbox    *SandboxStatus     // nil: it has been removed
	Containers []*ContainerStatus // newest first
}

// eventRoom is how many events may wait for a subscriber before it is given up:
// those of a few hundred pods that come and go at once.
const eventRoom = 2048

// Ends are told again to who subscribes in the next endsFor, at most the newest
// endsRoom of them. A client asks for everything and then subscribes, or cannot reach
// crid for a while, and nobody has told it what ended by itself in between; kubelet
// would not ask again for five minutes.
const (
	endsFor  = time.Minute
	endsRoom = eventRoom / 4
)

// pastEnd is a container or sandbox that has stopped, and is still there.
type pastEnd struct {
	at      time.Time
	id      string
	sandbox *sandbox
}

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
	ends        []pastEnd              // +checklocks:mu; of the last endsFor, the newest last
	dropped     uint64                 // +checklocks:mu; subscribers that were too slow
	ended       bool                   // +checklocks:mu
}

// WatchEvents calls subscribed, and then each for what happens from now on, in order,
// until one of them fails or ctx ends. It begins with the ends of the last minute, with
// how their pods are now: the client may have missed them, or know them. The error has kind
// Unavailable when too many events wait for each, which may take its time: others do not
// notice, and what waits is thrown away. So it has when crid ends.
func (m *Manager) WatchEvents(ctx context.Context, subscribed func() error, each func(*Event) error) error {
	s := m.subscribe()
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

func (m *Manager) subscribe() *subscription {
	s := &subscription{c: make(chan Event, eventRoom)}
	h := &m.events
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.subscribers == nil {
		h.subscribers = make(map[*subscription]bool)
	}
	h.subscribers[s] = true
	if h.ended {
		h.end(s, errClosed)
		return s
	}
	h.expire(m.o.Now())
	for _, e := range h.ends {
		s.c <- Event{EventStopped, e.id, m.podStatus(e.sandbox)} // endsRoom is less than there is
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
	for _, kind := range kinds {
		h.remember(kind, pastEnd{m.o.Now(), id, s})
		if len(h.subscribers) == 0 {
			continue
		}
		e := Event{kind, id, m.podStatus(s)}
		for sub := range h.subscribers {
			select {
			case sub.c <- e:
			default:
				h.drop(sub)
			}
		}
	}
}

// drop ends a subscription that is too slow. Its client has to ask for everything anyway,
// and may not read on for hours: what waits for it is not kept.
//
// Preconditions: h.mu is held.
func (h *events) drop(s *subscription) {
	h.dropped++
	h.end(s, errkind.Errorf(errkind.Unavailable,
		"the client of the events is too slow: %d of them wait for it; list everything and subscribe again", eventRoom))
	for range s.c { // it is closed
	}
}

// remember keeps an end until it is old, or what ended is gone.
//
// Preconditions: h.mu is held.
func (h *events) remember(kind EventKind, e pastEnd) {
	switch kind {
	case EventStopped:
		h.expire(e.at)
		h.ends = append(h.ends, e)
	case EventDeleted:
		h.ends = slices.DeleteFunc(h.ends, func(other pastEnd) bool { return other.id == e.id })
	}
}

// expire forgets old ends.
//
// Preconditions: h.mu is held.
func (h *events) expire(now time.Time) {
	h.ends = slices.DeleteFunc(h.ends, func(e pastEnd) bool { return now.Sub(e.at) > endsFor })
	h.ends = slices.Delete(h.ends, 0, max(0, len(h.ends)-endsRoom))
}

// rememberEnds is for what crid finds at its start: whether the one before has told of
// an exit that it recorded, nobody knows.
func (m *Manager) rememberEnds() {
	var ends []pastEnd
	now := m.o.Now()
	for _, c := range m.allContainers() {
		if r := c.record(); r.State == ContainerExited {
			at := r.FinishedAt
			if at.After(now) { // the clock was set back
				at = now
			}
			ends = append(ends, pastEnd{at, string(c.id), c.sandbox})
		}
	}
	slices.SortFunc(ends, func(a, b pastEnd) int { return a.at.Compare(b.at) })
	m.events.mu.Lock()
	defer m.events.mu.Unlock()
	for _, e := range ends {
		m.events.remember(EventStopped, e)
	}
	m.events.expire(now)
}

// podStatus has containers newest first: of those that have one name kubelet takes the
// first, and sorts them itself only where they come with an event.
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
		return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(a.ID, b.ID))
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
