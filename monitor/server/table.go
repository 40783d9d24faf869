package server

import (
	"os"
	"sync"
	"sync/atomic"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/monitor"
)

// container is one container that the monitor runs.
//
// What is above mu is set before the container is in the table and does not
// change. Operations that change the container are serialised by Server.ops;
// signals, resizes, log reopening and lists are not, so that nothing keeps a
// container from being killed.
type container struct {
	id      string
	pid     int
	cgroup  *cgroup
	io      *stdio
	pidfd   *os.File
	adopted bool   // then it is not our child
	began   uint64 // when its first process started, as in procStat
	rootfs  string // mount point

	// status is the read end of the first process's status pipe, nil once it has
	// been started. It belongs to whoever holds ops.
	status *os.File

	// gate is held for reading from before a start until its reply is sent, so
	// that an exit never overtakes that reply.
	gate sync.RWMutex

	exited chan struct{} // closed once exit is set and has been sent
	killed atomic.Bool   // SIGKILL was sent

	mu      sync.Mutex
	state   containerState       // +checklocks:mu
	failed  bool                 // +checklocks:mu; its program could not be executed
	exit    *monitor.Exit        // +checklocks:mu
	execs   map[string]*execProc // +checklocks:mu
	joining sync.WaitGroup       // execs that are being started
}

// containerState of a container only goes down this list.
type containerState int

const (
	stateCreated containerState = iota
	stateRunning
	stateExited
	stateDeleting
)

func (s containerState) String() string {
	return [...]string{"created", "running", "exited", "being deleted"}[s]
}

// wants fails with BadState unless the container is in one of the states.
func (c *container) wants(verb string, states ...containerState) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wantsLocked(verb, states...)
}

// wantsLocked is wants. Preconditions: c.mu is held.
func (c *container) wantsLocked(verb string, states ...containerState) error {
	for _, s := range states {
		if c.state == s {
			return nil
		}
	}
	return errkind.Errorf(errkind.BadState, "container %s is %v, cannot %s it", c.id, c.state, verb)
}

// advance moves the state down the list, never up.
func (c *container) advance(to containerState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state = max(c.state, to)
}

// execProc is one more process in a container.
type execProc struct {
	id      string
	pid     int
	pidfd   *os.File
	console *os.File // the pty's master, for Resize; nil without a terminal
	done    chan struct{}
	conn    *conn // who asked for it
}

// holder is the init of a sandbox's PID namespace.
type holder struct {
	id     string
	pid    int
	pidfd  *os.File
	cgroup *cgroup       // nil when adopted: then a release says which it is
	done   chan struct{} // closed when it has ended
}

// table is everything that the monitor runs.
type table struct {
	mu         sync.Mutex
	containers map[string]*container // +checklocks:mu
	holders    map[string]*holder    // +checklocks:mu
}

func newTable() *table {
	return &table{containers: map[string]*container{}, holders: map[string]*holder{}}
}

// container fails with NotFound when there is none.
func (t *table) container(id string) (*container, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c := t.containers[id]; c != nil {
		return c, nil
	}
	return nil, errkind.Errorf(errkind.NotFound, "the monitor has no container %s", id)
}

func (t *table) put(c *container) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.containers[c.id] = c
}

func (t *table) drop(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.containers, id)
}

// holder is nil when there is none.
func (t *table) holder(id string) *holder {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.holders[id]
}

func (t *table) putHolder(h *holder) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.holders[h.id] = h
}

func (t *table) dropHolder(h *holder) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.holders[h.id] == h {
		delete(t.holders, h.id)
	}
}

// snapshot is what there is now.
func (t *table) snapshot() (cs []*container, hs []*holder) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.containers {
		cs = append(cs, c)
	}
	for _, h := range t.holders {
		hs = append(hs, h)
	}
	return cs, hs
}

// checkID refuses what cannot be a folder's name or libcontainer does not take.
func checkID(id string) error {
	ok := id != "" && id != "." && id != ".." && len(id) <= 128
	for _, r := range id {
		ok = ok && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' ||
			r == '-' || r == '_' || r == '.')
	}
	if !ok {
		return errkind.Errorf(errkind.Invalid, "id %q: want 1 to 128 letters, digits, '.', '-' or '_'", id)
	}
	return nil
}
