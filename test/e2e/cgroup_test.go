package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// cgroupOf is where a process is: in the one hierarchy of v2, or that of v1's
// memory controller.
func cgroupOf(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	path := ""
	for line := range strings.Lines(string(b)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); f[1] == "memory" || f[1] == "" && path == "" {
			path = f[2]
		}
	}
	return path
}

// unit is some properties of a systemd unit, one a line.
func unit(t *testing.T, name string, properties ...string) string {
	t.Helper()
	out, err := exec.Command("systemctl", "show", "--property="+strings.Join(properties, ","), name).Output()
	if err != nil {
		t.Fatalf("systemctl show %s: %v", name, err)
	}
	return strings.TrimSpace(string(out))
}

// Containers and the pod's init are where kubelet expects them: below the pod's
// cgroup, which is made where it is missing; with systemd as units of their own.
func TestCgroupParent(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("place")
	systemd := n.Programs.CgroupDriver == "systemd"
	parent, slice := n.Cgroup+"/pod", ""
	if systemd {
		// As kubelet says it: the whole path, of which the last name says all.
		slice = strings.TrimSuffix(n.Cgroup, ".slice") + "-pod.slice"
		parent = "/" + n.Cgroup + "/" + slice
	}
	p.Linux.CgroupParent = parent
	p.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	pod := n.RunPod(p)
	c := n.ContainerConfig("main", "sleep", "1000")
	c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}
	id := n.Run(pod, p, c)
	pid := n.containerPID(id)

	base := "crid-" + id
	if systemd {
		base += ".scope"
	}
	if got, want := cgroupOf(t, pid), parent+"/"+base; got != want {
		t.Errorf("cgroup = %s, want %s", got, want)
	}
	holder := "crid-hold-" + pod
	if dirs := n.cgroups(); !strings.Contains(strings.Join(dirs, "\n"), parent+"/"+holder) {
		t.Errorf("the pod's init has no cgroup %s in %s:\n%s", holder, parent, strings.Join(dirs, "\n"))
	}
	if systemd {
		holder += ".scope"
		for _, name := range []string{base, holder} {
			if got, want := unit(t, name, "Slice", "ActiveState"), "Slice="+slice+"\nActiveState=active"; got != want {
				t.Errorf("unit %s: %s, want %s", name, got, want)
			}
		}
		// Limits that systemd does not know of would be gone after this.
		if out, err := exec.Command("systemctl", "daemon-reload").CombinedOutput(); err != nil {
			t.Fatalf("systemctl daemon-reload: %v: %s", err, out)
		}
	}
	if got := cgroupValue(t, pid, "memory", "memory.limit_in_bytes", "memory.max"); got != "67108864" {
		t.Errorf("memory limit = %s, want 67108864", got)
	}
	n.Sh(id, "echo 1 >/dev/null")

	n.RemovePod(pod)
	for _, d := range n.cgroups() {
		if strings.HasPrefix(filepath.Base(d), "crid-") && strings.Contains(d, parent+"/") {
			t.Errorf("left behind: cgroup %s", d)
		}
	}
	if systemd {
		for _, name := range []string{base, holder} {
			if got := unit(t, name, "LoadState", "ActiveState"); got != "LoadState=not-found\nActiveState=inactive" {
				t.Errorf("unit %s after removal: %s, want none", name, got)
			}
		}
	}
}

// unified skips a test on nodes without cgroup v2 or, as in the hybrid mode of
// systemd, with a v2 hierarchy that has no controllers.
func unified(t *testing.T) {
	t.Helper()
	const magic = 0x63677270 // CGROUP2_SUPER_MAGIC
	var st syscall.Statfs_t
	if err := syscall.Statfs("/sys/fs/cgroup", &st); err != nil {
		t.Fatal(err)
	}
	if st.Type != magic {
		t.Skipf("/sys/fs/cgroup is a file system of type %#x, not cgroup v2", st.Type)
	}
}

func TestCgroupV2(t *testing.T) {
	unified(t)
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("v2")
	pod := n.RunPod(p)
	c := n.ContainerConfig("main", "sleep", "1000")
	c.Linux.Resources = &cri.LinuxContainerResources{
		MemoryLimitInBytes: 64 << 20, CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512,
		Unified: map[string]string{"pids.max": "50", "memory.high": "50331648"},
	}
	id := n.Run(pod, p, c)
	dir := "/sys/fs/cgroup" + cgroupOf(t, n.containerPID(id))
	want := map[string]string{"memory.max": "67108864", "memory.high": "50331648", "cpu.max": "50000 100000", "pids.max": "50"}
	_, err := os.Stat(dir + "/memory.swap.max")
	swap := err == nil // else the kernel cannot limit it
	if swap {
		want["memory.swap.max"] = "0"
	}
	for file, want := range want {
		if got, err := os.ReadFile(dir + "/" + file); err != nil || string(got) != want+"\n" {
			t.Errorf("%s = %q, %v, want %s", file, got, err, want)
		}
	}
	if got, err := os.ReadFile(dir + "/cpu.weight"); err != nil || bytes.Equal(got, []byte("100\n")) {
		t.Errorf("cpu.weight = %q, %v, want less than the default: 512 shares are half of it", got, err)
	}

	t.Run("namespace", func(t *testing.T) {
		if got := n.Exec(id, "cat", "/proc/self/cgroup"); got != "0::/\n" {
			t.Errorf("cgroup seen from inside = %q, want the root", got)
		}
		if got := n.Exec(id, "cat", "/sys/fs/cgroup/memory.max"); got != "67108864\n" {
			t.Errorf("memory.max seen from inside = %q, want the container's own", got)
		}
		if got := n.Sh(id, "echo max 2>&1 >/sys/fs/cgroup/memory.max || true"); !strings.Contains(got, "Read-only") {
			t.Errorf("writing to the cgroup from inside = %q, want it read-only", got)
		}
	})
	t.Run("swap", func(t *testing.T) {
		c := n.ContainerConfig("swap", "sleep", "1000")
		c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 96 << 20}
		if !swap {
			_, err := n.Runtime.CreateContainer(n.Ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: p})
			wantCode(t, "CreateContainer with swap on a kernel that cannot limit it", err, codes.InvalidArgument, "memory_swap_limit_in_bytes")
			return
		}
		pid := n.containerPID(n.Run(pod, p, c))
		if got := cgroupValue(t, pid, "", "", "memory.swap.max"); got != "33554432" {
			t.Errorf("memory.swap.max = %s, want what is above the memory limit, 33554432", got)
		}
	})
}

// A container that may, such as one with systemd in it, makes cgroups of its own
// and hands them controllers; the kernel then allows no process in the
// container's cgroup itself. Execs get in all the same, and stop and removal
// take everything along.
func TestCgroupsInContainer(t *testing.T) {
	unified(t)
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("nested")
	p.Linux.SecurityContext.Privileged = true
	pod := n.RunPod(p)
	c := n.ContainerConfig("main", "sh", "-c", `d=/sys/fs/cgroup$(sed s/0:://  /proc/self/cgroup)
		mkdir -p $d/init $d/app/deep && echo $$ >$d/init/cgroup.procs && echo +pids >$d/cgroup.subtree_control
		sleep 4321 & echo $! >$d/app/deep/cgroup.procs; exec sleep 4322`)
	c.Linux.SecurityContext.Privileged = true
	id := n.Run(pod, p, c)
	n.Eventually("a process in a cgroup inside", func() bool {
		for _, d := range n.cgroups() {
			if strings.HasSuffix(d, "/app/deep") {
				b, err := os.ReadFile(d + "/cgroup.procs")
				return err == nil && len(b) > 0
			}
		}
		return false
	})
	if got := n.Exec(id, "cat", "/proc/self/cgroup"); !strings.Contains(got, "crid-"+id) {
		t.Errorf("cgroup of an exec = %q, want one of the container's", got)
	}
	if _, err := n.Runtime.StopContainer(n.Ctx(), &cri.StopContainerRequest{ContainerId: id}); err != nil {
		t.Error(err)
	}
	if _, err := n.Runtime.RemoveContainer(n.Ctx(), &cri.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Error(err)
	}
	if left := strings.Join(n.cgroups(), "\n"); strings.Contains(left, id) {
		t.Errorf("left behind:\n%s", left)
	}
}
