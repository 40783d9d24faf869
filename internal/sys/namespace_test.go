package sys_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/internal/testutil"
)

// pinDir is a folder for pins; at the end of the test nothing may be left in or on it.
func pinDir(t *testing.T) string {
	t.Helper()
	testutil.RequireRoot(t)
	dir := filepath.Join(t.TempDir(), "netns")
	diff := testutil.Snapshot(t, testutil.Scope{MountsBelow: []string{dir}, NetNSDirs: []string{dir}})
	t.Cleanup(func() {
		if err := sys.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		for _, line := range diff() {
			t.Error(line)
		}
	})
	return dir
}

// nsOf is the identity of the namespace at path.
func nsOf(t *testing.T, path string) uint64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// wantOwnNamespaces waits until every thread of this program is in the node's
// namespaces: a thread that was in others may take a moment to end.
func wantOwnNamespaces(t *testing.T) {
	t.Helper()
	for _, kind := range []string{"net", "ipc", "uts"} {
		// The namespace of who started this program: /proc/self could be in the wrong one.
		want := nsOf(t, fmt.Sprintf("/proc/%d/ns/%s", os.Getppid(), kind))
		testutil.WaitFor(t, "all threads to be in the node's "+kind+" namespace", func() bool {
			tasks, err := filepath.Glob("/proc/self/task/*/ns/" + kind)
			if err != nil {
				t.Fatal(err)
			}
			return !slices.ContainsFunc(tasks, func(path string) bool {
				var st syscall.Stat_t
				return syscall.Stat(path, &st) == nil && st.Ino != want // an error: it has ended
			})
		})
	}
}

func TestNewNetNS(t *testing.T) {
	dir := pinDir(t)
	path := filepath.Join(dir, "crid-1")
	setup := func() error {
		return errors.Join(sys.LoopbackUp(), sys.LoopbackUp(), sys.SetSysctl("net.ipv4.ip_unprivileged_port_start", "0"))
	}
	if err := sys.NewNetNS(path, setup); err != nil {
		t.Fatal(err)
	}
	if nsOf(t, path) == nsOf(t, "/proc/self/ns/net") {
		t.Fatal("the pinned namespace is the node's")
	}
	err := sys.DoInNetNS(path, func() error {
		links, err := net.Interfaces()
		if err != nil {
			return err
		}
		if len(links) != 1 || links[0].Name != "lo" || links[0].Flags&net.FlagUp == 0 {
			t.Errorf("links in the namespace = %v, want lo, up", links)
		}
		if addrs, _ := links[0].Addrs(); len(addrs) == 0 || addrs[0].String() != "127.0.0.1/8" {
			t.Errorf("addresses of lo = %v, want 127.0.0.1/8 first", addrs)
		}
		port, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
		if strings.TrimSpace(string(port)) != "0" {
			t.Errorf("sysctl in the namespace = %q, want 0", port)
		}
		out, progErr := exec.Command("readlink", "/proc/self/ns/net").Output()
		if want := fmt.Sprintf("net:[%d]\n", nsOf(t, path)); string(out) != want {
			t.Errorf("a program started there is in %q, want %q", out, want)
		}
		return errors.Join(err, progErr)
	})
	if err != nil {
		t.Fatal(err)
	}
	wantOwnNamespaces(t)
	if err := sys.Unpin(path); err != nil {
		t.Fatal(err)
	}
	if err := sys.DoInNetNS(path, func() error { return nil }); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("DoInNetNS of an unpinned path = %v, want not exist", err)
	}
}

func TestPinReplacesWhatACrashLeft(t *testing.T) {
	dir := pinDir(t)
	path := filepath.Join(dir, "crid-1")
	leave := map[string]func() error{
		"nothing": func() error { return nil },
		"file":    func() error { return os.WriteFile(path, []byte("x"), 0o600) },
		"link":    func() error { return os.Symlink("/proc/self/ns/net", path) },
		"mount":   func() error { return sys.NewNetNS(path, nil) },
		"three mounts": func() error {
			err := sys.NewNetNS(path, nil)
			return errors.Join(err, sys.Bind("/proc/self/ns/net", path, 0), sys.Bind(path, path, 0))
		},
	}
	for name, left := range leave {
		t.Run(name, func(t *testing.T) {
			if err := sys.ShareDir(dir); err != nil {
				t.Fatal(err)
			}
			if err := left(); err != nil {
				t.Fatal(err)
			}
			var fresh uint64
			setup := func() error { fresh = nsOf(t, "/proc/thread-self/ns/net"); return nil }
			if err := sys.NewNetNS(path, setup); err != nil {
				t.Fatal(err)
			}
			if got := nsOf(t, path); got != fresh {
				t.Errorf("pinned is namespace %d, want the new one, %d", got, fresh)
			}
			for range 2 { // the second time it is absent
				if err := sys.Unpin(path); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("after Unpin: %v, want not exist", err)
			}
		})
	}
}

func TestPinNamespaces(t *testing.T) {
	dir := pinDir(t)
	req := sys.NSRequest{
		Net: filepath.Join(dir, "crid-1"),
		IPC: filepath.Join(dir, "sandbox", "ns", "ipc"), // folders are made
		UTS: filepath.Join(dir, "sandbox", "ns", "uts"),

		Hostname: "web-0",
		Setup:    func() error { return sys.SetSysctl("kernel.shm_rmid_forced", "1") },
	}
	nodeName, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if err := sys.PinNamespaces(req); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("nsenter", "--net="+req.Net, "--ipc="+req.IPC, "--uts="+req.UTS,
		"sh", "-c", "cat /proc/sys/kernel/hostname /proc/sys/kernel/shm_rmid_forced").CombinedOutput()
	if err != nil || string(out) != "web-0\n1\n" {
		t.Errorf("in the namespaces: %q, %v, want the host name web-0 and the sysctl 1", out, err)
	}
	if now, _ := os.Hostname(); now != nodeName {
		t.Errorf("the node's name has become %q", now)
	}
	wantOwnNamespaces(t)
	for _, path := range []string{req.Net, req.IPC, req.UTS} {
		if err := sys.Unpin(path); err != nil {
			t.Error(err)
		}
	}
	if err := os.RemoveAll(filepath.Join(dir, "sandbox")); err != nil {
		t.Error(err)
	}
}

func TestFailedPinLeavesNothing(t *testing.T) {
	dir := pinDir(t)
	full := filepath.Join(dir, "full") // a folder with something in it cannot be replaced
	ok := filepath.Join(dir, "ok")
	cause := errors.New("no such sysctl")
	tests := []struct {
		name string
		req  sys.NSRequest
		want error
	}{
		{"setup", sys.NSRequest{Net: ok, Setup: func() error { return cause }}, cause},
		{"last pin", sys.NSRequest{Net: ok, UTS: full}, unix.ENOTEMPTY},
		{"host name too long", sys.NSRequest{UTS: ok, Hostname: strings.Repeat("x", 65)}, unix.EINVAL},
		{"host name without namespace", sys.NSRequest{IPC: ok, Hostname: "x"}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := sys.ShareDir(dir); err != nil {
				t.Fatal(err)
			}
			if err := os.MkdirAll(filepath.Join(full, "x"), 0o755); err != nil {
				t.Fatal(err)
			}
			err := sys.PinNamespaces(tt.req)
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("PinNamespaces = %v, want %v", err, tt.want)
			}
			if _, err := os.Lstat(ok); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the pin is there: %v", err)
			}
			if err := os.RemoveAll(full); err != nil {
				t.Error(err)
			}
		})
	}
	wantOwnNamespaces(t)
}

// TestConcurrentPins: as many pods at once as a node start brings.
func TestConcurrentPins(t *testing.T) {
	dir := pinDir(t)
	const n = 32
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			path := filepath.Join(dir, fmt.Sprintf("crid-%d", i))
			if err := sys.NewNetNS(path, sys.LoopbackUp); err != nil {
				t.Error(err)
				return
			}
			if err := sys.DoInNetNS(path, func() error { _, err := net.InterfaceByName("lo"); return err }); err != nil {
				t.Error(err)
			}
			if err := sys.Unpin(path); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	wantOwnNamespaces(t)
	mounts := mountsAt(t, dir)
	if len(mounts) != 1 || mounts[0].Shared == 0 {
		t.Errorf("mounts at %s = %+v, want one, shared", dir, mounts)
	}
}

func TestPinsShowInOtherMountNamespaces(t *testing.T) {
	dir := pinDir(t)
	if err := sys.ShareDir(dir); err != nil {
		t.Fatal(err)
	}
	other := exec.Command("unshare", "--mount", "--propagation", "slave", "sleep", "infinity")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Process.Kill(); _ = other.Wait() }()
	testutil.WaitFor(t, "unshare to have its own mounts", func() bool {
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", other.Process.Pid))
		return string(comm) == "sleep\n"
	})
	path := filepath.Join(dir, "crid-1")
	if err := sys.NewNetNS(path, nil); err != nil {
		t.Fatal(err)
	}
	inOther := func() bool {
		mounts, err := sys.MountsOf(other.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range mounts {
			if m.Point == path && m.FSType == "nsfs" {
				return true
			}
		}
		return false
	}
	if !inOther() {
		t.Error("the pin does not show in a mount namespace made before it")
	}
	if err := sys.Unpin(path); err != nil {
		t.Fatal(err)
	}
	if inOther() {
		t.Error("the pin is still there in the other mount namespace after Unpin")
	}
}

func TestDoInNetNSThatDoesNotReturn(t *testing.T) {
	dir := pinDir(t)
	path := filepath.Join(dir, "crid-1")
	if err := sys.NewNetNS(path, nil); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if got := recover(); got != "bug" {
			t.Errorf("the caller's panic is %v, want that of the function", got)
		}
		wantOwnNamespaces(t)
		if err := sys.Unpin(path); err != nil {
			t.Error(err)
		}
	}()
	_ = sys.DoInNetNS(path, func() error { panic("bug") })
}
