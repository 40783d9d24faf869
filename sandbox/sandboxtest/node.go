// Package sandboxtest has a node for tests of package sandbox and of what uses
// it: a Manager on a monitor, a network, images and a kernel in memory, and
// records on disk. It needs no root.
//
//	n := sandboxtest.New(t)
//	n.FailAt("sandbox.run.network")    // or Network.FailAt("attach", err)
//	…
//	n.CrashAt("container.create.monitor")
//	…
//	n.Restart()                        // another crid on the same node
//	if left := n.Residue(); len(left) > 0 { … }
package sandboxtest

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cridproject/crid/cni"
	"github.com/cridproject/crid/image"
	"github.com/cridproject/crid/monitor"
	"github.com/cridproject/crid/monitor/monitortest"
	"github.com/cridproject/crid/sandbox"
	"github.com/cridproject/crid/sandbox/config"
	"github.com/cridproject/crid/sandbox/spec"
)

// ImageRef is the image that every node has.
const ImageRef = "registry.k8s.io/busybox:1"

// Node is a machine in memory with a crid on it.
type Node struct {
	T       testing.TB
	Dir     string
	Manager *sandbox.Manager
	Monitor *monitortest.Fake
	Network *Network
	Images  *Images
	Kernel  *Kernel
	Figures *Figures
	Options monitortest.Options // of Monitor

	life  *life
	tweak []func(*sandbox.Options)
	boots int

	mu    sync.Mutex
	fail  map[string]error // +checklocks:mu; by step
	crash string           // +checklocks:mu; the step at which the present crid crashes
	nth   int              // +checklocks:mu; or the how many-th step from now on; 0: none
	steps []string         // +checklocks:mu
}

// life is one run of crid, from its start to its crash.
type life struct {
	once sync.Once
	over chan struct{}
}

func (l *life) end() { l.once.Do(func() { close(l.over) }) }

func (l *life) dead() bool {
	select {
	case <-l.over:
		return true
	default:
		return false
	}
}

// New is a node with a crid that has started. It ends with the test. tweak
// changes the options of each crid started.
func New(t testing.TB, tweak ...func(*sandbox.Options)) *Node {
	return NewWith(t, monitortest.Options{}, tweak...)
}

// NewWith is New with programs for the containers.
func NewWith(t testing.TB, o monitortest.Options, tweak ...func(*sandbox.Options)) *Node {
	t.Helper()
	n := &Node{
		T: t, Dir: t.TempDir(), Options: o, tweak: tweak,
		Monitor: monitortest.New(t, o), Network: &Network{}, Images: &Images{}, Kernel: &Kernel{}, Figures: &Figures{},
		fail: map[string]error{},
	}
	n.Images.Add(ImageRef, image.Image{
		ID:          "sha256:1111111111111111111111111111111111111111111111111111111111111111",
		RepoTags:    []string{ImageRef},
		RepoDigests: []string{"registry.k8s.io/busybox@sha256:2222222222222222222222222222222222222222222222222222222222222222"},
		Config:      image.Config{Cmd: []string{"sleep", "1000"}},
	})
	n.Kernel.reboot("boot-0")
	t.Cleanup(func() { n.Manager.Close() })
	n.start()
	return n
}

// start starts a crid.
func (n *Node) start() {
	n.T.Helper()
	m, err := n.TryStart()
	if err != nil {
		n.T.Fatalf("sandbox.New = %v", err)
	}
	n.Manager = m
}

// TryStart starts a crid and does not make it the node's.
func (n *Node) TryStart() (*sandbox.Manager, error) {
	l := &life{over: make(chan struct{})}
	n.life = l
	o := sandbox.Options{
		Root: filepath.Join(n.Dir, "root"), StateDir: filepath.Join(n.Dir, "state"), NetNSDir: filepath.Join(n.Dir, "netns"),
		EtcDir:      filepath.Join(n.Dir, "etc"),
		Network:     liveNetwork{n.Network, l},
		Images:      liveImages{n.Images, l},
		Kernel:      liveKernel{n.Kernel, l},
		Figures:     n.Figures,
		Host:        spec.Host{NodeHostname: "node", BoundingCaps: []string{"CAP_CHOWN"}},
		KillTimeout: 5 * time.Second,
		ExecDrain:   50 * time.Millisecond,

		ForwardDial:  500 * time.Millisecond,
		ForwardStall: 50 * time.Millisecond,
		Step:         func(name string) error { return n.step(l, name) },
		ConnectMonitor: func(_ context.Context, onExit func(monitor.Exit)) (sandbox.Monitor, error) {
			if l.dead() {
				return nil, errCrashed
			}
			return n.Monitor.Connect(monitor.ClientOptions{OnExit: onExit}), nil
		},
	}
	for _, f := range n.tweak {
		f(&o)
	}
	return sandbox.New(context.Background(), o)
}

// step is called by the manager at each failpoint. l is the crid that calls.
func (n *Node) step(l *life, name string) error {
	if l.dead() {
		return errCrashed
	}
	n.mu.Lock()
	n.steps = append(n.steps, name)
	err := n.fail[name]
	crash := n.crash == name
	if n.nth > 0 {
		n.nth--
		crash = crash || n.nth == 0
	}
	n.mu.Unlock()
	if crash {
		l.end()
		n.Monitor.Disconnect()
		return errCrashed
	}
	return err
}

// FailAt makes the manager fail at a step, until Heal.
func (n *Node) FailAt(step string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fail[step] = ErrInjected
}

// CrashAt ends crid at a step: from then on nothing that it does has an effect.
func (n *Node) CrashAt(step string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.crash = step
}

// CrashAfter is CrashAt at the n-th step from now on, whatever its name.
func (n *Node) CrashAfter(steps int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nth = steps
}

// Heal undoes FailAt, CrashAt and CrashAfter.
func (n *Node) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.fail)
	n.crash, n.nth = "", 0
}

// Crashed reports whether crid has ended at the step of CrashAt.
func (n *Node) Crashed() bool { return n.life.dead() }

// Context is for requests to the crid that runs now: it ends with that crid.
func (n *Node) Context() context.Context {
	ctx, cancel := context.WithCancel(n.T.Context())
	over := n.life.over
	go func() {
		defer cancel()
		select {
		case <-over:
		case <-ctx.Done():
		}
	}()
	return ctx
}

// Steps is all steps so far, in order; the list starts anew.
func (n *Node) Steps() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	steps := n.steps
	n.steps = nil
	return steps
}

// Kill ends crid as kill -9 does, if it has not ended yet.
func (n *Node) Kill() {
	n.life.end()
	n.Monitor.Disconnect()
	n.Manager.Close() // its goroutines and descriptors would be gone
}

// Restart kills crid and starts another.
func (n *Node) Restart() {
	n.T.Helper()
	n.Kill()
	n.Heal()
	n.start()
}

// Reboot is Restart with everything gone that a reboot takes.
func (n *Node) Reboot() {
	n.T.Helper()
	n.Kill()
	n.Heal()
	n.boots++
	n.Kernel.reboot(fmt.Sprintf("boot-%d", n.boots))
	n.Monitor = monitortest.New(n.T, n.Options)
	if err := os.RemoveAll(filepath.Join(n.Dir, "state")); err != nil {
		n.T.Fatal(err)
	}
	n.start()
}

// Residue is what is left of pods and containers, on the node and in crid.
func (n *Node) Residue() []string {
	var left []string
	for _, dir := range []string{"root/sandboxes", "root/containers", "root/quarantine", "state/sandboxes"} {
		for _, name := range names(n.T, filepath.Join(n.Dir, dir)) {
			left = append(left, dir+"/"+name)
		}
	}
	for what, ids := range map[string][]string{
		"attachment": n.Network.Attached(), "rootfs": n.Images.Prepared(), "mount": n.Kernel.mounts(), "monitor": n.Monitor.Residue(),
	} {
		for _, id := range ids {
			left = append(left, what+" "+id)
		}
	}
	for _, s := range n.Manager.Sandboxes() {
		left = append(left, "sandbox "+string(s.ID))
	}
	for _, c := range n.Manager.Containers() {
		left = append(left, "container "+string(c.ID))
	}
	slices.Sort(left)
	return left
}

func names(t testing.TB, dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	var found []string
	for _, e := range entries {
		found = append(found, e.Name())
	}
	return found
}

// Pod is a pod sandbox that has all parts: a network, IPC and UTS namespaces, and
// a PID namespace of the pod.
func Pod(name string) config.Sandbox {
	return config.Sandbox{
		Name: name, Namespace: "default", UID: "uid-" + name, Hostname: name,
		Labels:       map[string]string{"app": name},
		PortMappings: []config.PortMapping{{Protocol: "tcp", ContainerPort: 80, HostPort: hostPort(name)}},
		Namespaces:   config.Namespaces{Network: config.NamespacePod, PID: config.NamespacePod, IPC: config.NamespacePod},
	}
}

// Container is a container that runs until it is told.
func Container(name string) config.Container {
	return config.Container{
		Name: name, Image: config.Image{Ref: ImageRef},
		Security: config.Security{Namespaces: config.Namespaces{Network: config.NamespacePod, PID: config.NamespaceContainer, IPC: config.NamespacePod}},
	}
}

// The parts as one crid sees them: when it has crashed, it can change nothing.

type liveNetwork struct {
	*Network
	l *life
}

func (n liveNetwork) Attach(ctx context.Context, a cni.Attachment) (cni.Result, error) {
	if n.l.dead() {
		return cni.Result{}, errCrashed
	}
	return n.Network.Attach(ctx, a)
}

func (n liveNetwork) Detach(ctx context.Context, a cni.Attachment) error {
	if n.l.dead() {
		return errCrashed
	}
	return n.Network.Detach(ctx, a)
}

func (n liveNetwork) GC(ctx context.Context, live []cni.Attachment) error {
	if n.l.dead() {
		return errCrashed
	}
	return n.Network.GC(ctx, live)
}

type liveImages struct {
	*Images
	l *life
}

func (i liveImages) Prepare(ctx context.Context, id image.ID, key string) (image.Rootfs, error) {
	if i.l.dead() {
		return image.Rootfs{}, errCrashed
	}
	return i.Images.Prepare(ctx, id, key)
}

func (i liveImages) Release(ctx context.Context, key string) error {
	if i.l.dead() {
		return errCrashed
	}
	return i.Images.Release(ctx, key)
}

type liveKernel struct {
	*Kernel
	l *life
}

func (k liveKernel) Pin(p sandbox.Pins) error {
	if k.l.dead() {
		return errCrashed
	}
	return k.Kernel.Pin(p)
}

func (k liveKernel) Unpin(path string) error {
	if k.l.dead() {
		return errCrashed
	}
	return k.Kernel.Unpin(path)
}

func (k liveKernel) MountShm(path string, uid, gid uint32) error {
	if k.l.dead() {
		return errCrashed
	}
	return k.Kernel.MountShm(path, uid, gid)
}

func (k liveKernel) Unmount(path string) error {
	if k.l.dead() {
		return errCrashed
	}
	return k.Kernel.Unmount(path)
}

// hostPort is one for each name, more or less.
func hostPort(name string) uint16 {
	sum := fnv.New32a()
	_, _ = sum.Write([]byte(name))
	return uint16(1024 + sum.Sum32()%60000)
}
