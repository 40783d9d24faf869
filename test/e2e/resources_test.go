package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func isUnified() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

// hasController is false for some on kernels that are made small, as the VM's.
func hasController(name string) bool {
	if isUnified() {
		b, _ := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
		return slices.Contains(strings.Fields(string(b)), name)
	}
	_, err := os.Stat("/sys/fs/cgroup/" + name)
	return err == nil
}

// cpuset is set where there is the controller for it.
func cpuset(set string) string {
	if !hasController("cpuset") {
		return ""
	}
	return set
}

// hugePages is a limit for each size that the kernel knows, as kubelet sends them
// with every container.
func hugePages(t *testing.T, limit uint64) []*cri.HugepageLimit {
	t.Helper()
	dirs, err := filepath.Glob("/sys/kernel/mm/hugepages/hugepages-*kB")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]string{"2048": "2MB", "1048576": "1GB", "64": "64KB", "32768": "32MB"}
	var all []*cri.HugepageLimit
	for _, d := range dirs {
		kb := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(d), "hugepages-"), "kB")
		if name := names[kb]; name != "" {
			all = append(all, &cri.HugepageLimit{PageSize: name, Limit: limit})
		}
	}
	return all
}

func (n *Node) update(id string, r *cri.LinuxContainerResources) error {
	_, err := n.Runtime.UpdateContainerResources(n.Ctx(), &cri.UpdateContainerResourcesRequest{ContainerId: id, Linux: r})
	return err
}

func (n *Node) mustUpdate(id string, r *cri.LinuxContainerResources) {
	n.T.Helper()
	if err := n.update(id, r); err != nil {
		n.T.Fatalf("UpdateContainerResources(%v) = %v\n%s", r, err, tail(n.Log()))
	}
}

func (n *Node) resources(id string) *cri.LinuxContainerResources {
	n.T.Helper()
	return n.Status(id).GetResources().GetLinux()
}

// limitsOf is what the kernel has, in the words of either version of cgroups.
func limitsOf(t *testing.T, pid int) map[string]string {
	t.Helper()
	got := map[string]string{"memory": cgroupValue(t, pid, "memory", "memory.limit_in_bytes", "memory.max")}
	if hasController("cpuset") {
		got["cpus"] = cgroupValue(t, pid, "cpuset", "cpuset.cpus", "cpuset.cpus")
		got["mems"] = cgroupValue(t, pid, "cpuset", "cpuset.mems", "cpuset.mems")
	}
	if isUnified() {
		quota, period, _ := strings.Cut(cgroupValue(t, pid, "", "", "cpu.max"), " ")
		got["quota"], got["period"] = strings.Replace(quota, "max", "-1", 1), period
		got["memory"] = strings.Replace(got["memory"], "max", "-1", 1)
	} else {
		got["quota"] = cgroupValue(t, pid, "cpu", "cpu.cfs_quota_us", "")
		got["period"] = cgroupValue(t, pid, "cpu", "cpu.cfs_period_us", "")
		got["shares"] = cgroupValue(t, pid, "cpu", "cpu.shares", "")
		got["memory"] = strings.Replace(got["memory"], "9223372036854771712", "-1", 1)
	}
	return got
}

func wantLimits(t *testing.T, when string, pid int, want map[string]string) {
	t.Helper()
	got := limitsOf(t, pid)
	for what, value := range want {
		if isUnified() && what == "shares" {
			continue // another scale: TestCgroupV2
		}
		if (what == "cpus" || what == "mems") && !hasController("cpuset") {
			continue
		}
		if got[what] != value {
			t.Errorf("%s: the kernel has %s %s, want %s", when, what, got[what], value)
		}
	}
}

// Every field at creation, as the kernel has it, and what the status says of it.
func TestResourcesAtCreate(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("fields")
	pod := n.RunPod(p)
	c := n.ContainerConfig("main", "sleep", "1000")
	c.Linux.Resources = &cri.LinuxContainerResources{
		CpuPeriod: 50000, CpuQuota: 25000, CpuShares: 512, MemoryLimitInBytes: 64<<20 + 1, // no whole page
		OomScoreAdj: 900, CpusetCpus: cpuset("0"), CpusetMems: cpuset("0"), HugepageLimits: hugePages(t, 0),
	}
	id := n.Run(pod, p, c)
	pid := n.containerPID(id)
	wantLimits(t, "created", pid, map[string]string{
		"period": "50000", "quota": "25000", "shares": "512", "memory": "67108864", "cpus": "0", "mems": "0",
	})
	for _, h := range c.Linux.Resources.HugepageLimits {
		if !hasController("hugetlb") {
			break // nothing but: the container is there
		}
		if got := cgroupValue(t, pid, "hugetlb", "hugetlb."+h.PageSize+".limit_in_bytes", "hugetlb."+h.PageSize+".max"); got != "0" {
			t.Errorf("limit of huge pages of %s = %s, want 0", h.PageSize, got)
		}
	}
	if got := n.Exec(id, "cat", "/proc/self/oom_score_adj"); got != "900\n" {
		t.Errorf("score seen from inside: %q, want 900", got)
	}
	if got := n.Exec(id, "grep", "Cpus_allowed_list", "/proc/self/status"); hasController("cpuset") && got != "Cpus_allowed_list:\t0\n" {
		t.Errorf("CPUs seen from inside: %q, want 0", got)
	}
	r := n.resources(id)
	want := proto.CloneOf(c.Linux.Resources)
	want.MemoryLimitInBytes, want.MemorySwapLimitInBytes = 64<<20, r.MemorySwapLimitInBytes
	if r.MemorySwapLimitInBytes != 0 && r.MemorySwapLimitInBytes != 64<<20 {
		t.Errorf("reported swap limit = %d, want that of memory, or none", r.MemorySwapLimitInBytes)
	}
	if len(r.HugepageLimits) != len(want.HugepageLimits) {
		t.Errorf("reported huge pages = %v, want %v", r.HugepageLimits, want.HugepageLimits)
	}
	r.HugepageLimits, want.HugepageLimits = nil, nil // another order
	if !proto.Equal(r, want) {
		t.Errorf("reported resources = %v, want %v", r, want)
	}

	refused := func(name string, r *cri.LinuxContainerResources, words ...string) {
		t.Helper()
		bad := n.ContainerConfig("refused", "sleep", "1000")
		bad.Linux.Resources = r
		_, err := n.Runtime.CreateContainer(n.Ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: bad, SandboxConfig: p})
		wantCode(t, "CreateContainer with "+name, err, codes.InvalidArgument, words...)
	}
	refused("too little memory", &cri.LinuxContainerResources{MemoryLimitInBytes: 4096}, "memory_limit_in_bytes", "4096 bytes are not enough to start")
	refused("swap below memory", &cri.LinuxContainerResources{MemoryLimitInBytes: 2 << 30, MemorySwapLimitInBytes: 1 << 30}, "memory_swap_limit_in_bytes")
	if hasController("hugetlb") && len(hugePages(t, 0)) > 0 {
		refused("an unknown size of huge pages", &cri.LinuxContainerResources{HugepageLimits: []*cri.HugepageLimit{{PageSize: "3MB"}}}, "hugepage_limits", "3MB")
	}
	if !hasController("cpuset") {
		refused("CPUs without the controller", &cri.LinuxContainerResources{CpusetCpus: "0"}, "config.linux.resources.cpuset_cpus")
	}
	if !isUnified() {
		refused("unified without cgroup v2", &cri.LinuxContainerResources{Unified: map[string]string{"memory.high": "1000000"}}, "config.linux.resources.unified")
	}
}

func TestUpdateResources(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("update")
	pod := n.RunPod(p)
	c := n.ContainerConfig("main", "sleep", "1000")
	c.Linux.Resources = &cri.LinuxContainerResources{CpuShares: 512, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 500, HugepageLimits: hugePages(t, 0)}
	id := n.CreateContainer(pod, p, c)

	n.mustUpdate(id, &cri.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 50000})
	pid := n.containerPID(id)
	wantLimits(t, "updated while created", pid, map[string]string{"period": "100000", "quota": "50000", "shares": "512", "memory": "67108864"})
	n.StartContainer(id)
	n.mustUpdate(id, &cri.LinuxContainerResources{
		CpuShares: 1024, CpuQuota: 75000, MemoryLimitInBytes: 128<<20 + 5, CpusetCpus: cpuset("0"), OomScoreAdj: 600, HugepageLimits: hugePages(t, 0),
	})
	want := map[string]string{"period": "100000", "quota": "75000", "shares": "1024", "memory": "134217728", "cpus": "0"}
	wantLimits(t, "updated while running", pid, want)
	reported := func(when string) {
		t.Helper()
		r := n.resources(id)
		if r.CpuPeriod != 100000 || r.CpuQuota != 75000 || r.CpuShares != 1024 || r.MemoryLimitInBytes != 128<<20 || r.CpusetCpus != cpuset("0") || r.OomScoreAdj != 600 {
			t.Errorf("%s: reported %v, the kernel has %v", when, r, want)
		}
	}
	reported("updated while running")
	if got := n.Sh(id, "cat /proc/1/oom_score_adj /proc/self/oom_score_adj; echo >/dev/null && head -c 1 /dev/zero | wc -c"); got != "600\n600\n1\n" {
		t.Errorf("after an update inside: %q, want the score 600 twice, and devices that work", got)
	}

	t.Run("devices", func(t *testing.T) {
		if isUnified() {
			t.Skip("rules are a program in the kernel with cgroup v2: TestDevicePermissions")
		}
		if got := cgroupValue(t, pid, "devices", "devices.list", ""); strings.Contains(got, "a *:* rwm") {
			t.Errorf("the container may use all devices after an update: %s", got)
		}
	})
	t.Run("reload", func(t *testing.T) {
		if n.Programs.CgroupDriver != "systemd" {
			t.Skip("for the systemd driver")
		}
		if out, err := exec.Command("systemctl", "daemon-reload").CombinedOutput(); err != nil {
			t.Fatalf("systemctl daemon-reload: %v: %s", err, out)
		}
		wantLimits(t, "after daemon-reload", pid, want)
	})
	t.Run("restart", func(t *testing.T) {
		n.Restart()
		reported("after a restart of crid")
		wantLimits(t, "after a restart of crid", pid, want)
	})
	t.Run("all or nothing", func(t *testing.T) {
		if !hasController("cpuset") {
			t.Skip("this kernel does not refuse what crid lets through") // TestUpdateIsAllOrNothing
		}
		err := n.update(id, &cri.LinuxContainerResources{CpuQuota: 20000, MemoryLimitInBytes: 96 << 20, CpusetCpus: "9999"})
		wantCode(t, "UpdateContainerResources to a CPU that is not there", err, codes.InvalidArgument)
		wantLimits(t, "after an update that failed", pid, want)
		reported("after an update that failed")
	})
	t.Run("below usage", func(t *testing.T) {
		n.Sh(id, "head -c 40000000 /dev/zero >/dev/shm/x")
		err := n.update(id, &cri.LinuxContainerResources{MemoryLimitInBytes: 16 << 20})
		wantCode(t, "UpdateContainerResources to less than is in use", err, codes.FailedPrecondition, "memory")
		wantLimits(t, "after a limit below what is in use", pid, want)
		n.Sh(id, "rm /dev/shm/x")
	})
	t.Run("no limit", func(t *testing.T) {
		n.mustUpdate(id, &cri.LinuxContainerResources{CpuQuota: -1, MemoryLimitInBytes: -1})
		wantLimits(t, "without limits", pid, map[string]string{"quota": "-1", "memory": "-1", "shares": "1024"})
		if r := n.resources(id); r.CpuQuota != -1 || r.MemoryLimitInBytes != -1 {
			t.Errorf("reported without limits: %v", r)
		}
	})
	t.Run("refused", func(t *testing.T) {
		if hasController("cpuset") {
			wantCode(t, "no such CPU", n.update(id, &cri.LinuxContainerResources{CpusetCpus: "8191"}), codes.InvalidArgument, "linux.cpuset_cpus")
		}
		wantCode(t, "of none", n.update("none", &cri.LinuxContainerResources{CpuQuota: 20000}), codes.NotFound)
		wantCode(t, "malformed", n.update(id, &cri.LinuxContainerResources{CpuPeriod: 7}), codes.InvalidArgument, "linux.cpu_period")
		if _, err := n.Runtime.StopContainer(n.Ctx(), &cri.StopContainerRequest{ContainerId: id}); err != nil {
			t.Fatal(err)
		}
		wantCode(t, "of what has exited", n.update(id, &cri.LinuxContainerResources{CpuQuota: 20000}), codes.FailedPrecondition, "exited")
	})
}

// The limit of swap is the sum of memory and swap, at creation and later.
func TestSwapLimit(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("swap")
	pod := n.RunPod(p)
	c := n.ContainerConfig("main", "sleep", "1000")
	c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}
	if n.resources(n.Run(pod, p, c)).MemorySwapLimitInBytes == 0 {
		t.Skip("this kernel does not limit swap")
	}
	c = n.ContainerConfig("swap", "sleep", "1000")
	c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 96 << 20}
	id := n.Run(pod, p, c)
	pid := n.containerPID(id)
	want := func(when string, memory, sum int64) {
		t.Helper()
		swap := sum // v1 counts both together
		if isUnified() && sum >= 0 {
			swap = sum - memory
		}
		text := strings.NewReplacer("max", "-1", "9223372036854771712", "-1")
		gotMemory := text.Replace(cgroupValue(t, pid, "memory", "memory.limit_in_bytes", "memory.max"))
		gotSwap := text.Replace(cgroupValue(t, pid, "memory", "memory.memsw.limit_in_bytes", "memory.swap.max"))
		if gotMemory != fmt.Sprint(memory) || gotSwap != fmt.Sprint(swap) {
			t.Errorf("%s: the kernel has %s and %s for swap, want %d and %d", when, gotMemory, gotSwap, memory, swap)
		}
		if r := n.resources(id); r.MemoryLimitInBytes != memory || r.MemorySwapLimitInBytes != sum {
			t.Errorf("%s: reported %d and %d, want %d and %d", when, r.MemoryLimitInBytes, r.MemorySwapLimitInBytes, memory, sum)
		}
	}
	want("created", 64<<20, 96<<20)
	n.mustUpdate(id, &cri.LinuxContainerResources{MemoryLimitInBytes: 32 << 20})
	want("less memory, as much swap", 32<<20, 64<<20)
	n.mustUpdate(id, &cri.LinuxContainerResources{MemoryLimitInBytes: 128 << 20})
	want("more memory, as much swap", 128<<20, 160<<20)
	wantCode(t, "more memory than the sum", n.update(id, &cri.LinuxContainerResources{MemoryLimitInBytes: 256 << 20, MemorySwapLimitInBytes: 160 << 20}), codes.InvalidArgument, "linux.memory_swap_limit_in_bytes")
	want("after what is refused", 128<<20, 160<<20)
	n.mustUpdate(id, &cri.LinuxContainerResources{MemoryLimitInBytes: 192 << 20, MemorySwapLimitInBytes: 256 << 20})
	want("more of both", 192<<20, 256<<20)
	n.mustUpdate(id, &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20})
	want("no swap", 64<<20, 64<<20)
	n.mustUpdate(id, &cri.LinuxContainerResources{MemoryLimitInBytes: -1})
	want("no limit", -1, -1)
	n.mustUpdate(id, &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20})
	want("limited again", 64<<20, 64<<20)
}

// Raw files of cgroup v2, at creation and changed one by one.
func TestUnified(t *testing.T) {
	unified(t)
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("unified")
	pod := n.RunPod(p)
	c := n.ContainerConfig("main", "sleep", "1000")
	c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, Unified: map[string]string{"memory.oom.group": "1", "pids.max": "50"}}
	id := n.Run(pod, p, c)
	pid := n.containerPID(id)
	n.mustUpdate(id, &cri.LinuxContainerResources{Unified: map[string]string{"pids.max": "60", "memory.high": "33554433"}})
	for file, want := range map[string]string{"memory.oom.group": "1", "pids.max": "60", "memory.high": "33554432", "memory.max": "67108864"} {
		if got := cgroupValue(t, pid, "", "", file); got != want {
			t.Errorf("%s = %s, want %s", file, got, want)
		}
	}
	u := n.resources(id).Unified
	if fmt.Sprint(u) != "map[memory.high:33554432 memory.oom.group:1 pids.max:60]" {
		t.Errorf("reported %v", u)
	}
	err := n.update(id, &cri.LinuxContainerResources{Unified: map[string]string{"memory.nonsense": "1", "pids.max": "70"}})
	if err == nil {
		t.Error("UpdateContainerResources of a file that is not there = nil, want an error")
	}
	if got := cgroupValue(t, pid, "", "", "pids.max"); got != "60" {
		t.Errorf("pids.max after an update that failed = %s, want 60", got)
	}
}

func TestUpdatePodResources(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	pod := n.RunPod(n.PodConfig("pod"))
	r := &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: pod, Resources: &cri.LinuxContainerResources{CpuShares: 2048, MemoryLimitInBytes: 1 << 30}}
	for range 2 {
		if _, err := n.Runtime.UpdatePodSandboxResources(n.Ctx(), r); err != nil {
			t.Errorf("UpdatePodSandboxResources = %v", err)
		}
	}
	n.Restart()
	st, err := n.Runtime.PodSandboxStatus(n.Ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: pod, Verbose: true})
	if err != nil || !strings.Contains(st.Info["info"], `"cpu_shares":2048`) {
		t.Errorf("verbose status = %v, %v, want the new resources in it", st, err)
	}
	r.PodSandboxId = "none"
	_, err = n.Runtime.UpdatePodSandboxResources(n.Ctx(), r)
	wantCode(t, "UpdatePodSandboxResources of none", err, codes.NotFound)
}
