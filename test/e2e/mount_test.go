package e2e

import (
	"os"
	"strings"
	"syscall"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// rootIsShared reports whether what is mounted on the node is seen in other mount
// namespaces, as systemd arranges it. The monitor then has one of its own.
func rootIsShared(t *testing.T) bool {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	shared := false
	for line := range strings.Lines(string(b)) {
		// 21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw; the last one is on top.
		if f := strings.Fields(line); len(f) > 6 && f[4] == "/" {
			shared = strings.HasPrefix(f[6], "shared:")
		}
	}
	return shared
}

// A node's mount table does not grow with its containers where that can be had.
func TestRootfsMountsAreTheMonitors(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("mounts")
	pod := n.RunPod(p)
	n.Run(pod, p, n.ContainerConfig("main", "sleep", "1000"))
	seen := 0
	for _, m := range n.mounts() {
		if strings.HasPrefix(m, n.path("state", "monitor", "rootfs")+"/") {
			seen++
		}
	}
	want := 1
	if rootIsShared(t) {
		want = 0
	}
	if seen != want {
		t.Errorf("the node's mount table has %d root file systems, want %d:\n%s", seen, want, strings.Join(n.mounts(), "\n"))
	}
}

// mountTmpfs mounts one at dir with a file in it, until unmount or the test's end.
func mountTmpfs(t *testing.T, dir string) (unmount func()) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	if err := os.WriteFile(dir+"/f", []byte("here\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}
}

// Volumes that are mounted after the monitor was started, before and after the
// container was, arrive in it as its mounts' propagation says; and the other way.
func TestMountPropagation(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	volume := n.path("volume")
	for _, dir := range []string{volume, volume + "/late", volume + "/inner"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if !rootIsShared(t) {
		// What kubelet's administrator has to do there.
		if err := syscall.Mount(volume, volume, "", syscall.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = syscall.Unmount(volume, syscall.MNT_DETACH) })
		if err := syscall.Mount("", volume, "", syscall.MS_SHARED, ""); err != nil {
			t.Fatal(err)
		}
	}
	early := mountTmpfs(t, volume+"/early")

	p := n.PodConfig("propagation")
	p.Linux.SecurityContext.Privileged = true
	pod := n.RunPod(p)
	c := n.ContainerConfig("main", "sleep", "1000")
	c.Linux.SecurityContext.Privileged = true
	c.Mounts = []*cri.Mount{
		{HostPath: volume, ContainerPath: "/private"},
		{HostPath: volume, ContainerPath: "/slave", Propagation: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
		{HostPath: volume, ContainerPath: "/shared", Propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL},
	}
	id := n.Run(pod, p, c)
	late := mountTmpfs(t, volume+"/late")
	for path, want := range map[string]string{
		"/private/early/f": "here\n", "/slave/early/f": "here\n", "/shared/early/f": "here\n",
		"/private/late/f": "", "/slave/late/f": "here\n", "/shared/late/f": "here\n",
	} {
		if got := n.Sh(id, "cat "+path+" 2>/dev/null || true"); got != want {
			t.Errorf("%s in the container = %q, want %q", path, got, want)
		}
	}

	n.Sh(id, "mount -t tmpfs tmpfs /shared/inner && echo from inside >/shared/inner/f")
	t.Cleanup(func() { _ = syscall.Unmount(volume+"/inner", syscall.MNT_DETACH) })
	if got, err := os.ReadFile(volume + "/inner/f"); err != nil || string(got) != "from inside\n" {
		t.Errorf("what the container has mounted, on the node = %q, %v", got, err)
	}
	n.Sh(id, "umount /shared/inner")
	if _, err := os.Stat(volume + "/inner/f"); err == nil {
		t.Error("what the container has unmounted is still there on the node")
	}
	// A volume that kubelet takes away is not held by the containers that saw it.
	late()
	if got := n.Sh(id, "cat /slave/late/f 2>/dev/null || true"); got != "" {
		t.Errorf("an unmounted volume in the container = %q, want nothing", got)
	}
	n.RemovePod(pod)
	early()
}
