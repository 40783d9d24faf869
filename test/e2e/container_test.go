package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestExitCodesAndReasons(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("exits")
	pod := n.RunPod(p)
	for _, test := range []struct {
		name, script string
		code         int32
		reason       string
	}{
		{"zero", "exit 0", 0, "Completed"},
		{"three", "exit 3", 3, "Error"},
		{"term", "kill -TERM $$", 143, "Error"},
		{"kill", "kill -KILL $$", 137, "Error"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := n.ContainerConfig(test.name, "sh", "-c", test.script)
			if test.name == "term" || test.name == "kill" {
				// PID 1 of a namespace cannot kill itself: a child does the dying.
				c.Command = []string{"sh", "-c", "sh -c '" + test.script + "'; exit $?"}
			}
			s := n.WaitExit(n.Run(pod, p, c))
			if s.ExitCode != test.code || s.Reason != test.reason {
				t.Errorf("exit code %d, reason %q; want %d, %q", s.ExitCode, s.Reason, test.code, test.reason)
			}
			if s.FinishedAt < s.StartedAt || s.StartedAt == 0 {
				t.Errorf("started %d, finished %d", s.StartedAt, s.FinishedAt)
			}
		})
	}
}

func TestStartFailure(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("nostart")
	pod := n.RunPod(p)
	id := n.CreateContainer(pod, p, n.ContainerConfig("main", "/no/such/program"))
	_, err := n.Runtime.StartContainer(n.Ctx(), &cri.StartContainerRequest{ContainerId: id})
	if err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("StartContainer = %v, want an error that names the program", err)
	}
	s := n.WaitExit(id)
	if s.ExitCode != 128 || s.Reason != "StartError" || !strings.Contains(s.Message, "/no/such/program") {
		t.Errorf("exit code %d, reason %q, message %q; want 128, StartError, naming the program", s.ExitCode, s.Reason, s.Message)
	}
	_, err = n.Runtime.StartContainer(n.Ctx(), &cri.StartContainerRequest{ContainerId: id})
	wantCode(t, "StartContainer of an exited container", err, codes.FailedPrecondition)
}

func TestStopSignals(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("stops")
	pod := n.RunPod(p)
	for _, test := range []struct {
		name, script string
		signal       cri.Signal
		timeout      int64
		code         int32
	}{
		{"default-term", "trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done", cri.Signal_SIGNAL_RUNTIME_DEFAULT, 60, 7},
		{"configured-int", "trap 'exit 8' INT; echo up; while :; do sleep 0.05; done", cri.Signal_SIGNAL_SIGINT, 60, 8},
		{"ignored-then-kill", "trap '' TERM; echo up; while :; do sleep 0.05; done", cri.Signal_SIGNAL_RUNTIME_DEFAULT, 1, 137},
		{"zero-kills", "trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done", cri.Signal_SIGNAL_RUNTIME_DEFAULT, 0, 137},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := n.ContainerConfig(test.name, "sh", "-c", test.script)
			c.StopSignal = test.signal
			id := n.Run(pod, p, c)
			n.Eventually("container is up", func() bool { return strings.Contains(n.ContainerLog(p, c), "stdout F up") })
			for range 2 { // the second stop of a stopped container is success
				if _, err := n.Runtime.StopContainer(n.Ctx(), &cri.StopContainerRequest{ContainerId: id, Timeout: test.timeout}); err != nil {
					t.Fatal(err)
				}
			}
			if s := n.Status(id); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != test.code {
				t.Errorf("after stop: %v, code %d; want exited, %d", s.State, s.ExitCode, test.code)
			}
		})
	}
}

// A container whose processes share the pod's PID namespace takes them with it.
func TestStopKillsTheWholeCgroup(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("tree")
	p.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	pod := n.RunPod(p)
	c := n.ContainerConfig("main", "sh", "-c", "setsid sleep 4321 & setsid sh -c 'trap \"\" TERM; sleep 4322' & sleep 4323")
	c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	id := n.Run(pod, p, c)
	n.Eventually("three sleeps", func() bool { return strings.Count(n.Exec(id, "ps"), " sleep 432") >= 3 })
	if _, err := n.Runtime.StopContainer(n.Ctx(), &cri.StopContainerRequest{ContainerId: id, Timeout: 1}); err != nil {
		t.Fatal(err)
	}
	n.Eventually("no process of the container", func() bool {
		for _, q := range n.processes() {
			if strings.Contains(q.cmdline, "sleep 432") {
				return false
			}
		}
		return true
	})
}

func TestOOMKilled(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("oom")
	pod := n.RunPod(p)
	c := n.ContainerConfig("main", "sh", "-c", "x=a; while :; do x=$x$x; done")
	c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 32 << 20}
	s := n.WaitExit(n.Run(pod, p, c))
	if s.Reason != "OOMKilled" || s.ExitCode != 137 {
		t.Errorf("reason %q, code %d; want OOMKilled, 137", s.Reason, s.ExitCode)
	}
}

// cgroupValue reads a cgroup file of the container's first process: the first
// of the names that exists.
func cgroupValue(t *testing.T, pid int, v1Controller, v1File, v2File string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		for _, controller := range strings.Split(f[1], ",") {
			if controller == v1Controller {
				if v, err := os.ReadFile("/sys/fs/cgroup/" + v1Controller + f[2] + "/" + v1File); err == nil {
					return strings.TrimSpace(string(v))
				}
			}
		}
		if f[1] == "" {
			if v, err := os.ReadFile("/sys/fs/cgroup" + f[2] + "/" + v2File); err == nil {
				return strings.TrimSpace(string(v))
			}
		}
	}
	t.Fatalf("process %d has neither %s (v1) nor %s (v2) in:\n%s", pid, v1File, v2File, b)
	return ""
}

func (n *Node) containerPID(id string) int {
	n.T.Helper()
	r, err := n.Runtime.ContainerStatus(n.Ctx(), &cri.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		n.T.Fatal(err)
	}
	var info struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(r.Info["info"]), &info); err != nil || info.PID == 0 {
		n.T.Fatalf("verbose container status has no pid: %v in %q", err, r.Info)
	}
	return info.PID
}

func TestResourceLimits(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("limits")
	pod := n.RunPod(p)
	c := n.ContainerConfig("main", "sleep", "1000")
	c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, OomScoreAdj: 500}
	id := n.Run(pod, p, c)
	pid := n.containerPID(id)
	if got := cgroupValue(t, pid, "memory", "memory.limit_in_bytes", "memory.max"); got != "67108864" {
		t.Errorf("memory limit in the kernel = %s, want 67108864", got)
	}
	if got := cgroupValue(t, pid, "cpu", "cpu.cfs_quota_us", "cpu.max"); got != "50000" && got != "50000 100000" {
		t.Errorf("cpu quota in the kernel = %s, want 50000 of 100000", got)
	}
	if adj, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid)); err != nil || strings.TrimSpace(string(adj)) != "500" {
		t.Errorf("oom_score_adj = %q, %v; want 500", adj, err)
	}
	if r := n.Status(id).GetResources().GetLinux(); r.GetMemoryLimitInBytes() != 64<<20 || r.GetCpuQuota() != 50000 {
		t.Errorf("reported resources = %v", r)
	}
}

// A critical pod's oom_score_adj is below what this process may set where it
// lacks CAP_SYS_RESOURCE: the container starts all the same.
func TestOOMScoreIsClamped(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("critical")
	pod := n.RunPod(p)
	c := n.ContainerConfig("main", "sleep", "1000")
	c.Linux.Resources = &cri.LinuxContainerResources{OomScoreAdj: -997}
	id := n.Run(pod, p, c)
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", n.containerPID(id)))
	if err != nil {
		t.Fatal(err)
	}
	got, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	want := -997
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-997"), 0); err != nil {
		own, err := os.ReadFile("/proc/self/oom_score_adj")
		if err != nil {
			t.Fatal(err)
		}
		want, _ = strconv.Atoi(strings.TrimSpace(string(own)))
	} else {
		_ = os.WriteFile("/proc/self/oom_score_adj", []byte("0"), 0)
	}
	if got != want {
		t.Errorf("oom_score_adj = %d, want %d", got, want)
	}
}

func TestImageConfigIsMerged(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.pushMerged()
	n.Pull("registry.k8s.io/e2e/merged:1")
	p := n.PodConfig("merge")
	pod := n.RunPod(p)
	for _, test := range []struct {
		name          string
		command, args []string
		want          string
	}{
		{"image", nil, nil, "entry image-arg"},
		{"args", nil, []string{"own"}, "entry own"},
		{"command", []string{"echo", "cmd"}, nil, "cmd"},
		{"both", []string{"echo"}, []string{"a", "b"}, "a b"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := n.ContainerConfig(test.name)
			c.Image.Image, c.Command, c.Args = "registry.k8s.io/e2e/merged:1", test.command, test.args
			if s := n.WaitExit(n.Run(pod, p, c)); s.ExitCode != 0 {
				t.Errorf("exit code %d: %s", s.ExitCode, s.Message)
			}
			if got := n.ContainerLog(p, c); !strings.HasSuffix(got, " stdout F "+test.want+"\n") {
				t.Errorf("log = %q, want %q", got, test.want)
			}
		})
	}
	c := n.ContainerConfig("env", "sh", "-c", "id -u; id -g; pwd; echo $FROM_IMAGE $BOTH $OWN; sleep 1000")
	c.Image.Image = "registry.k8s.io/e2e/merged:1"
	c.Envs = []*cri.KeyValue{{Key: "BOTH", Value: []byte("cri")}, {Key: "OWN", Value: []byte("own")}}
	id := n.Run(pod, p, c)
	var got []string
	n.Eventually("four lines", func() bool {
		got = nil
		for line := range strings.Lines(n.ContainerLog(p, c)) {
			got = append(got, strings.TrimSpace(strings.SplitN(line, " ", 4)[3]))
		}
		return len(got) == 4
	})
	if want := "33 33 /www image cri own"; strings.Join(got, " ") != want {
		t.Errorf("user, group, folder, environment = %q, want %q", strings.Join(got, " "), want)
	}
	if u := n.Status(id).GetUser().GetLinux(); u.GetUid() != 33 || u.GetGid() != 33 || fmt.Sprint(u.GetSupplementalGroups()) != "[33 500]" && fmt.Sprint(u.GetSupplementalGroups()) != "[500]" {
		t.Errorf("reported user = %v, want 33:33 with group 500", u)
	}
}

func TestCreateIsIdempotentAndNeedsAReadySandbox(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("twice")
	pod := n.RunPod(p)
	c := n.ContainerConfig("main", "sleep", "1000")
	first := n.CreateContainer(pod, p, c)
	if second := n.CreateContainer(pod, p, c); second != first {
		t.Errorf("second CreateContainer = %s, want %s", second, first)
	}
	if _, err := n.Runtime.StopPodSandbox(n.Ctx(), &cri.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Fatal(err)
	}
	_, err := n.Runtime.CreateContainer(n.Ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: n.ContainerConfig("late", "true"), SandboxConfig: p})
	wantCode(t, "CreateContainer in a stopped sandbox", err, codes.FailedPrecondition)
}

func TestMounts(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	dir := n.path("volume")
	n.WriteFile(dir+"/file", "from the node\n")
	p := n.PodConfig("mounts")
	pod := n.RunPod(p)
	c := n.ContainerConfig("main", "sleep", "1000")
	c.Mounts = []*cri.Mount{
		{HostPath: dir, ContainerPath: "/rw"},
		{HostPath: dir, ContainerPath: "/ro", Readonly: true},
		{HostPath: n.path("missing"), ContainerPath: "/made"},
	}
	id := n.Run(pod, p, c)
	n.Sh(id, "echo written > /rw/new && test -d /made && ! touch /ro/x 2>/dev/null")
	if b, err := os.ReadFile(dir + "/new"); err != nil || string(b) != "written\n" {
		t.Errorf("file written in the container = %q, %v", b, err)
	}
	if m := n.Status(id).Mounts; len(m) != 3 || m[0].ContainerPath != "/rw" || m[0].HostPath != dir {
		t.Errorf("reported mounts = %v", m)
	}
}

func TestRemoveRunningContainer(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("remove")
	pod := n.RunPod(p)
	c := n.ContainerConfig("main", "sleep", "1000")
	id := n.Run(pod, p, c)
	for range 2 {
		if _, err := n.Runtime.RemoveContainer(n.Ctx(), &cri.RemoveContainerRequest{ContainerId: id}); err != nil {
			t.Fatal(err)
		}
	}
	// The log is kubelet's: it stays.
	n.ContainerLog(p, c)
	// The name is free again.
	n.CreateContainer(pod, p, c)
}

// A second, shorter stop shortens the first.
func TestShorterStopWins(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("shorter")
	pod := n.RunPod(p)
	c := n.ContainerConfig("main", "sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done")
	id := n.Run(pod, p, c)
	n.Eventually("container is up", func() bool { return strings.Contains(n.ContainerLog(p, c), "up") })
	long := make(chan error, 1)
	began := time.Now()
	go func() {
		_, err := n.Runtime.StopContainer(n.Ctx(), &cri.StopContainerRequest{ContainerId: id, Timeout: 100})
		long <- err
	}()
	if _, err := n.Runtime.StopContainer(n.Ctx(), &cri.StopContainerRequest{ContainerId: id, Timeout: 1}); err != nil {
		t.Fatal(err)
	}
	if err := <-long; err != nil {
		t.Errorf("the first, longer stop = %v", err)
	}
	if took := time.Since(began); took > 90*time.Second {
		t.Errorf("stops took %v: the longer grace was waited for", took)
	}
}
