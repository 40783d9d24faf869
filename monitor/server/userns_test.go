package server

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/internal/testutil"
	"github.com/cridproject/crid/monitor"
)

const hostRoot = 1 << 18

// userNS is the path of a user namespace whose root is hostRoot, until the test ends.
func userNS(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "user")
	m := []syscall.SysProcIDMap{{ContainerID: 0, HostID: hostRoot, Size: 1 << 16}}
	if err := sys.PinNamespaces(sys.NSRequest{User: sys.UserNS{Path: path, UIDs: m, GIDs: m}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sys.Unpin(path); err != nil {
			t.Error(err)
		}
	})
	return path
}

func ownerOf(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

// TestMountIDMapped: owners are mapped in the mount, and nowhere else.
func TestMountIDMapped(t *testing.T) {
	testutil.RequireRoot(t)
	ns := userNS(t)
	for _, tt := range []struct {
		name     string
		layers   int
		writable bool
	}{
		{"one", 1, true}, {"ten", 10, true}, {"read-only one", 1, false}, {"read-only ten", 10, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			base := t.TempDir()
			r := monitor.Rootfs{Lower: layers(t, base, tt.layers), UserNS: ns, Volatile: true}
			if err := sys.ProbeIDMap([2]string{layers(t, base, 2)[0], layers(t, base, 2)[1]}); err != nil {
				t.Skipf("this machine cannot: %v", err)
			}
			for path, id := range map[string]int{"": 7, "top": 33} {
				if err := os.Chown(filepath.Join(r.Lower[0], path), id, id+1); err != nil {
					t.Fatal(err)
				}
			}
			if tt.writable {
				r.Upper, r.Work = filepath.Join(base, "upper"), filepath.Join(base, "work")
				for _, dir := range []string{r.Upper, r.Work} {
					if err := os.Mkdir(dir, 0o755); err != nil {
						t.Fatal(err)
					}
				}
			}
			dir := filepath.Join(base, "merged")
			if err := mountRootfs(dir, r, ""); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := unmountRootfs(dir); err != nil {
					t.Error(err)
				}
			}()
			for path, id := range map[string]int{"": 7, "top": 33, "file0": 0} {
				want := fmt.Sprintf("%d:%d", hostRoot+id, hostRoot+id)
				if id != 0 {
					want = fmt.Sprintf("%d:%d", hostRoot+id, hostRoot+id+1)
				}
				if got := ownerOf(t, filepath.Join(dir, path)); got != want {
					t.Errorf("owner of /%s = %s, want %s", path, got, want)
				}
			}
			if got := ownerOf(t, filepath.Join(r.Lower[0], "top")); got != "33:34" {
				t.Errorf("owner of a layer's file on disk = %s, want 33:34", got)
			}
			err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o644)
			if (err == nil) != tt.writable {
				t.Errorf("writing = %v, writable: %v", err, tt.writable)
			}
		})
	}
}

// TestMountIDMappedRefused: what fails leaves nothing mounted and no folder.
func TestMountIDMappedRefused(t *testing.T) {
	testutil.RequireRoot(t)
	base := t.TempDir()
	dir := filepath.Join(base, "merged")
	for name, r := range map[string]monitor.Rootfs{
		"no such namespace":             {Lower: layers(t, base, 1), UserNS: filepath.Join(base, "none")},
		"no namespace":                  {Lower: layers(t, base, 1), UserNS: base},
		"file system without ID maps":   {Lower: []string{"/proc/sys", "/proc/fs"}, UserNS: userNS(t)},
		"one layer, no ID maps":         {Lower: []string{"/proc"}, UserNS: userNS(t)},
		"no such layer":                 {Lower: []string{filepath.Join(base, "none"), filepath.Join(base, "nil")}, UserNS: userNS(t)},
		"one layer, which is not there": {Lower: []string{filepath.Join(base, "none")}, UserNS: userNS(t)},
	} {
		if err := mountRootfs(dir, r, ""); err == nil {
			t.Errorf("%s: mounted", name)
		} else if _, statErr := os.Lstat(dir); statErr == nil {
			t.Errorf("%s: the mount point is left (%v)", name, err)
		}
	}
}

// TestHolderInUserNS: the PID namespace belongs to the user namespace, the init is
// its root, is waited for, and survives the monitor.
func TestHolderInUserNS(t *testing.T) {
	n, crash := crashNode(t)
	r := n.holdRequest("u")
	r.UserNS = userNS(t)
	reply, pidfd, err := n.client.Hold(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := n.client.Release(t.Context(), n.releaseRequest("u")); err != nil {
			t.Error(err)
		}
		n.residue()
	}()
	proc := filepath.Join("/proc", strconv.Itoa(reply.PID))
	status, err := os.ReadFile(proc + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\nUid:\t262144\t", "\nGid:\t262144\t", "\nName:\tcrid-pid1\n", "\nGroups:\t \n"} {
		if !strings.Contains("\n"+string(status), want) {
			t.Errorf("status of the init lacks %q:\n%s", want, status)
		}
	}
	confined(t, reply.PID)
	if private := rollup(t, reply.PID, "Private_"); private > 1024 {
		t.Errorf("private memory of a holder: %d KiB, want at most 1 MiB", private)
	}
	for what, dir := range map[string]string{"root": proc + "/root", "files": proc + "/fd"} {
		if es, err := os.ReadDir(dir); err != nil || len(es) > 0 {
			t.Errorf("%s of a holder has %d entries, %v, want none", what, len(es), err)
		}
	}
	ns, err := os.Open(proc + "/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	owner, err := unix.IoctlRetInt(int(ns.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(owner)
	var got, want unix.Stat_t
	if err := unix.Fstat(owner, &got); err != nil {
		t.Fatal(err)
	}
	if err := unix.Stat(r.UserNS, &want); err != nil || got.Ino != want.Ino {
		t.Errorf("the PID namespace belongs to user namespace %d, want %d (%v)", got.Ino, want.Ino, err)
	}

	crash()
	if err := n.client.Adopt(t.Context(), monitor.AdoptRequest{ID: "u", PID: reply.PID, Holder: true}, &monitor.Hold{PIDFD: pidfd}); err != nil {
		t.Fatal(err)
	}
	again, f, err := n.client.Hold(t.Context(), r)
	if err != nil || again.PID != reply.PID {
		t.Fatalf("Hold after adoption = %+v, %v, want pid %d", again, err, reply.PID)
	}
	f.Close()

	bad := n.holdRequest("bad")
	bad.UserNS = t.TempDir()
	if _, _, err := n.client.Hold(t.Context(), bad); err == nil || !strings.Contains(err.Error(), "enter user namespace") {
		t.Errorf("Hold in a folder = %v, want an error about the user namespace", err)
	}
}

// TestRootfsFolder: users of the node come to no program of a container, unless it
// is in a user namespace, whose root is such a user.
func TestRootfsFolder(t *testing.T) {
	n := newNode(t)
	for userns, want := range map[bool]os.FileMode{false: 0o700, true: 0o711} {
		if err := n.server.makeRootfsFolder("a", userns); err != nil {
			t.Fatal(err)
		}
		dir := filepath.Dir(n.server.rootfs("a"))
		if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != want || filepath.Dir(dir) != n.server.dir("rootfs") {
			t.Errorf("with a user namespace %v the folder of the root file system is %v, %v, want mode %v", userns, fi, err, want)
		}
		if err := n.server.removeRootfs("a"); err != nil {
			t.Error(err)
		}
	}
	n.create(n.request("b", n.spec("true")))
	if fi, err := os.Stat(filepath.Dir(n.server.rootfs("b"))); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("folder of a container's root file system: %v, %v, want mode 0700", fi, err)
	}
	n.delete("b")
	n.residue()
}

// TestCheckBound: only a device that is the same on the node.
func TestCheckBound(t *testing.T) {
	for _, tt := range []struct {
		d    specs.LinuxDevice
		good bool
	}{
		{specs.LinuxDevice{Path: "/dev/null", Type: "c", Major: 1, Minor: 3}, true},
		{specs.LinuxDevice{Path: "/dev/null", Type: "u", Major: 1, Minor: 3}, true},
		{specs.LinuxDevice{Path: "/dev/null", Type: "c", Major: 1, Minor: 5}, false},
		{specs.LinuxDevice{Path: "/dev/null", Type: "b", Major: 1, Minor: 3}, false},
		{specs.LinuxDevice{Path: "/etc/passwd", Type: "c"}, false},
		{specs.LinuxDevice{Path: "/dev/none", Type: "c"}, false},
	} {
		if err := checkBound([]specs.LinuxDevice{tt.d}); (err == nil) != tt.good {
			t.Errorf("checkBound(%+v) = %v, want good: %v", tt.d, err, tt.good)
		}
	}
}
