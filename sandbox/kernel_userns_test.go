package sandbox

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/internal/testutil"
	"github.com/cridproject/crid/sandbox/config"
)

func TestPingGroups(t *testing.T) {
	m := config.IDMapping{HostID: 70000, Length: 1000}
	for value, want := range map[string]string{
		"0 2147483647": "70000 70999",
		"0 0":          "70000 70000",
		"5\t10":        "70005 70010",
		"999 1000":     "70999 70999",
		"1000 2000":    "1 0",
		"1 0":          "1 0",
		"x 1":          "x 1",
		"-1 5":         "-1 5",
		"7":            "7",
		"":             "",
	} {
		if got := pingGroups(value, m); got != want {
			t.Errorf("pingGroups(%q) = %q, want %q", value, got, want)
		}
	}
	for name, want := range map[string]bool{"net.ipv4.ping_group_range": true, "net/ipv4/ping_group_range": true, "net.ipv4.ip_forward": false} {
		if isPingGroups(name) != want {
			t.Errorf("isPingGroups(%q) = %v", name, !want)
		}
	}
}

// TestPinUserReal: sysctls of all kinds are set in namespaces that a user
// namespace owns.
func TestPinUserReal(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	diff := testutil.Snapshot(t, testutil.Scope{MountsBelow: []string{dir}})
	k := kernel{}
	const host = 1 << 18
	maps := &config.IDMaps{UIDs: config.IDMapping{HostID: host, Length: 1000}, GIDs: config.IDMapping{HostID: host, Length: 1000}}
	p := Pins{
		Net: filepath.Join(dir, "ns/net"), IPC: filepath.Join(dir, "ns/ipc"), UTS: filepath.Join(dir, "ns/uts"),
		User: filepath.Join(dir, "ns/user"), UserMap: maps, Hostname: "pod",
		Sysctls: map[string]string{
			"kernel.shm_rmid_forced": "1", "kernel.msgmax": "8000", "kernel.sem": "250 32000 32 100", "fs.mqueue.msg_max": "20",
			"kernel.domainname": "inside", "net.ipv4.ip_forward": "1", "net.core.somaxconn": "77",
		},
		Defaults: defaultSysctls,
	}
	if err := k.Pin(p); err != nil {
		t.Fatalf("Pin = %v", err)
	}
	if !k.Pinned(p.User) {
		t.Error("the user namespace is not pinned")
	}
	err := sys.DoInNetNS(p.Net, func() error {
		for name, want := range map[string]string{
			"ipv4/ip_forward": "1", "core/somaxconn": "77", "ipv4/ip_unprivileged_port_start": "0", "ipv4/ping_group_range": "262144\t263143",
		} {
			if got, err := os.ReadFile("/proc/sys/net/" + name); err != nil || strings.TrimSpace(string(got)) != want {
				t.Errorf("%s in the namespace = %q, %v, want %q", name, got, err, want)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	shm := filepath.Join(dir, "shm")
	if err := os.Mkdir(shm, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := k.MountShm(shm, host, host+1); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(shm); err != nil || fi.Sys().(*syscall.Stat_t).Uid != host || fi.Sys().(*syscall.Stat_t).Gid != host+1 {
		t.Errorf("owner of /dev/shm: %+v, %v", fi.Sys(), err)
	}
	bad := p
	bad.Sysctls = map[string]string{"kernel.no_such_thing": "1"}
	if err := k.Pin(bad); !errkind.Is(err, errkind.Invalid) {
		t.Errorf("Pin with a sysctl that does not exist = %v, want Invalid", err)
	}
	for _, err := range []error{k.Unpin(p.Net), k.Unpin(p.IPC), k.Unpin(p.UTS), k.Unpin(p.User), k.Unmount(shm), k.Unmount(filepath.Join(dir, "ns"))} {
		if err != nil {
			t.Error(err)
		}
	}
	if left := diff(); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestProbeUserNS(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	state := filepath.Join(dir, "closed", "state")
	for _, d := range []string{filepath.Join(dir, "layers"), filepath.Join(dir, "rootfs"), state} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // of this test
		t.Fatal(err)
	}
	probe := func() error { return ProbeUserNS(filepath.Join(dir, "layers"), filepath.Join(dir, "rootfs"), state) }
	if err := probe(); err != nil {
		t.Skipf("this machine cannot: %v", err)
	}
	closed := filepath.Dir(state)
	if err := os.Chmod(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := probe(); err == nil || !strings.Contains(err.Error(), closed) {
		t.Errorf("probe with a folder that others may not pass = %v, want an error that names %s", err, closed)
	}
	if err := ProbeUserNS("/proc/sys", "/proc/fs", "/run"); err == nil {
		t.Error("probe of /proc succeeds: it has no ID-mapped mounts")
	}
}
