package sys_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/internal/testutil"
)

var mapped = []syscall.SysProcIDMap{{ContainerID: 0, HostID: 300000, Size: 65536}}

// owner is the user namespace that owns the namespace at path.
func owner(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	return inode(t, fmt.Sprintf("/proc/self/fd/%d", fd))
}

func inode(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return strconv.FormatUint(st.Ino, 10)
}

// TestPinUserNS: the namespaces belong to the user namespace, are set up, and no
// process is left.
func TestPinUserNS(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	t.Cleanup(func() {
		for _, name := range []string{"net", "ipc", "uts", "user"} {
			if err := sys.Unpin(path(name)); err != nil {
				t.Error(err)
			}
		}
		if err := sys.Unmount(dir, sys.Detach); err != nil {
			t.Error(err)
		}
	})
	err := sys.PinNamespaces(sys.NSRequest{
		Net: path("net"), IPC: path("ipc"), UTS: path("uts"), Hostname: "inside",
		User: sys.UserNS{Path: path("user"), UIDs: mapped, GIDs: mapped},
		Setup: func() error {
			if err := sys.LoopbackUp(); err != nil {
				return err
			}
			if err := sys.SetSysctl("net.ipv4.ip_unprivileged_port_start", "0"); err != nil {
				return err
			}
			err := sys.SetSysctl("kernel.shm_rmid_forced", "1")
			if errors.Is(err, fs.ErrPermission) {
				err = sys.AsUser(300000, func() error { return sys.SetSysctl("kernel.shm_rmid_forced", "1") })
			}
			return err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	user := inode(t, path("user"))
	if user == inode(t, "/proc/self/ns/user") {
		t.Fatal("the pinned user namespace is the node's")
	}
	for _, name := range []string{"net", "ipc", "uts"} {
		if got := owner(t, path(name)); got != user {
			t.Errorf("the %s namespace is owned by user namespace %s, want %s", name, got, user)
		}
	}
	if err := sys.DoInNetNS(path("net"), func() error {
		b, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
		if strings.TrimSpace(string(b)) != "0" {
			t.Errorf("sysctl is %q (%v), want 0", b, err)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// TestPinUserNSRefused: what cannot be made leaves nothing.
func TestPinUserNSRefused(t *testing.T) {
	testutil.RequireRoot(t)
	path := filepath.Join(t.TempDir(), "user")
	bad := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1, Size: 0}}
	if err := sys.PinNamespaces(sys.NSRequest{User: sys.UserNS{Path: path, UIDs: bad, GIDs: bad}}); err == nil {
		t.Error("a map of no IDs was taken")
	}
	if _, err := os.Lstat(path); err == nil {
		t.Error("something is left at the path")
	}
}

// TestWithIDMapped: both ways give an overlay in which the owner is mapped, and
// on disk nothing changes.
func TestWithIDMapped(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	var layers []string
	for i, name := range []string{"a", "b"} {
		layer := filepath.Join(dir, name, "fs")
		if err := os.MkdirAll(layer, 0o755); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(layer, name)
		if err := os.WriteFile(file, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(file, i*33, i*44); err != nil {
			t.Fatal(err)
		}
		layers = append(layers, layer)
	}
	if err := sys.ProbeIDMap([2]string{layers[0], layers[1]}); err != nil {
		t.Skipf("this machine cannot: %v", err)
	}
	userns, err := sys.NewUserNS(sys.UserNS{UIDs: mapped, GIDs: mapped})
	if err != nil {
		t.Fatal(err)
	}
	defer userns.Close()
	for _, attach := range []bool{false, true} {
		t.Run(fmt.Sprintf("attach=%v", attach), func(t *testing.T) {
			var mnt *os.File
			err := sys.WithIDMappedBy(attach, layers, userns, func(names []string) error {
				mnt, err = overlayOf(names)
				return err
			})
			if err != nil && !attach {
				t.Skipf("this kernel takes only attached layers: %v", err)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer mnt.Close()
			for i, name := range []string{"a", "b"} {
				var st unix.Stat_t
				if err := unix.Fstatat(int(mnt.Fd()), name, &st, 0); err != nil {
					t.Fatal(err)
				}
				if st.Uid != 300000+uint32(i)*33 || st.Gid != 300000+uint32(i)*44 {
					t.Errorf("%s is owned by %d:%d", name, st.Uid, st.Gid)
				}
				if err := unix.Stat(filepath.Join(layers[i], name), &st); err != nil || st.Uid != uint32(i)*33 {
					t.Errorf("on disk %s is owned by %d (%v)", name, st.Uid, err)
				}
			}
		})
	}
}

func overlayOf(names []string) (*os.File, error) {
	fsfd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fsfd)
	for _, name := range names {
		if err := unix.FsconfigSetString(fsfd, "lowerdir+", name); err != nil {
			return nil, err
		}
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return nil, err
	}
	mfd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(mfd), "overlay"), nil
}

// TestWithIDMappedOverMount: a layer that the copy would not show is refused.
func TestWithIDMappedOverMount(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	for _, name := range []string{"a", "b"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := sys.MountTmpfs(filepath.Join(dir, "b"), sys.TmpfsOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sys.Unmount(filepath.Join(dir, "b"), sys.Detach) })
	userns, err := sys.NewUserNS(sys.UserNS{UIDs: mapped, GIDs: mapped})
	if err != nil {
		t.Fatal(err)
	}
	defer userns.Close()
	err = sys.WithIDMapped([]string{filepath.Join(dir, "a"), filepath.Join(dir, "b")}, userns, func([]string) error { return nil })
	if err == nil {
		t.Error("a layer with a mount on it was taken for an empty folder")
	}
}

func TestSharedFolder(t *testing.T) {
	for _, tt := range []struct {
		paths []string
		want  string
	}{
		{[]string{"/a/b/c"}, "/a/b"},
		{[]string{"/a/b/c", "/a/b/d/e"}, "/a/b"},
		{[]string{"/a/bc/x", "/a/b/x"}, "/a"},
		{[]string{"/a/b", "/a/b/c"}, "/a"},
		{[]string{"/a/x", "/b/x"}, ""},
		{[]string{"/a"}, ""},
	} {
		if got := sys.SharedFolder(tt.paths); got != tt.want {
			t.Errorf("sharedFolder(%q) = %q, want %q", tt.paths, got, tt.want)
		}
	}
}
