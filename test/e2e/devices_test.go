package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// makeNode makes a device node; what it stands for is the kernel's.
func makeNode(t *testing.T, path string, kind uint32, major, minor int) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mknod(path, kind|0o666, major<<8|minor); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil { // past the umask
		t.Fatal(err)
	}
}

// readKmsg is what it takes to open kmsg (1:11), which these tests use because every
// kernel has it and no container may use it by default.
func readKmsg() *cri.Capability { return &cri.Capability{AddCapabilities: []string{"SYSLOG"}} }

// tryDevice is what a container sees of a device: which of reading and writing
// work, and why the other does not.
func (n *Node) tryDevice(id, path string) string {
	n.T.Helper()
	return n.Sh(id, fmt.Sprintf(`
		if head -c 0 %[1]s 2>/tmp/e; then echo -n r; else grep -o 'not permitted' /tmp/e | tr '\n' ' '; fi
		if (: >>%[1]s) 2>/tmp/e; then echo -n w; else grep -o 'not permitted' /tmp/e | tr '\n' ' '; fi`, path))
}

func TestDevicePermissions(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	n.T.Cleanup(func() { _ = os.RemoveAll(n.path("dev")) })
	makeNode(t, n.path("dev", "read"), syscall.S_IFCHR, 1, 11)
	makeNode(t, n.path("dev", "many", "a"), syscall.S_IFCHR, 1, 3)
	makeNode(t, n.path("dev", "many", "below", "b"), syscall.S_IFCHR, 1, 5)
	makeNode(t, n.path("dev", "block"), syscall.S_IFBLK, 240, 7) // nobody's: opening it is ENXIO, once allowed
	if err := os.Symlink("read", n.path("dev", "link")); err != nil {
		t.Fatal(err)
	}
	p := n.PodConfig("devices")
	pod := n.RunPod(p)
	with := func(name string, devices ...*cri.Device) *cri.ContainerConfig {
		c := n.ContainerConfig(name, "sleep", "1000")
		c.Devices = devices
		c.Linux.SecurityContext.Capabilities = readKmsg()
		return c
	}
	device := func(at, host, permissions string) *cri.Device {
		return &cri.Device{ContainerPath: at, HostPath: n.path("dev", host), Permissions: permissions}
	}

	for permissions, want := range map[string]string{"r": "rnot permitted ", "w": "not permitted w", "rw": "rw", "mrw": "rw", "m": "not permitted not permitted "} {
		id := n.Run(pod, p, with("with-"+permissions, device("/dev/inside", "link", permissions)))
		if got := n.tryDevice(id, "/dev/inside"); got != want {
			t.Errorf("device with permissions %s: %q work, want %q", permissions, got, want)
		}
		// An update does not touch them, whichever version of cgroups.
		n.mustUpdate(id, &cri.LinuxContainerResources{MemoryLimitInBytes: 128 << 20})
		if got := n.tryDevice(id, "/dev/inside"); got != want {
			t.Errorf("device with permissions %s after an update: %q work, want %q", permissions, got, want)
		}
	}

	t.Run("folder and block device", func(t *testing.T) {
		id := n.Run(pod, p, with("folder",
			device("/dev/many", "many", "r"), device("/dev/block", "block", "r"), device("/dev/block", "read", "rwm"), // the first counts
		))
		got := n.Sh(id, "cd /dev; stat -c '%n %F %t:%T' many/a many/below/b block; echo x >>/dev/null; cat block 2>&1 | grep -o 'No such device'")
		want := "many/a character special file 1:3\nmany/below/b character special file 1:5\nblock block special file f0:7\nNo such device\n"
		if got != want {
			t.Errorf("inside: %q, want %q", got, want)
		}
	})
	t.Run("mknod", func(t *testing.T) {
		id := n.Run(pod, p, with("mknod"))
		// Making a node is allowed with CAP_MKNOD, opening it is what counts.
		if got := n.Sh(id, "mknod /tmp/n c 1 11 2>/dev/null || echo none; cat /tmp/n 2>&1 | grep -c 'not permitted\\|No such file' || true"); !strings.HasSuffix(got, "1\n") {
			t.Errorf("a node made inside: %q, want that it cannot be opened", got)
		}
	})
	t.Run("missing", func(t *testing.T) {
		_, err := n.Runtime.CreateContainer(n.Ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: with("missing", device("/dev/x", "absent", "r")), SandboxConfig: p})
		wantCode(t, "CreateContainer with a device that is missing", err, codes.InvalidArgument, "config.devices[0].host_path", n.path("dev", "absent"))
		_, err = n.Runtime.CreateContainer(n.Ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: with("file", &cri.Device{ContainerPath: "/dev/x", HostPath: n.Config, Permissions: "r"}), SandboxConfig: p})
		wantCode(t, "CreateContainer with a file for a device", err, codes.InvalidArgument, "config.devices[0].host_path", n.Config)
	})
}

func TestPrivilegedDevices(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("privileged")
	p.Linux.SecurityContext.Privileged = true
	pod := n.RunPod(p)
	c := n.ContainerConfig("main", "sleep", "1000")
	c.Linux.SecurityContext.Privileged = true
	id := n.Run(pod, p, c)
	// Any device at all, also one that has no node yet.
	if got := n.Sh(id, "mknod /tmp/n c 1 11 && (: </tmp/n) && echo opened"); got != "opened\n" {
		t.Errorf("opening a device made in a privileged container: %q", got)
	}
	for _, path := range []string{"/dev/kmsg", "/dev/loop-control"} {
		if st, err := os.Stat(path); err != nil || st.Mode()&os.ModeDevice == 0 {
			continue
		}
		if got := n.Sh(id, "test -c "+path+" && echo there"); got != "there\n" {
			t.Errorf("%s in a privileged container: %q", path, got)
		}
	}
	n.mustUpdate(id, &cri.LinuxContainerResources{CpuShares: 512})
	if got := n.Sh(id, "(: </tmp/n) && echo opened"); got != "opened\n" {
		t.Errorf("after an update: %q", got)
	}
}

// thing is a CDI spec file with a device that has all a device can have.
func thing(n *Node, value string) string {
	return fmt.Sprintf(`{"cdiVersion": "0.7.0", "kind": "vendor.com/thing", "devices": [
	{"name": "one", "containerEdits": {
		"env": ["THING=%[1]s"],
		"deviceNodes": [{"path": "/dev/thing", "hostPath": %[2]q, "permissions": "r"}],
		"mounts": [{"hostPath": %[3]q, "containerPath": "/opt/thing", "options": ["ro", "nosuid", "nodev", "bind"]}],
		"additionalGids": [4321],
		"hooks": [
			{"hookName": "createRuntime", "path": "/bin/sh", "args": ["sh", "-c", "cat >%[4]s/createRuntime"]},
			{"hookName": "createContainer", "path": "/bin/sh", "args": ["sh", "-c", "cat >%[4]s/createContainer"]},
			{"hookName": "startContainer", "path": "/bin/touch", "args": ["touch", "/tmp/started"]},
			{"hookName": "poststart", "path": "/bin/sh", "args": ["sh", "-c", "cat >%[4]s/poststart"]},
			{"hookName": "poststop", "path": "/bin/sh", "args": ["sh", "-c", "cat >%[4]s/poststop"]}]}},
	{"name": "two", "containerEdits": {"env": ["SECOND=yes"]}}]}`,
		value, n.path("dev", "thing"), n.path("opt"), n.path("hooks"))
}

func TestCDI(t *testing.T) {
	n, dir := cdiNode(t)
	n.WriteFile(filepath.Join(dir, "vendor.json"), thing(n, "first"))
	p := n.PodConfig("cdi")
	pod := n.RunPod(p)
	with := func(name string, devices ...string) *cri.ContainerConfig {
		c := n.ContainerConfig(name, "sleep", "1000")
		for _, d := range devices {
			c.CDIDevices = append(c.CDIDevices, &cri.CDIDevice{Name: d})
		}
		return c
	}
	c := with("field", "vendor.com/thing=one")
	c.Linux.SecurityContext.Capabilities = readKmsg()
	// The annotation names it again, as kubelet may, and another.
	c.Annotations = map[string]string{"cdi.k8s.io/plugin": "vendor.com/thing=one,vendor.com/thing=two"}
	id := n.Run(pod, p, c)
	if got := n.Sh(id, "echo $THING $SECOND; cat /opt/thing/file; id -G; ls -l /tmp/started | wc -l; grep -c ' /opt/thing ' /proc/self/mounts; (: >/opt/thing/new) 2>&1 | grep -o Read-only"); got != "first yes\nlibrary\n0 4321\n1\n1\nRead-only\n" {
		t.Errorf("inside: %q", got)
	}
	if got := n.tryDevice(id, "/dev/thing"); got != "rnot permitted " {
		t.Errorf("the device: %q works, want r", got)
	}
	if groups := n.Status(id).GetUser().GetLinux().GetSupplementalGroups(); !strings.Contains(fmt.Sprint(groups), "4321") {
		t.Errorf("groups in the status = %v, want 4321 among them", groups)
	}
	for _, hook := range []string{"createRuntime", "createContainer", "poststart"} {
		if state, err := os.ReadFile(n.path("hooks", hook)); err != nil || !strings.Contains(string(state), id) {
			t.Errorf("hook %s got %q, %v, want the container's state", hook, state, err)
		}
	}
	n.mustUpdate(id, &cri.LinuxContainerResources{MemoryLimitInBytes: 128 << 20})
	if got := n.tryDevice(id, "/dev/thing"); got != "rnot permitted " {
		t.Errorf("the device after an update: %q works, want r", got)
	}
	if _, err := n.Runtime.RemoveContainer(n.Ctx(), &cri.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	if state, err := os.ReadFile(n.path("hooks", "poststop")); err != nil || !strings.Contains(string(state), id) {
		t.Errorf("hook poststop got %q, %v, want the container's state", state, err)
	}

	// The next container gets what the file says by then.
	n.WriteFile(filepath.Join(dir, "vendor.json"), thing(n, "second"))
	id = n.Run(pod, p, with("changed", "vendor.com/thing=one"))
	if got := n.Sh(id, "echo $THING"); got != "second\n" {
		t.Errorf("inside, after a change of the file: %q, want second", got)
	}
}

// What cannot be had is said: which device, where it was looked for, and which file
// is broken; the devices of other files work.
func TestCDIRefused(t *testing.T) {
	n, dir := cdiNode(t)
	n.WriteFile(filepath.Join(dir, "vendor.json"), thing(n, "first"))
	n.WriteFile(filepath.Join(dir, "broken.json"), `{"cdiVersion": "0.6.0", "kind": "broken.com/thing", "devices": [`)
	p := n.PodConfig("refused")
	pod := n.RunPod(p)
	create := func(device string) (string, error) {
		c := n.ContainerConfig("main", "sleep", "1000")
		c.CDIDevices = []*cri.CDIDevice{{Name: device}}
		r, err := n.Runtime.CreateContainer(n.Ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: p})
		return r.GetContainerId(), err
	}
	_, err := create("broken.com/thing=one")
	wantCode(t, "CreateContainer with a device of a broken file", err, codes.InvalidArgument, "broken.com/thing=one", dir, filepath.Join(dir, "broken.json"))
	_, err = create("thing")
	wantCode(t, "CreateContainer with no qualified name", err, codes.InvalidArgument, "config.CDI_devices[0].name")
	if _, err = create("vendor.com/thing=two"); err != nil {
		t.Errorf("CreateContainer with a device of another file = %v", err)
	}
	if log := n.Log(); !strings.Contains(log, filepath.Join(dir, "broken.json")) {
		t.Error("crid's log does not name the broken file")
	}
	st, err := n.Runtime.Status(n.Ctx(), &cri.StatusRequest{Verbose: true})
	if err != nil || !strings.Contains(st.Info["cdi"], filepath.Join(dir, "broken.json")) || !strings.Contains(st.Info["cdi"], `"vendor.com/thing=one"`) {
		t.Errorf("verbose status says of CDI: %s, %v, want the broken file and the other's devices", st.GetInfo()["cdi"], err)
	}
}

// cdiNode is a node with a folder for spec files, which is not there when crid
// starts, with the device node that thing has, and with an image.
func cdiNode(t *testing.T) (n *Node, dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "cdi")
	n = NewNode(t, NodeOptions{Config: map[string]string{"cdi_spec_dirs": "[" + quote(dir) + "]"}})
	makeNode(t, n.path("dev", "thing"), syscall.S_IFCHR, 1, 11)
	n.WriteFile(n.path("opt", "file"), "library\n")
	if err := os.MkdirAll(n.path("hooks"), 0o755); err != nil {
		t.Fatal(err)
	}
	n.PullBusybox()
	return n, dir
}
