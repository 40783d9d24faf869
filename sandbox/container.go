package sandbox

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/atomicfile"
	"github.com/cridproject/crid/internal/trace"
	"github.com/cridproject/crid/monitor"
	"github.com/cridproject/crid/sandbox/config"
)

// Reasons of an exit, in the words that kubelet knows.
const (
	ReasonCompleted  = "Completed"
	ReasonError      = "Error"
	ReasonOOMKilled  = "OOMKilled"
	ReasonStartError = "StartError"
	ReasonUnknown    = "Unknown"
)

// Exit codes that are not the program's.
const (
	codeStartError = 128
	codeUnknown    = 255
)

// ContainerStatus is a container as clients see it, at one moment. What it points
// to is shared and must not be changed.
type ContainerStatus struct {
	ID      config.ContainerID
	Sandbox config.SandboxID
	Config  config.Container
	State   ContainerState // ContainerCreated, ContainerRunning or ContainerExited

	CreatedAt  time.Time
	StartedAt  time.Time // zero: never
	FinishedAt time.Time // zero: not yet; else not before StartedAt
	ExitCode   int       // of the program, 128 + signal, 128 for StartError, 255 for Unknown
	Reason     string    // one of Reason…; "" until it has exited
	Message    string    // for people

	PID        int // of the first process; 0 when it has exited
	ImageID    string
	ImageRef   string
	Volumes    map[int]string   // images that are mounts: index in Config.Mounts → image ID
	LogPath    string           // absolute; "" means no log
	StopSignal string           // effective
	User       User             // effective
	Resources  config.Resources // what the kernel has, of what was asked for at creation and since

	cgroupsPath string // as in an OCI spec
}

// User is who a container's first process runs as.
type User struct {
	UID, GID int64
	Groups   []int64
}

// container is a live container.
type container struct {
	id       config.ContainerID
	sandbox  *sandbox
	config   config.Container
	*attempt // to make it; of a container read from a record it is over

	mu     sync.Mutex      // the record lock: held for a write of the record, never across other calls
	rec    containerRecord // +checklocks:mu
	hold   *monitor.Hold   // +checklocks:mu; crid's copy of its descriptors; nil when it has exited
	early  *monitor.Exit   // +checklocks:mu; told before Create or Start was answered
	asked  bool            // +checklocks:mu; the stop signal was sent
	killed bool            // +checklocks:mu; SIGKILL was sent
	gone   bool            // +checklocks:mu; the record is deleted
	synced bool            // +checklocks:mu; its exit would survive a power cut
	told   EventKind       // +checklocks:mu; the last event
	exited chan struct{}   // closed when it has exited, or was removed

	unsaved bool // +checklocks:mu; the record on disk is an older one

	corrupt bool // its record could not be read: kept aside at the end; immutable

	cpu cpuRate

	status atomic.Pointer[ContainerStatus] // nil: hidden from clients
	state  atomic.Pointer[ContainerState]  // of rec, for who does not hold mu
}

func newContainer(rec containerRecord, s *sandbox, a *attempt) *container {
	c := &container{id: rec.ID, sandbox: s, config: rec.Config, attempt: a, rec: rec, exited: make(chan struct{})}
	c.publish()
	c.told = c.happened()
	return c
}

// publish makes the record what readers see.
//
// Preconditions: c.mu is held, or c is not yet shared.
func (c *container) publish() {
	r := &c.rec
	state := r.State
	c.state.Store(&state)
	if c.gone || state == ContainerExited {
		defer c.closeExited() // who waits for it looks at the status next
	}
	if r.CreatedAt.IsZero() || c.gone {
		c.status.Store(nil)
		return
	}
	st := &ContainerStatus{
		ID:         c.id,
		Sandbox:    r.Sandbox,
		Config:     c.config,
		State:      state.public(),
		CreatedAt:  r.CreatedAt,
		ExitCode:   r.ExitCode,
		Reason:     r.Reason,
		Message:    r.Message,
		FinishedAt: r.FinishedAt,
		ImageID:    r.ImageID,
		ImageRef:   r.ImageRef,
		Volumes:    r.Volumes,
		LogPath:    r.LogPath,
		StopSignal: r.StopSignal,
		User:       User{r.User.UID, r.User.GID, r.User.Groups},
		Resources:  r.Actual,

		cgroupsPath: r.CgroupsPath,
	}
	if st.State != ContainerCreated {
		st.StartedAt = r.StartedAt // while it starts, it is an intention
	}
	if state.lives() {
		st.PID = r.PID
	}
	c.status.Store(st)
}

func (c *container) closeExited() {
	select {
	case <-c.exited:
	default:
		close(c.exited)
	}
}

// record is a copy of the record.
func (c *container) record() containerRecord {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec
}

// dropHold replaces the descriptors that crid keeps by h and closes those before.
func (c *container) dropHold(h *monitor.Hold) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.setHold(h)
}

// setHold is dropHold.
//
// Preconditions: c.mu is held.
func (c *container) setHold(h *monitor.Hold) {
	if c.hold != nil && c.hold != h {
		c.hold.Close()
	}
	c.hold = h
}

// forgetStdin closes crid's copy of a stdin that ends with the first client that
// is attached to it: the container would never see the end. It is called when
// such a client has been attached.
func (c *container) forgetStdin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.config.StdinOnce || c.hold == nil || c.hold.Stdin == nil {
		return
	}
	// Another Hold, because adopt may be reading this one.
	stdin, rest := c.hold.Stdin, *c.hold
	rest.Stdin = nil
	c.hold = &rest
	_ = stdin.Close()
}

// ownPIDs reports whether the container's processes end with its first one,
// because that is the init of their PID namespace.
func (c *container) ownPIDs() bool {
	return pidMode(&c.config, &c.sandbox.config) == config.NamespaceContainer
}

// pidMode is the container's own, else the sandbox's, else CRI's default.
func pidMode(c *config.Container, s *config.Sandbox) config.NamespaceMode {
	if mode := c.Security.Namespaces.PID; mode != "" {
		return mode
	}
	if mode := s.Namespaces.PID; mode != "" {
		return mode
	}
	return config.NamespacePod
}

// saveContainer writes the record as change makes it, publishes it and passes
// the failpoint name. When writing fails nothing has changed.
func (m *Manager) saveContainer(ctx context.Context, c *container, name string, change func(*containerRecord) error) error {
	_, end := trace.Start(ctx, "container.record", "step", name)
	c.mu.Lock()
	rec := c.rec
	err := change(&rec)
	if err == nil {
		err = m.store.put(containerKind, string(c.id), &rec, atomicfile.NoSync)
	}
	if err == nil {
		c.rec, c.unsaved = rec, false
		c.publish()
		m.tellContainer(c)
	}
	c.mu.Unlock()
	end(err)
	if err != nil {
		return err
	}
	return m.step(name)
}

// noteContainer is saveContainer for what has happened or goes down: it is true
// also when the disk is full.
//
// Preconditions: c.mu is held.
func (m *Manager) noteContainer(ctx context.Context, c *container, name string, change func(*containerRecord) error) error {
	if err := change(&c.rec); err != nil {
		return err
	}
	if !c.corrupt && !c.gone {
		err := m.store.put(containerKind, string(c.id), &c.rec, atomicfile.NoSync)
		if err != nil {
			klog.FromContext(ctx).Error(err, "Could not write record", "container", c.id)
		}
		c.unsaved = err != nil
	}
	c.publish()
	m.tellContainer(c)
	return m.step(name)
}

// on changes the state of a record.
func (r *containerRecord) on(e containerEvent) error {
	next, err := r.State.next(e)
	if err != nil {
		return fmt.Errorf("container %s: %w", r.ID.Short(), err)
	}
	r.State = next
	return nil
}

// Container is the status of the container with the ID id or, when there is only
// one, an ID that begins with id. Kinds are as with Sandbox.
func (m *Manager) Container(id string) (ContainerStatus, error) {
	c, err := m.findContainer(id)
	if err != nil {
		return ContainerStatus{}, err
	}
	if st := c.status.Load(); st != nil {
		return *st, nil
	}
	return ContainerStatus{}, notFound("container", id)
}

// Containers is the status of all containers, in no order.
func (m *Manager) Containers() []ContainerStatus {
	m.mu.RLock()
	defer m.mu.RUnlock()
	all := make([]ContainerStatus, 0, len(m.containers))
	for _, c := range m.containers {
		if st := c.status.Load(); st != nil {
			all = append(all, *st)
		}
	}
	return all
}

func (m *Manager) allContainers() []*container {
	m.mu.RLock()
	defer m.mu.RUnlock()
	all := make([]*container, 0, len(m.containers))
	for _, c := range m.containers {
		all = append(all, c)
	}
	return all
}

// containersOf is all of a sandbox's containers, also those being made.
func (m *Manager) containersOf(s *sandbox) []*container {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var all []*container
	for _, c := range m.containers {
		if c.sandbox == s {
			all = append(all, c)
		}
	}
	return all
}

func (m *Manager) findContainer(id string) (*container, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return find(m.containers, "container", id, func(c *container) bool { return c.status.Load() != nil })
}
