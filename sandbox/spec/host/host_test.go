package host

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/sandbox/config"
	"github.com/cridproject/crid/sandbox/spec"
)

// TestProbe looks at the machine the test runs on: whatever it is, some things
// are true of every Linux node.
func TestProbe(t *testing.T) {
	h, err := Probe()
	if err != nil {
		t.Fatal(err)
	}
	if h.NodeHostname == "" {
		t.Error("NodeHostname is empty")
	}
	if h.MinOOMScoreAdj < -1000 || h.MinOOMScoreAdj > 1000 {
		t.Errorf("MinOOMScoreAdj = %d", h.MinOOMScoreAdj)
	}
	if len(h.Controllers) == 0 {
		t.Error("no cgroup controllers")
	}
}

func TestCapsOf(t *testing.T) {
	const status = "Name:\tx\nCapEff:\t0000000000000001\nCapBnd:\t8000000000200001\n"
	if got := capsOf(status, "CapBnd"); !slices.Equal(got, []string{"CAP_CHOWN", "CAP_SYS_ADMIN"}) {
		t.Errorf("capsOf = %v", got)
	}
}

func TestHugePageSizes(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"hugepages-64kB", "hugepages-2048kB", "hugepages-1048576kB", "other"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	got := hugePageSizes(dir)
	slices.Sort(got)
	if want := []string{"1GB", "2MB", "64KB"}; !slices.Equal(got, want) {
		t.Errorf("hugePageSizes = %v, want %v", got, want)
	}
}

func TestDevices(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink("/dev/null", link); err != nil {
		t.Fatal(err)
	}
	got, err := Devices([]config.Device{{HostPath: config.HostPath(link), ContainerPath: "/dev/x", Permissions: "r"}})
	if err != nil || len(got) != 1 {
		t.Fatalf("Devices(link to /dev/null) = %v, %v", got, err)
	}
	d := got[0]
	if d.Path != "/dev/x" || d.Type != "c" || d.Major != 1 || d.Minor != 3 || d.Permissions != "r" {
		t.Errorf("Devices(link to /dev/null) = %+v, want c 1:3 at /dev/x with r", d)
	}

	for _, path := range []string{filepath.Join(dir, "absent"), "/etc/hostname"} {
		_, err := Devices([]config.Device{{HostPath: config.HostPath(path)}})
		if !errkind.Is(err, errkind.Invalid) {
			t.Errorf("Devices(%s) = %v, want Invalid", path, err)
		}
	}
}

func TestFill(t *testing.T) {
	profile := filepath.Join(t.TempDir(), "p.json")
	if err := os.WriteFile(profile, []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	in := spec.Input{}
	in.Container.Security = config.Security{Privileged: true, Seccomp: config.Profile{Kind: config.ProfileLocalhost, Ref: profile}}
	if err := Fill(&in, spec.Host{NodeHostname: "n"}); err != nil {
		t.Fatal(err)
	}
	hasNull := slices.ContainsFunc(in.Host.Devices, func(d spec.Device) bool { return d.Path == "/dev/null" && d.Mode&0o666 == 0o666 })
	if string(in.SeccompProfile) != "{}" || in.Host.NodeHostname != "n" || !hasNull {
		t.Errorf("Fill: profile %q, host %q, /dev/null %v", in.SeccompProfile, in.Host.NodeHostname, hasNull)
	}
	in.Container.Security.Seccomp.Ref = profile + ".absent"
	if err := Fill(&in, spec.Host{}); err != nil || in.SeccompProfile != nil {
		t.Errorf("Fill with absent profile: %q, %v, want nil and no error", in.SeccompProfile, err)
	}
}

func TestAppArmorLoaded(t *testing.T) {
	const list = "docker-default (enforce)\nweb (2) (complain)\n"
	for name, want := range map[string]bool{"docker-default": true, "web (2)": true, "web": false, "": false} {
		if got := appArmorLoaded(list, name); got != want {
			t.Errorf("appArmorLoaded(%q) = %v, want %v", name, got, want)
		}
	}
}
