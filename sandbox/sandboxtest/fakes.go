package sandboxtest

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/cridproject/crid/cni"
	"github.com/cridproject/crid/image"
	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/sandbox"
)

// Network is a network in memory. Operations for Faults: plan, attach, detach, gc.
type Network struct {
	Faults
	// OnAttach, if set, is called first thing in Attach.
	OnAttach func(cni.Attachment)

	mu       sync.Mutex
	attached map[string]cni.Attachment
	dels     map[string]int
	live     [][]cni.Attachment // what each GC was told
	last     byte
}

// Plan gives every attachment the same configuration.
func (n *Network) Plan(a cni.Attachment) (cni.Attachment, error) {
	err := n.do(context.Background(), "plan", func() error {
		a.IfName, a.Config = "eth0", []byte(`{"name":"fake"}`)
		return nil
	})
	return a, err
}

// Attach is not idempotent.
func (n *Network) Attach(ctx context.Context, a cni.Attachment) (cni.Result, error) {
	if n.OnAttach != nil {
		n.OnAttach(a)
	}
	var r cni.Result
	err := n.do(ctx, "attach", func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		if _, ok := n.attached[a.ID]; ok {
			return fmt.Errorf("fake network: %s is attached already", a.ID)
		}
		if n.attached == nil {
			n.attached = map[string]cni.Attachment{}
		}
		n.attached[a.ID] = a
		n.last++
		r = cni.Result{IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, n.last})}, Raw: []byte(`{"cniVersion":"1.1.0"}`)}
		return nil
	})
	return r, err
}

// Detach is idempotent.
func (n *Network) Detach(ctx context.Context, a cni.Attachment) error {
	return n.do(ctx, "detach", func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.attached, a.ID)
		if n.dels == nil {
			n.dels = map[string]int{}
		}
		n.dels[a.ID]++
		return nil
	})
}

// GC remembers what it was told, and detaches the rest.
func (n *Network) GC(ctx context.Context, live []cni.Attachment) error {
	return n.do(ctx, "gc", func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.live = append(n.live, live)
		maps.DeleteFunc(n.attached, func(id string, _ cni.Attachment) bool {
			return !slices.ContainsFunc(live, func(a cni.Attachment) bool { return a.ID == id })
		})
		return nil
	})
}

// Attached is the IDs of what is attached, sorted.
func (n *Network) Attached() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Sorted(maps.Keys(n.attached))
}

// Detached is how often a sandbox was detached.
func (n *Network) Detached(id string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dels[id]
}

// Collected is what each GC was told to keep.
func (n *Network) Collected() [][]cni.Attachment {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.live)
}

// Images is an image store in memory. Operations for Faults: image, prepare, release.
type Images struct {
	Faults
	mu       sync.Mutex
	images   map[string]image.Image
	prepared map[string]bool
}

// Add makes an image known by its ID and by name.
func (i *Images) Add(name string, img image.Image) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.images == nil {
		i.images = map[string]image.Image{}
	}
	i.images[name], i.images[string(img.ID)] = img, img
}

// Image is as image.Store's.
func (i *Images) Image(refOrID string) (image.Image, error) {
	var img image.Image
	err := i.do(context.Background(), "image", func() error {
		i.mu.Lock()
		defer i.mu.Unlock()
		found, ok := i.images[refOrID]
		if !ok {
			return errkind.Errorf(errkind.NotFound, "no image %q", refOrID)
		}
		img = found
		return nil
	})
	return img, err
}

// Prepare is as image.Store's.
func (i *Images) Prepare(ctx context.Context, _ image.ID, key string) (image.Rootfs, error) {
	err := i.do(ctx, "prepare", func() error {
		i.mu.Lock()
		defer i.mu.Unlock()
		if i.prepared == nil {
			i.prepared = map[string]bool{}
		}
		i.prepared[key] = true
		return nil
	})
	return image.Rootfs{Lower: []string{"/layers/1"}, Upper: "/rootfs/" + key + "/upper", Work: "/rootfs/" + key + "/work"}, err
}

// PrepareVolume is as image.Store's.
func (i *Images) PrepareVolume(ctx context.Context, id image.ID, key string) ([]string, error) {
	r, err := i.Prepare(ctx, id, key)
	return r.Lower, err
}

// Release is as image.Store's.
func (i *Images) Release(ctx context.Context, key string) error {
	return i.do(ctx, "release", func() error {
		i.mu.Lock()
		defer i.mu.Unlock()
		delete(i.prepared, key)
		return nil
	})
}

// Written says the same of all.
func (i *Images) Written(string) image.FsUsage {
	return image.FsUsage{Mountpoint: "/rootfs", UsedBytes: 4096, Inodes: 1, At: time.Unix(1, 0)}
}

// Prepared is as image.Store's.
func (i *Images) Prepared() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Sorted(maps.Keys(i.prepared))
}

// Kernel is a kernel in memory: it remembers what is pinned and mounted.
// Operations for Faults: pin, unpin, shm, unmount.
type Kernel struct {
	Faults
	// Running, if set, says whether a process is there for Process.
	Running func(pid int) bool
	// HasEnded, if set, is Ended.
	HasEnded func(*os.File) (bool, int, bool)

	mu     sync.Mutex
	boot   string
	pinned map[string]sandbox.Pins
	shm    map[string]bool
}

// Share does nothing.
func (k *Kernel) Share(string) error { return nil }

// MountAt is a shared mount of everything.
func (k *Kernel) MountAt(string) (sys.MountInfo, bool, error) {
	return sys.MountInfo{Point: "/", Shared: 1}, true, nil
}

// Pin remembers the paths.
func (k *Kernel) Pin(p sandbox.Pins) error {
	return k.do(context.Background(), "pin", func() error {
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.pinned == nil {
			k.pinned = map[string]sandbox.Pins{}
		}
		for _, path := range []string{p.Net, p.IPC, p.UTS, p.User} {
			if path != "" {
				k.pinned[path] = p
			}
		}
		return nil
	})
}

// Unpin forgets a path.
func (k *Kernel) Unpin(path string) error {
	return k.do(context.Background(), "unpin", func() error {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.pinned, path)
		return nil
	})
}

// Pinned reports whether Pin was called for path.
func (k *Kernel) Pinned(path string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, ok := k.pinned[path]
	return ok
}

// PinsAt is what was asked for with path.
func (k *Kernel) PinsAt(path string) sandbox.Pins {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.pinned[path]
}

// MountShm remembers path.
func (k *Kernel) MountShm(path string, _, _ uint32) error {
	return k.do(context.Background(), "shm", func() error {
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.shm == nil {
			k.shm = map[string]bool{}
		}
		k.shm[path] = true
		return nil
	})
}

// Unmount forgets path.
func (k *Kernel) Unmount(path string) error {
	return k.do(context.Background(), "unmount", func() error {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.shm, path)
		return nil
	})
}

// BootID changes with Node.Reboot.
func (k *Kernel) BootID() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.boot
}

// Process opens something when Running says so.
func (k *Kernel) Process(pid int, _ string) (*os.File, error) {
	if k.Running == nil || !k.Running(pid) {
		return nil, os.ErrProcessDone
	}
	return os.Open(os.DevNull)
}

// Ended says that nothing has, unless HasEnded knows better.
func (k *Kernel) Ended(f *os.File) (bool, int, bool) {
	if k.HasEnded == nil {
		return false, 0, false
	}
	return k.HasEnded(f)
}

// mounts is what is pinned and mounted, sorted.
func (k *Kernel) mounts() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Concat(slices.Sorted(maps.Keys(k.pinned)), slices.Sorted(maps.Keys(k.shm)))
}

func (k *Kernel) reboot(id string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.boot = id
	clear(k.pinned)
	clear(k.shm)
}
