package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/atomicfile"
	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/trace"
	"github.com/cridproject/crid/sandbox/config"
)

// SandboxStatus is a sandbox as clients see it, at one moment. What it points to
// is shared and must not be changed.
type SandboxStatus struct {
	ID        config.SandboxID
	Config    config.Sandbox
	State     SandboxState // SandboxReady or SandboxNotReady
	CreatedAt time.Time
	IPs       []netip.Addr    // the pod's addresses, first the main one; none with the node's network or when stopped
	NetNS     string          // path of the network namespace; "" with the node's
	CNIResult json.RawMessage // what the network plugins answered; nil with the node's network or when stopped
	HolderPID int             // of the PID namespace's init; 0 without
}

// sandbox is a live sandbox.
type sandbox struct {
	id       config.SandboxID
	config   config.Sandbox
	*attempt // to make it; of a sandbox read from a record it is over

	mu      sync.Mutex    // the record lock: held for a write of the record, never across other calls
	rec     sandboxRecord // +checklocks:mu
	holder  *os.File      // +checklocks:mu; pidfd of the PID holder; nil without
	unsaved bool          // +checklocks:mu; the record on disk is an older one

	corrupt bool // its record could not be read: kept aside at the end; immutable
	gone    bool // +checklocks:mu; the record is deleted

	told EventKind // +checklocks:mu; the last event

	cpu cpuRate // of a cgroup of its own

	status atomic.Pointer[SandboxStatus] // nil: hidden from clients
	state  atomic.Pointer[SandboxState]  // of rec, for who does not hold mu
}

// attempt is one try to make a sandbox or container. Whoever asks for the same
// meanwhile waits for it.
type attempt struct {
	done chan struct{} // closed when it is over
	err  error         // why it failed; read after done
	// stop is nil once it is over: it holds the context of the request, and that the
	// buffers of the client's connection.
	stop atomic.Pointer[context.CancelCauseFunc]
}

func newAttempt(stop context.CancelCauseFunc) *attempt {
	a := &attempt{done: make(chan struct{})}
	a.stop.Store(&stop)
	return a
}

// finished is the attempt of what was read from a record.
func finished() *attempt {
	a := &attempt{done: make(chan struct{})}
	a.end()
	return a
}

// cancel makes it end soon; nothing happens when it is over.
func (a *attempt) cancel(cause error) {
	if stop := a.stop.Load(); stop != nil {
		(*stop)(cause)
	}
}

func (a *attempt) end() {
	a.stop.Store(nil)
	close(a.done)
}

func (a *attempt) over() bool {
	select {
	case <-a.done:
		return true
	default:
		return false
	}
}

// wait waits until the attempt is over or ctx ends.
func (a *attempt) wait(ctx context.Context, what string) error {
	select {
	case <-a.done:
		return a.err
	case <-ctx.Done():
		return fmt.Errorf("%s goes on, ask again with the same name and attempt: %w", what, context.Cause(ctx))
	}
}

func newSandbox(rec sandboxRecord, a *attempt) *sandbox {
	s := &sandbox{id: rec.ID, config: rec.Config, attempt: a, rec: rec}
	s.publish()
	s.told = s.happened()
	return s
}

// publish makes the record what readers see.
//
// Preconditions: s.mu is held, or s is not yet shared.
func (s *sandbox) publish() {
	state := s.rec.State
	s.state.Store(&state)
	if s.rec.CreatedAt.IsZero() || s.gone {
		s.status.Store(nil)
		return
	}
	st := &SandboxStatus{
		ID:        s.id,
		Config:    s.config,
		State:     s.rec.State.public(),
		CreatedAt: s.rec.CreatedAt,
		IPs:       s.rec.IPs,
		NetNS:     s.rec.NetNS,
		CNIResult: s.rec.CNIResult,
	}
	if s.rec.Holder != nil {
		st.HolderPID = s.rec.Holder.PID
	}
	if s.rec.Overhead != nil {
		st.Config.Overhead = s.rec.Overhead
	}
	if s.rec.Resources != nil {
		st.Config.Resources = s.rec.Resources
	}
	s.status.Store(st)
}

// record is a copy of the record.
func (s *sandbox) record() sandboxRecord {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rec
}

// setHolder replaces the pidfd of the PID holder and closes the one before.
func (s *sandbox) setHolder(f *os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holder != nil && s.holder != f {
		_ = s.holder.Close()
	}
	s.holder = f
}

// saveSandbox writes the record as change makes it, publishes it and passes the
// failpoint name. When writing fails nothing has changed.
func (m *Manager) saveSandbox(ctx context.Context, s *sandbox, name string, change func(*sandboxRecord) error) error {
	_, end := trace.Start(ctx, "sandbox.record", "step", name)
	s.mu.Lock()
	rec := s.rec
	err := change(&rec)
	if err == nil {
		err = m.store.put(sandboxKind, string(s.id), &rec, atomicfile.NoSync)
	}
	if err == nil {
		s.rec, s.unsaved = rec, false
		s.publish()
		m.tellSandbox(s)
	}
	s.mu.Unlock()
	end(err)
	if err != nil {
		return err
	}
	return m.step(name)
}

// noteSandbox is saveSandbox on the way down: a disk that is full must not keep
// pods from going. What was not written is done again after a crash.
func (m *Manager) noteSandbox(ctx context.Context, s *sandbox, name string, change func(*sandboxRecord) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := change(&s.rec); err != nil {
		return err
	}
	if !s.corrupt && !s.gone {
		err := m.store.put(sandboxKind, string(s.id), &s.rec, atomicfile.NoSync)
		if err != nil {
			klog.FromContext(ctx).Error(err, "Could not write record", "sandbox", s.id)
		}
		s.unsaved = err != nil
	}
	s.publish()
	m.tellSandbox(s)
	return m.step(name)
}

// createdAt is the time to be shown for what is made now in a pod: later than of
// all that the pod has, also when the clock was set back. kubelet takes the newest
// sandbox, and each container's newest, for the one that counts.
func (m *Manager) createdAt(w *config.Sandbox) time.Time {
	at := m.o.Now()
	after := func(of *config.Sandbox, made time.Time) {
		same := of.UID == w.UID && of.Name == w.Name && of.Namespace == w.Namespace
		if same && !at.After(made) {
			at = made.Add(time.Nanosecond)
		}
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, s := range m.sandboxes {
		if st := s.status.Load(); st != nil {
			after(&s.config, st.CreatedAt)
		}
	}
	for _, c := range m.containers {
		if st := c.status.Load(); st != nil {
			after(&c.sandbox.config, st.CreatedAt)
		}
	}
	return at
}

// on changes the state of a record.
func (r *sandboxRecord) on(e sandboxEvent) error {
	next, err := r.State.next(e)
	if err != nil {
		return fmt.Errorf("sandbox %s: %w", r.ID.Short(), err)
	}
	r.State = next
	return nil
}

// Sandbox is the status of the sandbox with the ID id or, when there is only
// one, an ID that begins with id. The kind is NotFound when there is none,
// Invalid when there are several. Sandboxes that are still being made are not seen.
func (m *Manager) Sandbox(id string) (SandboxStatus, error) {
	s, err := m.findSandbox(id)
	if err != nil {
		return SandboxStatus{}, err
	}
	if st := s.status.Load(); st != nil {
		return *st, nil
	}
	return SandboxStatus{}, notFound("sandbox", id)
}

// Sandboxes is the status of all sandboxes, in no order.
func (m *Manager) Sandboxes() []SandboxStatus {
	m.mu.RLock()
	defer m.mu.RUnlock()
	all := make([]SandboxStatus, 0, len(m.sandboxes))
	for _, s := range m.sandboxes {
		if st := s.status.Load(); st != nil {
			all = append(all, *st)
		}
	}
	return all
}

func (m *Manager) allSandboxes() []*sandbox {
	m.mu.RLock()
	defer m.mu.RUnlock()
	all := make([]*sandbox, 0, len(m.sandboxes))
	for _, s := range m.sandboxes {
		all = append(all, s)
	}
	return all
}

func (m *Manager) findSandbox(id string) (*sandbox, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return find(m.sandboxes, "sandbox", id, func(s *sandbox) bool { return s.status.Load() != nil })
}

// find looks up an ID, or the only one that begins with id and is seen.
func find[K ~string, V any](all map[K]V, noun, id string, seen func(V) bool) (V, error) {
	var none V
	if id == "" {
		return none, errkind.Errorf(errkind.Invalid, "%s id is empty", noun)
	}
	if v, ok := all[K(id)]; ok {
		return v, nil
	}
	found, n := none, 0
	for k, v := range all {
		if strings.HasPrefix(string(k), id) && seen(v) {
			found = v
			n++
		}
	}
	switch n {
	case 0:
		return none, notFound(noun, id)
	case 1:
		return found, nil
	}
	return none, errkind.Errorf(errkind.Invalid, "%s id %q: %d of them begin so; give more of it", noun, id, n)
}

func notFound(noun, id string) error { return errkind.Errorf(errkind.NotFound, "no %s %q", noun, id) }

// newID is 64 random hexadecimal digits.
func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// Where a sandbox's parts are, by its ID alone, so that they are found even when
// the record cannot be read.

func (m *Manager) sandboxDir(id config.SandboxID) string {
	return filepath.Join(m.o.StateDir, "sandboxes", string(id))
}

func (m *Manager) sandboxFile(id config.SandboxID, name string) string {
	return filepath.Join(m.sandboxDir(id), name)
}

func (m *Manager) netNS(id config.SandboxID) string {
	return filepath.Join(m.o.NetNSDir, "crid-"+string(id))
}

// Names of a sandbox's files, below sandboxDir.
const (
	fileResolvConf = "resolv.conf"
	fileHosts      = "hosts"
	fileHostname   = "hostname"
	fileShm        = "shm"
	fileIPC        = "ns/ipc"
	fileUTS        = "ns/uts"
	fileUser       = "ns/user"
)

// cgroupsPath is the cgroup of a container or holder, as in an OCI spec.
func (m *Manager) cgroupsPath(s *config.Sandbox, name string) string {
	parent := m.cgroupParent(s)
	if m.o.SystemdCgroup {
		// kubelet gives the whole path; systemd knows a slice by its name.
		return filepath.Base(parent) + ":crid:" + name
	}
	return filepath.Join("/", parent, "crid-"+name)
}

// cgroupParent is the pod's cgroup, which is kubelet's.
func (m *Manager) cgroupParent(s *config.Sandbox) string {
	if s.CgroupParent != "" {
		return s.CgroupParent
	}
	return m.o.CgroupParent
}
