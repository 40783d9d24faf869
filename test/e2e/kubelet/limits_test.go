package kubelet

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestLimits(t *testing.T) {
	k := newKubelet(t, options{kubelet: map[string]any{
		"podPidsLimit":         40,
		"singleProcessOOMKill": true, // version 1 knows nothing else
	}})
	k.run("burstable", `
		overhead: {memory: 16Mi, cpu: 100m}
		containers:
		- name: main
			image: IMAGE
			command: [sleep, "1000"]
			resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 500m, memory: 64Mi}}
		- name: other
			image: IMAGE
			command: [sleep, "1000"]
			resources: {requests: {cpu: 200m}, limits: {cpu: "1", memory: 32Mi}}
	`)
	k.run("guaranteed", `
		containers:
		- name: main
			image: IMAGE
			command: [sleep, "1000"]
			resources: {limits: {cpu: 250m, memory: 32Mi}, requests: {cpu: 250m, memory: 32Mi}}
	`)
	k.run("best-effort", `
		containers:
		- name: main
			image: IMAGE
			command: [sleep, "1000"]
	`)

	k.parallel("Container", (*kubelet).containerLimits)
	k.parallel("QoS", (*kubelet).qosCgroups)
	k.parallel("PodLevel", (*kubelet).podLevel)
	k.parallel("HugePages", (*kubelet).hugePages)
	k.parallel("OOMScore", (*kubelet).oomScore)
	k.parallel("OOMKilled", (*kubelet).oomKilled)
	k.parallel("OOMKilledChild", (*kubelet).oomKilledChild)
	k.parallel("Processes", (*kubelet).processes)
}

// ownLimits prints the limits that a container finds in its own cgroup, in version 2's
// words: memory, CPU quota and period; and version 1's cpu.shares where they are.
const ownLimits = `cd /sys/fs/cgroup
if test -e cgroup.controllers; then
	echo $(cat memory.max cpu.max)
else
	echo $(cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us) | sed 's/^9223372036854771712/max/;s/ -1 / max /'
	cat cpu/cpu.shares
fi`

// wantLimits checks what a container finds: limits as ownLimits prints them, and shares
// of which 1024 are one CPU.
func (k *kubelet) wantLimits(pod, container, limits string, shares int) {
	k.t.Helper()
	got, own, v1 := strings.Cut(k.sh(pod, container, ownLimits), "\n")
	if got != limits || v1 && own != fmt.Sprint(shares) {
		k.t.Errorf("%s, %s: memory, quota and period are %q, cpu.shares %q; want %q and %d", pod, container, got, own, limits, shares)
	}
}

// containerLimits: what the manifest says is what the container's own cgroup files
// say, and what the pod's status reports as in force, which is crid's word.
func (k *kubelet) containerLimits() {
	p := k.await("burstable", "is ready", ready)
	k.await("guaranteed", "is ready", ready)
	k.await("best-effort", "is ready", ready)
	for _, c := range []struct {
		pod, container, limits string
		shares                 int
	}{
		{"burstable", "main", "67108864 50000 100000", 102},
		{"burstable", "other", "33554432 100000 100000", 204},
		{"guaranteed", "main", "33554432 25000 100000", 256},
		{"best-effort", "main", "max max 100000", 2},
	} {
		k.wantLimits(c.pod, c.container, c.limits, c.shares)
	}
	r := container(p, "main").Resources
	if r == nil || !r.Limits.Cpu().Equal(resource.MustParse("500m")) || !r.Limits.Memory().Equal(resource.MustParse("64Mi")) || !r.Requests.Cpu().Equal(resource.MustParse("100m")) {
		k.t.Errorf("the status says that %+v are in force", r)
	}
}

// podCgroup is the folder of a pod's cgroup, below its QoS class, in the hierarchy
// of a controller.
func (k *kubelet) podCgroup(p *corev1.Pod, controller string) string {
	class := map[corev1.PodQOSClass]string{
		corev1.PodQOSGuaranteed: "", corev1.PodQOSBurstable: "burstable", corev1.PodQOSBestEffort: "besteffort",
	}[p.Status.QOSClass]
	root := "/sys/fs/cgroup"
	if _, err := os.Stat(root + "/cgroup.controllers"); err != nil {
		root = filepath.Join(root, controller)
	}
	return filepath.Join(root, k.Cgroup, "kubepods", class, "pod"+p.Annotations["kubernetes.io/config.hash"])
}

// qosCgroups: kubelet's class is where crid has put the containers, and what kubelet
// limits there is theirs in sum, with the pod's overhead.
func (k *kubelet) qosCgroups() {
	for name, class := range map[string]corev1.PodQOSClass{
		"burstable": corev1.PodQOSBurstable, "guaranteed": corev1.PodQOSGuaranteed, "best-effort": corev1.PodQOSBestEffort,
	} {
		p := k.await(name, "is ready", ready)
		if p.Status.QOSClass != class {
			k.t.Errorf("%s is %s, want %s", name, p.Status.QOSClass, class)
		}
		for _, controller := range []string{"cpu", "memory", "pids"} {
			for _, c := range p.Status.ContainerStatuses {
				_, id, _ := strings.Cut(c.ContainerID, "://")
				own, _ := filepath.Glob(filepath.Join(k.podCgroup(p, controller), "*"+id+"*", "cgroup.procs"))
				if len(own) != 1 {
					k.t.Errorf("%s, %s: cgroups of %s below %s: %q", name, c.Name, controller, k.podCgroup(p, controller), own)
				} else if b, err := os.ReadFile(own[0]); len(b) == 0 {
					k.t.Errorf("%s, %s: nobody is in %s (%v)", name, c.Name, own[0], err)
				}
			}
		}
	}
	if got, want := k.podMemory("burstable"), "117440512"; got != want { // 64 + 32 + 16 MiB
		k.t.Errorf("the pod's memory limit is %s, want %s", got, want)
	}
}

// podMemory is the memory limit of a pod's cgroup.
func (k *kubelet) podMemory(name string) string {
	p := k.await(name, "is ready", ready)
	for _, file := range []string{"memory.max", "memory.limit_in_bytes"} {
		if b, err := os.ReadFile(filepath.Join(k.podCgroup(p, "memory"), file)); err == nil {
			return strings.TrimSpace(string(b))
		}
	}
	return "unknown"
}

// podLevel: limits of the pod as a whole, which containers without their own have.
func (k *kubelet) podLevel() {
	k.run("pod-level", `
		resources: {requests: {cpu: 300m, memory: 48Mi}, limits: {cpu: "2", memory: 96Mi}}
		containers:
		- name: main
			image: IMAGE
			command: [sleep, "1000"]
		- name: less
			image: IMAGE
			command: [sleep, "1000"]
			resources: {limits: {memory: 24Mi}, requests: {memory: 24Mi}}
	`)
	k.await("pod-level", "is ready", ready)
	if got, want := k.podMemory("pod-level"), "100663296"; got != want {
		k.t.Errorf("the pod's memory limit is %s, want %s", got, want)
	}
	for c, want := range map[string]string{"main": "100663296 200000 100000", "less": "25165824 200000 100000"} {
		if got, _, _ := strings.Cut(k.sh("pod-level", c, ownLimits), "\n"); got != want {
			k.t.Errorf("%s: memory, quota and period are %q, want %q", c, got, want)
		}
	}
}

// hugePages: kubelet limits the use of each page size of the machine to nothing, for
// each container. Where there is no such controller the containers run without.
func (k *kubelet) hugePages() {
	k.await("best-effort", "is ready", ready)
	limits := strings.Fields(k.sh("best-effort", "main", `cd /sys/fs/cgroup
		cat hugetlb.*.max hugetlb/hugetlb.[0-9]*B.limit_in_bytes 2>/dev/null || true`))
	for _, l := range limits {
		if l != "0" {
			k.t.Errorf("limits of huge pages are %q, want 0 each", limits)
		}
	}
	_, v1 := os.Stat("/sys/fs/cgroup/hugetlb")
	controllers, _ := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if there := v1 == nil || strings.Contains(string(controllers), "hugetlb"); there != (len(limits) > 0) {
		k.t.Errorf("the machine has the controller: %v; the container's limits: %q", there, limits)
	}
}

// oomScore: kubelet asks for -997 for guaranteed pods and for those of priority
// system-node-critical, which only CAP_SYS_RESOURCE may set. Without it they get the
// lowest that there is, and run.
func (k *kubelet) oomScore() {
	k.run("node-critical", `
		priorityClassName: system-node-critical
		containers:
		- name: main
			image: IMAGE
			command: [sleep, "1000"]
	`)
	lowest := k.lowestOOMScore(-997)
	for pod, want := range map[string]string{"guaranteed": lowest, "node-critical": lowest, "best-effort": "1000"} {
		k.await(pod, "is ready", ready)
		if got := k.sh(pod, "main", "cat /proc/1/oom_score_adj /proc/self/oom_score_adj"); got != want+"\n"+want {
			k.t.Errorf("%s: oom_score_adj of the container and of an exec are %q, want %s", pod, got, want)
		}
	}
}

// lowestOOMScore is what a process of this test has after it has asked for a score.
func (k *kubelet) lowestOOMScore(score int) string {
	out, err := exec.Command("sh", "-c", fmt.Sprintf("(echo %d >/proc/$$/oom_score_adj) 2>/dev/null; cat /proc/$$/oom_score_adj", score)).Output()
	if err != nil {
		k.t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// oomKilled: the reason is the kernel's, which crid has counted.
func (k *kubelet) oomKilled() {
	k.run("oom", `
		restartPolicy: Never
		containers:
		- name: main
			image: IMAGE
			command: [tail, /dev/zero]
			resources: {limits: {memory: 24Mi}}
	`)
	p := k.await("oom", "has failed", failed)
	if s := container(p, "main").State.Terminated; s == nil || s.Reason != "OOMKilled" || s.ExitCode != 137 {
		k.t.Errorf("it ended with %+v, want OOMKilled and 137", s)
	}
}

// oomKilledChild: a kill that takes only a child is no end of the container.
func (k *kubelet) oomKilledChild() {
	k.run("oom-child", `
		containers:
		- name: main
			image: IMAGE
			command: [sh, -c, "tail /dev/zero; echo the child ended with $?; exec sleep 1000"]
			resources: {limits: {memory: 24Mi}}
	`)
	k.eventually("the child has ended", func() error {
		k.untouched("oom-child", "main", 0)
		if log := k.logs("oom-child", "main"); !strings.Contains(log, "the child ended with 137") {
			return fmt.Errorf("its log is %q", log)
		}
		return nil
	})
	k.untouched("oom-child", "main", 0)
}

// processes: no more than podPidsLimit in a pod.
func (k *kubelet) processes() {
	k.run("processes", `
		restartPolicy: Never
		containers:
		- name: main
			image: IMAGE
			command: [sh, -c, "for i in $(seq 60); do sleep 1000 & echo $i; done 2>&1"]
	`)
	k.await("processes", "has failed", failed)
	log := k.logs("processes", "main")
	if !strings.Contains(log, "can't fork") || !strings.Contains(log, "\n30\n") || strings.Contains(log, "\n41\n") {
		k.t.Errorf("with podPidsLimit 40 its log is %q", log)
	}
}
