package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/sandbox/config"
)

// Kernel is what the manager asks of the kernel. It is an interface so that its
// tests need no root; there is one real one.
type Kernel interface {
	// Share makes what is mounted below dir show in other mount namespaces.
	Share(dir string) error
	// MountAt is the mount that path, which holds no links, is on. It does not
	// touch the path.
	MountAt(path string) (m sys.MountInfo, ok bool, err error)
	// Pin makes namespaces. On error nothing is pinned; what a crash has left at
	// the paths is replaced.
	Pin(p Pins) error
	// Unpin is idempotent.
	Unpin(path string) error
	// Pinned reports whether there is a namespace at path.
	Pinned(path string) bool
	// MountShm mounts a /dev/shm, which belongs to uid and gid, at path, which must be a folder.
	MountShm(path string, uid, gid uint32) error
	// Unmount is idempotent.
	Unmount(path string) error
	// BootID is different after each boot.
	BootID() string
	// Process opens the process pid if it is in a cgroup whose path contains
	// cgroup. What is not there, or is another process, is os.ErrProcessDone.
	Process(pid int, cgroup string) (*os.File, error)
	// Ended reports whether a process has ended and, where the kernel knows, how.
	Ended(pidfd *os.File) (ended bool, code int, known bool)
}

// Pins says which namespaces a sandbox gets of its own, by the path at which
// each is pinned; "" means the node's.
type Pins struct {
	Net, IPC, UTS string
	// User, if set, is the user namespace that owns the others, and UserMap its IDs.
	User     string
	UserMap  *config.IDMaps
	Hostname string // of UTS
	Sysctls  map[string]string
	// Defaults are sysctls as well; one that the kernel does not have is left out.
	Defaults map[string]string
}

// shmSize is the size of /dev/shm, as with other runtimes. CRI has no field for it.
const shmSize = 64 << 20

type kernel struct{}

// Share makes dir a mount of its own only where the mount that it is on is not
// shared already, as /run is under systemd.
func (kernel) Share(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("share folder: %w", err)
	}
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return fmt.Errorf("share folder: %w", err)
	}
	mounts, err := sys.Mounts()
	if err != nil {
		return err
	}
	if m, ok := sys.MountAt(mounts, dir); ok && m.Shared != 0 {
		return nil
	}
	return sys.ShareDir(dir)
}

// MountAt reads the mount table.
func (kernel) MountAt(path string) (sys.MountInfo, bool, error) {
	mounts, err := sys.Mounts()
	if err != nil {
		return sys.MountInfo{}, false, err
	}
	m, ok := sys.MountAt(mounts, path)
	return m, ok, nil
}

// Pin does everything in one call, so that a sandbox costs one thread.
func (kernel) Pin(p Pins) error {
	for _, path := range []string{p.IPC, p.UTS, p.User} {
		if path != "" {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return fmt.Errorf("make folder of namespaces: %w", err)
			}
		}
	}
	req := sys.NSRequest{
		Net: p.Net, IPC: p.IPC, UTS: p.UTS, Hostname: p.Hostname,
		Setup: func() error { return setUp(&p) },
	}
	if p.User != "" {
		req.User = sys.UserNS{Path: p.User, UIDs: sysMapping(p.UserMap.UIDs), GIDs: sysMapping(p.UserMap.GIDs)}
	}
	return sys.PinNamespaces(req)
}

// setUp runs inside the new namespaces.
func setUp(p *Pins) error {
	if p.Net != "" {
		if err := sys.LoopbackUp(); err != nil {
			return err
		}
	}
	for _, name := range sortedKeys(p.Defaults) {
		if err := setSysctl(p, name, p.Defaults[name]); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for _, name := range sortedKeys(p.Sysctls) {
		err := setSysctl(p, name, p.Sysctls[name])
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return errkind.Errorf(errkind.Invalid, "config.linux.sysctls[%q]: this kernel does not have it", name)
		case errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.ERANGE):
			return errkind.Errorf(errkind.Invalid, "config.linux.sysctls[%q]: %w", name, err)
		case err != nil:
			return err
		}
	}
	return nil
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (kernel) Unpin(path string) error { return sys.Unpin(path) }

func (kernel) Pinned(path string) bool {
	mounted, err := sys.IsMountpoint(path)
	return err == nil && mounted
}

func (kernel) MountShm(path string, uid, gid uint32) error {
	return sys.MountTmpfs(path, sys.TmpfsOptions{Size: shmSize, UID: uid, GID: gid, Flags: sys.NoSuid | sys.NoDev | sys.NoExec})
}

func (kernel) Unmount(path string) error { return sys.Unmount(path, sys.Detach) }

func (kernel) BootID() string { return sys.BootID() }

// Process opens the process before it looks at its cgroup, and looks whether it
// has ended after that: in between, the number can mean no other process.
func (k kernel) Process(pid int, cgroup string) (*os.File, error) {
	if pid <= 0 {
		return nil, os.ErrProcessDone
	}
	f, err := sys.PidfdOpen(pid)
	if err != nil {
		return nil, err
	}
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	ended, _, _ := k.Ended(f)
	if err == nil && !ended && strings.Contains(string(groups), cgroup) {
		return f, nil
	}
	_ = f.Close()
	return nil, os.ErrProcessDone
}

// Ended says no for a zombie: whoever adopts it waits for it.
func (kernel) Ended(f *os.File) (bool, int, bool) {
	if !errors.Is(sys.PidfdSignal(f, 0), os.ErrProcessDone) {
		return false, 0, false
	}
	code, known := sys.PidfdExitInfo(f)
	return true, code, known
}
