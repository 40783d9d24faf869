package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"github.com/cridproject/crid/cni"
	"github.com/cridproject/crid/image"
	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/failpoint"
	"github.com/cridproject/crid/internal/keylock"
	"github.com/cridproject/crid/monitor"
	"github.com/cridproject/crid/sandbox/config"
	"github.com/cridproject/crid/sandbox/spec"
	"github.com/cridproject/crid/sandbox/spec/host"
)

// Network is what the manager needs of package cni.
type Network interface {
	// Plan picks the network for a; what it returns is recorded before Attach.
	Plan(a cni.Attachment) (cni.Attachment, error)
	// Attach is not idempotent: after an error Detach comes first.
	Attach(ctx context.Context, a cni.Attachment) (cni.Result, error)
	// Detach undoes whatever of Attach was done. Idempotent; the namespace may be gone.
	Detach(ctx context.Context, a cni.Attachment) error
	// GC releases what belongs to none of live. No Attach runs beside it.
	GC(ctx context.Context, live []cni.Attachment) error
}

// Images is what the manager needs of package image.
type Images interface {
	// Image is the image of an ID or reference, of kind NotFound when it has not
	// been pulled. It does not wait.
	Image(refOrID string) (image.Image, error)
	// Prepare makes the folders of a container's root file system. Idempotent for each key.
	Prepare(ctx context.Context, id image.ID, key string) (image.Rootfs, error)
	// PrepareVolume is the layers of an image to be mounted read-only, uppermost
	// first. The image cannot be removed until Release. Idempotent for each key.
	PrepareVolume(ctx context.Context, id image.ID, key string) (lower []string, err error)
	// Release undoes either. Idempotent.
	Release(ctx context.Context, key string) error
	// Prepared is the keys of all that the two made and Release did not remove.
	Prepared() []string
	// Written is the size of what was written under a key. It does not wait.
	Written(key string) image.FsUsage
}

// Monitor is what the manager needs of a connection to crid-monitor. Calls on
// a lost connection give kind Unavailable.
type Monitor interface {
	Create(ctx context.Context, r monitor.CreateRequest) (monitor.CreateReply, *monitor.Hold, error)
	Start(ctx context.Context, id string) error
	Exec(ctx context.Context, r monitor.ExecRequest, stdio [3]*os.File) (*monitor.ExecProcess, error)
	Attach(ctx context.Context, r monitor.AttachRequest, stdio [3]*os.File) error
	Signal(ctx context.Context, r monitor.SignalRequest) error
	Resize(ctx context.Context, r monitor.ResizeRequest) error
	ReopenLog(ctx context.Context, id string) error
	Update(ctx context.Context, r monitor.UpdateRequest) (monitor.UpdateReply, error)
	Delete(ctx context.Context, r monitor.DeleteRequest) error
	Hold(ctx context.Context, r monitor.HoldRequest) (monitor.HoldReply, *os.File, error)
	Release(ctx context.Context, r monitor.ReleaseRequest) error
	Adopt(ctx context.Context, r monitor.AdoptRequest, h *monitor.Hold) error
	List(ctx context.Context) ([]monitor.Listed, error)
	Ack(ctx context.Context, id string) error
	// Done is closed when the connection is lost.
	Done() <-chan struct{}
	Close()
}

// Options of a Manager. All are required but those that say what zero means.
type Options struct {
	Root     string // of the records, on disk
	StateDir string // of the sandboxes' own files, on a tmpfs: gone after a reboot
	NetNSDir string // where network namespaces are pinned

	Network Network
	Images  Images
	Devices Devices // of the Container Device Interface; nil: containers that want one are refused
	// ConnectMonitor connects to the monitor, and starts it when none runs. It is
	// called again whenever the connection is lost. onExit may be called before
	// it returns.
	ConnectMonitor func(ctx context.Context, onExit func(monitor.Exit)) (Monitor, error)

	CgroupParent  string // of sandboxes that name none; "" means /crid, with systemd crid.slice
	SystemdCgroup bool   // the cgroup driver is systemd, else cgroupfs
	Host          spec.Host

	// NoUserNS is why pods cannot have user namespaces on this node; nil means that they can.
	NoUserNS error

	// StrictMounts refuses a mount whose source is missing; without it the
	// source is made, a folder of mode 0755.
	StrictMounts bool

	// LogRate is how many bytes a second go into a container's log; what is more is
	// dropped, and the log says how much. 0 means no limit.
	LogRate int64

	HostPathTimeout time.Duration // for a file system to answer about a mount's source; 0 means 10 s
	ExecDrain       time.Duration // for output to end after an exec has exited; 0 means 1 s
	ForwardDial     time.Duration // for each of a pod's loopback addresses to take a connection, which only a full backlog delays; 0 means 5 s
	ForwardStall    time.Duration // for a server in a pod to read what a port-forward has for it; 0 means 30 s
	KillTimeout     time.Duration // for a container to exit after SIGKILL; 0 means 10 s
	MonitorTimeout  time.Duration // for a monitor that has died to be replaced, while requests wait; 0 means 10 s
	RecoverTimeout  time.Duration // for New to finish what was half done; it goes on behind. 0 means 5 s

	Kernel  Kernel           // nil means that of this machine
	Figures Figures          // nil means those of this machine
	EtcDir  string           // where resolv.conf and hosts are copied from; "" means /etc
	Now     func() time.Time // nil means time.Now
	// Step is called at each failpoint, and before each write of a record, with
	// its name; an error is as good as one of the operation that follows. For
	// tests; nil means none.
	Step func(name string) error
}

// Manager is the sandboxes and containers of the node. Its methods may be called
// concurrently. See the package comment for locks and crashes.
type Manager struct {
	o      Options
	store  store
	bootID string
	verify bool // CRID_VERIFY=1
	paths  pathProber

	// What is worked out once for many containers.
	appArmor host.AppArmor
	filters  spec.Filters

	recent recent // figures

	// sandboxOps and containerOps serialise the operations on one sandbox and on
	// one container. They are held across calls to plugins and to the monitor.
	sandboxOps   keylock.Map[config.SandboxID]
	containerOps keylock.Map[config.ContainerID]

	mu         sync.RWMutex                      // never held across I/O; the innermost lock
	sandboxes  map[config.SandboxID]*sandbox     // +checklocks:mu
	containers map[config.ContainerID]*container // +checklocks:mu
	sandboxKey map[string]*sandbox               // +checklocks:mu; by config.Sandbox.Key
	contKey    map[string]*container             // +checklocks:mu; by config.Container.Key
	closed     bool                              // +checklocks:mu
	events     events                            // to who has subscribed

	monitor        atomic.Pointer[connection] // nil while there is none
	monitorChanged chan struct{}              // +checklocks:mu; closed when monitor is another
	loaded         chan struct{}              // closed when the records are read: exits can be told
	collected      chan struct{}              // closed when Network.GC has returned: Attach may begin
	wake           chan struct{}              // has room for one: something is left to tear down
	background     sync.WaitGroup             // all goroutines; add under mu, while not closed
	stop           context.CancelFunc         // ends tend
	base           context.Context            //nolint:containedctx // the life of the manager, for its own goroutines
}

// connection is a monitor that answers.
type connection struct{ Monitor }

// Limits of work that outlives its client. CNI plugins have limits of their own.
const (
	createLimit = 10 * time.Minute
	downLimit   = 10 * time.Minute
	closeLimit  = 20 * time.Second
	gcLimit     = 30 * time.Second
	startLimit  = 2 * time.Minute
	exitLimit   = time.Minute // for what crid does after an exit
)

// New reads the records, finds out what became of everything while no crid
// was running, finishes what was half done, and returns a Manager that works.
// It fails when a folder cannot be used or the monitor cannot be reached; a
// record that cannot be read only costs the pod that it is of.
//
// Work in the background ends with Close, and not with ctx.
func New(ctx context.Context, o Options) (*Manager, error) {
	m, err := prepare(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := m.recover(ctx); err != nil {
		m.Close()
		return nil, err
	}
	m.spawn(func() { m.tend(m.base) })
	return m, nil
}

// prepare checks o and makes the folders.
func prepare(ctx context.Context, o Options) (*Manager, error) {
	if o.Network == nil || o.Images == nil || o.ConnectMonitor == nil {
		return nil, errors.New("sandbox manager: network, images and monitor are required")
	}
	for name, dir := range map[string]string{"root": o.Root, "state": o.StateDir, "network namespace": o.NetNSDir} {
		if !filepath.IsAbs(dir) {
			return nil, errkind.Errorf(errkind.Invalid, "%s folder %q: must be an absolute path", name, dir)
		}
	}
	orDefault(&o.HostPathTimeout, 10*time.Second)
	orDefault(&o.ExecDrain, time.Second)
	orDefault(&o.ForwardDial, 5*time.Second)
	orDefault(&o.ForwardStall, 30*time.Second)
	orDefault(&o.KillTimeout, 10*time.Second)
	orDefault(&o.MonitorTimeout, 10*time.Second)
	orDefault(&o.RecoverTimeout, 5*time.Second)
	orDefault(&o.EtcDir, "/etc")
	if o.Kernel == nil {
		o.Kernel = kernel{}
	}
	if o.Figures == nil {
		o.Figures = newMachine()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.CgroupParent == "" {
		o.CgroupParent = "/crid"
		if o.SystemdCgroup {
			o.CgroupParent = "crid.slice"
		}
	}
	m := &Manager{
		o:              o,
		recent:         recent{figures: o.Figures, now: o.Now},
		bootID:         o.Kernel.BootID(),
		verify:         os.Getenv("CRID_VERIFY") == "1",
		sandboxes:      map[config.SandboxID]*sandbox{},
		containers:     map[config.ContainerID]*container{},
		sandboxKey:     map[string]*sandbox{},
		contKey:        map[string]*container{},
		loaded:         make(chan struct{}),
		collected:      make(chan struct{}),
		wake:           make(chan struct{}, 1),
		monitorChanged: make(chan struct{}),
	}
	m.store = store{root: o.Root, step: m.step}
	m.base, m.stop = context.WithCancel(context.WithoutCancel(ctx))
	if err := m.store.open(); err != nil {
		return nil, err
	}
	dir := filepath.Join(o.StateDir, "sandboxes")
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("make folder of the sandboxes' files: %w", err)
	}
	// Before the monitor starts, which has mounts of its own and sees only
	// what is shared with it.
	for _, d := range []string{dir, o.NetNSDir} {
		if err := o.Kernel.Share(d); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func orDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// Close ends what the manager does in the background and waits for it: an
// operation under way is carried to its end first, if it does not take long.
// What is then half done is finished by the next New. Sandboxes and containers
// are not touched. No method may be called afterwards, but readers.
func (m *Manager) Close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.stop()
	idle := make(chan struct{})
	go func() {
		m.background.Wait()
		close(idle)
	}()
	t := time.NewTimer(closeLimit)
	defer t.Stop()
	select {
	case <-idle:
	case <-t.C:
		klog.FromContext(m.base).Info("Leaving operations that do not end to the next start")
	}
	if c := m.setMonitor(nil); c != nil {
		c.Close()
	}
	for _, c := range m.allContainers() {
		c.dropHold(nil)
	}
	for _, s := range m.allSandboxes() {
		s.setHolder(nil)
	}
}

// spawn runs f on a goroutine that Close waits for. After Close it does nothing
// and returns false.
func (m *Manager) spawn(f func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.background.Go(f)
	return true
}

// detach is the one way to go on when the client is gone. kubelet's deadlines are
// shorter than some plugins' and its next call is the same request again: what
// was begun is worth more than what it would be to begin anew, and killing a
// plugin halfway costs an address. The limit bounds it instead.
func detach(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), limit)
}

// outlive runs work with a context that does not end with the client's, and
// waits for it as long as the client does.
func (m *Manager) outlive(ctx context.Context, what string, limit time.Duration, work func(context.Context) error) error {
	done := make(chan error, 1)
	ok := m.spawn(func() {
		ctx, cancel := detach(ctx, limit)
		defer cancel()
		done <- work(ctx)
	})
	if !ok {
		return errClosed
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%s goes on: %w", what, context.Cause(ctx))
	}
}

var errClosed = errkind.Errorf(errkind.Unavailable, "crid is ending")

// step is a failpoint.
func (m *Manager) step(name string) error {
	if m.o.Step != nil {
		if err := m.o.Step(name); err != nil {
			return err
		}
	}
	return failpoint.Hit(name)
}

// live is the monitor that answers now.
func (m *Manager) live() (Monitor, error) {
	if c := m.monitor.Load(); c != nil {
		return c.Monitor, nil
	}
	return nil, errNoMonitor
}

var errNoMonitor = errkind.Errorf(errkind.Unavailable, "crid-monitor is not there; crid is connecting to it again, see its log")

// reach is live for requests: while crid connects to the monitor again, which
// takes a moment when it has died, they wait instead of failing.
func (m *Manager) reach(ctx context.Context) (Monitor, error) {
	limit := time.NewTimer(m.o.MonitorTimeout)
	defer limit.Stop()
	for {
		m.mu.RLock()
		changed := m.monitorChanged
		m.mu.RUnlock()
		c := m.monitor.Load()
		if c != nil && !lost(c) { // else tend has not seen it yet
			return c.Monitor, nil
		}
		select {
		case <-changed:
		case <-limit.C:
			return nil, errNoMonitor
		case <-m.base.Done():
			return nil, errClosed
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for crid-monitor: %w", context.Cause(ctx))
		}
	}
}

// lockContainer takes the container's operation lock, and finds the monitor
// before that: connecting again waits for who holds the lock (meet), so who holds
// it must not wait for the connection. On a connection that is lost meanwhile,
// calls fail at once.
func (m *Manager) lockContainer(ctx context.Context, c *container) (mon Monitor, unlock func(), err error) {
	for {
		if mon, err = m.reach(ctx); err != nil {
			return nil, nil, err
		}
		if unlock, err = m.containerOps.Lock(ctx, c.id); err != nil {
			return nil, nil, err
		}
		if now := m.monitor.Load(); now != nil && now.Monitor == mon && !lost(mon) {
			return mon, unlock, nil
		}
		unlock()
	}
}

// lost reports whether the connection is.
func lost(mon Monitor) bool {
	select {
	case <-mon.Done():
		return true
	default:
		return false
	}
}

// setMonitor puts c, or nil for none, in place of the monitor that was used.
func (m *Manager) setMonitor(c *connection) (was *connection) {
	m.mu.Lock()
	defer m.mu.Unlock()
	close(m.monitorChanged)
	m.monitorChanged = make(chan struct{})
	return m.monitor.Swap(c)
}

// later asks tend to try again what could not be torn down.
func (m *Manager) later() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func podRef(s *config.Sandbox) klog.ObjectRef { return klog.KRef(s.Namespace, s.Name) }
