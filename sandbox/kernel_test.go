package sandbox

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/internal/testutil"
)

func TestPinReal(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	diff := testutil.Snapshot(t, testutil.Scope{MountsBelow: []string{dir}})
	k := kernel{}
	if err := k.Share(filepath.Join(dir, "ns")); err != nil {
		t.Fatal(err)
	}
	if err := k.Share(filepath.Join(dir, "ns")); err != nil {
		t.Fatal(err)
	}
	p := Pins{
		Net: filepath.Join(dir, "ns/net"), IPC: filepath.Join(dir, "ns/ipc"), UTS: filepath.Join(dir, "ns/uts"),
		Hostname: "pod",
		Sysctls:  map[string]string{"kernel.shm_rmid_forced": "1", "net.ipv4.ip_forward": "1", "fs.mqueue.msg_max": "20"},
		Defaults: map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.no_such_thing": "1"},
	}
	node, err := os.ReadFile("/proc/sys/kernel/shm_rmid_forced")
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Pin(p); err != nil {
		t.Fatalf("Pin = %v", err)
	}
	for _, path := range []string{p.Net, p.IPC, p.UTS} {
		if !k.Pinned(path) {
			t.Errorf("Pinned(%s) = false", path)
		}
	}
	err = sys.DoInNetNS(p.Net, func() error {
		for name, want := range map[string]string{"ip_unprivileged_port_start": "0", "ip_forward": "1"} {
			if got, err := os.ReadFile("/proc/sys/net/ipv4/" + name); err == nil && strings.TrimSpace(string(got)) != want {
				t.Errorf("%s in the namespace = %q, want %s", name, got, want)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if now, _ := os.ReadFile("/proc/sys/kernel/shm_rmid_forced"); !bytes.Equal(now, node) {
		t.Errorf("the node's shm_rmid_forced = %q, was %q", now, node)
	}
	shm := filepath.Join(dir, "shm")
	if err := os.Mkdir(shm, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := k.MountShm(shm, 0, 0); err != nil {
		t.Fatal(err)
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(shm, &st); err != nil || int64(st.Blocks)*st.Bsize != shmSize {
		t.Errorf("size of /dev/shm = %d, %v, want %d", int64(st.Blocks)*st.Bsize, err, shmSize)
	}
	if fi, err := os.Stat(shm); err != nil || fi.Mode() != os.ModeDir|os.ModeSticky|0o777 {
		t.Errorf("mode of /dev/shm = %v, %v, want drwxrwxrwt", fi.Mode(), err)
	}
	for range 2 { // idempotent
		for _, err := range []error{k.Unpin(p.Net), k.Unpin(p.IPC), k.Unpin(p.UTS), k.Unmount(shm)} {
			if err != nil {
				t.Error(err)
			}
		}
	}
	if err := sys.Unmount(filepath.Join(dir, "ns"), sys.Detach); err != nil {
		t.Error(err)
	}
	for _, line := range diff() {
		t.Error(line)
	}
}

func TestPinRealFailures(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	for name, value := range map[string]string{"kernel.shm_rmid_forced": "nonsense", "net.ipv4.no_such_thing": "1"} {
		p := Pins{IPC: filepath.Join(dir, "ipc"), UTS: filepath.Join(dir, "uts"), Sysctls: map[string]string{name: value}}
		if err := (kernel{}).Pin(p); !errkind.Is(err, errkind.Invalid) || !strings.Contains(err.Error(), name) {
			t.Errorf("Pin with %s=%s = %v, want kind invalid and the name", name, value, err)
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}

func TestProcessReal(t *testing.T) {
	k := kernel{}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	group := strings.TrimSpace(strings.SplitN(string(own), "\n", 2)[0])
	f, err := k.Process(os.Getpid(), group)
	if err != nil {
		t.Fatalf("Process(self) = %v", err)
	}
	if ended, _, _ := k.Ended(f); ended {
		t.Error("Ended(self) = true")
	}
	_ = f.Close()
	if _, err := k.Process(os.Getpid(), "crid-of-somebody-else"); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("Process in another cgroup = %v, want done", err)
	}
	if _, err := k.Process(0, ""); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("Process(0) = %v, want done", err)
	}
	child, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	pidfd, err := sys.PidfdOpen(child.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer pidfd.Close()
	if _, err := child.Wait(); err != nil {
		t.Fatal(err)
	}
	if ended, code, known := k.Ended(pidfd); !ended || known && code != 0 {
		t.Errorf("Ended of what was reaped = %t, %d, %t, want true, 0", ended, code, known)
	}
}
