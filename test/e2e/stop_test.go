package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// stop stops a container or fails the test.
func (n *Node) stop(id string, timeout int64) {
	n.T.Helper()
	if _, err := n.Runtime.StopContainer(n.Ctx(), &cri.StopContainerRequest{ContainerId: id, Timeout: timeout}); err != nil {
		n.T.Fatalf("StopContainer(%d s) = %v\n%s", timeout, err, tail(n.Log()))
	}
}

// waitLog waits until the container has written text.
func (n *Node) waitLog(p *cri.PodSandboxConfig, c *cri.ContainerConfig, text string) {
	n.T.Helper()
	n.Eventually("the container writes "+text, func() bool { return strings.Contains(n.ContainerLog(p, c), text) })
}

// inCgroup is the processes in a container's cgroup.
func (n *Node) inCgroup(id string) (found []string) {
	n.T.Helper()
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		b, _ := os.ReadFile(d + "/cgroup")
		stat, _ := os.ReadFile(d + "/stat")
		if strings.Contains(string(b), id) && !exiting(string(stat)) {
			found = append(found, strings.TrimSpace(string(stat)))
		}
	}
	return found
}

// exiting reports whether a process, of which this is /proc/PID/stat, is gone, a
// zombie, or past all that it could do (PF_EXITING; proc_pid_stat(5)).
func exiting(stat string) bool {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 7 || fields[0] == "Z" {
		return true
	}
	flags, err := strconv.ParseUint(fields[6], 10, 64)
	return err != nil || flags&4 != 0
}

// sharePIDs has a pod's and a container's processes in the PID namespace of mode.
func sharePIDs(mode cri.NamespaceMode, p *cri.PodSandboxConfig, cs ...*cri.ContainerConfig) {
	p.Linux.SecurityContext.NamespaceOptions.Pid = mode
	for _, c := range cs {
		c.Linux.SecurityContext.NamespaceOptions.Pid = mode
	}
}

// The signal of the config goes before that of the image, and that before
// SIGTERM; the status says which it is, and the container gets that one.
func TestStopSignalPrecedence(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	layer := BusyboxLayer(t)
	images := map[string]string{"": "plain", "SIGQUIT": "named", "RTMIN+5": "realtime", "3": "number", "SIGNONSENSE": "nonsense"}
	for signal, name := range images {
		n.Registry.Push("e2e/stop-"+name+":1", Image(t, v1.Config{Env: []string{"PATH=/bin"}, StopSignal: signal}, layer))
		n.Pull("registry.k8s.io/e2e/stop-" + name + ":1")
	}
	p := n.PodConfig("signals")
	pod := n.RunPod(p)
	for _, test := range []struct {
		image  string
		config cri.Signal
		want   cri.Signal
		number int
	}{
		{"", cri.Signal_SIGNAL_RUNTIME_DEFAULT, cri.Signal_SIGNAL_SIGTERM, 15},
		{"", cri.Signal_SIGNAL_SIGUSR1, cri.Signal_SIGNAL_SIGUSR1, 10},
		{"", cri.Signal_SIGNAL_SIGRTMINPLUS3, cri.Signal_SIGNAL_SIGRTMINPLUS3, 37},
		{"", cri.Signal_SIGNAL_SIGRTMAX, cri.Signal_SIGNAL_SIGRTMAX, 64},
		{"SIGQUIT", cri.Signal_SIGNAL_RUNTIME_DEFAULT, cri.Signal_SIGNAL_SIGQUIT, 3},
		{"SIGQUIT", cri.Signal_SIGNAL_SIGHUP, cri.Signal_SIGNAL_SIGHUP, 1},
		{"RTMIN+5", cri.Signal_SIGNAL_RUNTIME_DEFAULT, cri.Signal_SIGNAL_SIGRTMINPLUS5, 39},
		{"3", cri.Signal_SIGNAL_RUNTIME_DEFAULT, cri.Signal_SIGNAL_SIGQUIT, 3},
		{"SIGNONSENSE", cri.Signal_SIGNAL_RUNTIME_DEFAULT, cri.Signal_SIGNAL_SIGTERM, 15},
	} {
		name := fmt.Sprintf("%s-%d", images[test.image], test.config)
		t.Run(name, func(t *testing.T) {
			// It tells the signals apart by its exit code.
			traps := ""
			for _, s := range []int{1, 3, 10, 15, 37, 39, 64} {
				traps += fmt.Sprintf("trap 'exit %d' %d; ", 100+s, s)
			}
			c := n.ContainerConfig(name, "sh", "-c", traps+"echo up; while :; do sleep 0.02; done")
			c.Image.Image = "registry.k8s.io/e2e/stop-" + images[test.image] + ":1"
			c.StopSignal = test.config
			id := n.Run(pod, p, c)
			if got := n.Status(id).StopSignal; got != test.want {
				t.Errorf("stop_signal in the status = %v, want %v", got, test.want)
			}
			n.waitLog(p, c, "up")
			n.stop(id, 100)
			if s := n.Status(id); s.ExitCode != int32(100+test.number) {
				t.Errorf("exit code %d, want %d, of signal %d", s.ExitCode, 100+test.number, test.number)
			}
		})
	}
}

// A program starts with all signals as the kernel has them, whatever crid and its
// monitor do with theirs and were started with: what is ignored or blocked would
// be inherited.
func TestSignalDispositions(t *testing.T) {
	// As a service manager or a CI's supervisor may start it.
	n := NewNode(t, NodeOptions{Under: []string{"env", "--ignore-signal=HUP,QUIT,USR2,PIPE,TSTP,TTIN,TTOU,RTMIN+4", "--block-signal=USR1,PIPE,TSTP,RTMAX-1"}})
	n.PullBusybox()
	p := n.PodConfig("dispositions")
	c := n.ContainerConfig("main", "sh", "-c", "grep -E 'Sig(Blk|Ign)' /proc/self/status; exec sleep 1000")
	sharePIDs(cri.NamespaceMode_POD, p, c)
	pod := n.RunPod(p)
	id := n.Run(pod, p, c)
	n.waitLog(p, c, "SigIgn")
	const want = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"
	if got := n.Exec(id, "grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"); got != want {
		t.Errorf("in an exec: %q, want %q", got, want)
	}
	for line := range strings.Lines(n.ContainerLog(p, c)) {
		if f := strings.Fields(line); len(f) != 5 || strings.Trim(f[4], "0") != "" {
			t.Errorf("in the container: %q, want no bits set", line)
		}
	}
	// The reader goes, so the writer does.
	if got := n.Sh(id, "(sh -c 'kill -PIPE $$; echo still there'); echo $?"); got != "141\n" {
		t.Errorf("after SIGPIPE: %q, want exit code 141", got)
	}
}

// However many calls there are, the container gets its signal once. A call that
// is given up kills nothing when its time would have come, and a longer stop does
// not put off a shorter one.
func TestStopIsAskedOnceAndGivenUp(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("once")
	pod := n.RunPod(p)
	c := n.ContainerConfig("main", "sh", "-c", `t=0; trap 't=$((t+1)); echo term $t' TERM; echo up; while :; do sleep 0.1; echo tick; done`)
	id := n.Run(pod, p, c)
	n.waitLog(p, c, "up")
	for i := range 3 {
		ctx, cancel := context.WithCancel(n.Ctx())
		stopped := make(chan error, 1)
		go func() {
			_, err := n.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id, Timeout: 3})
			stopped <- err
		}()
		n.waitLog(p, c, "term 1")
		if i == 2 {
			n.Exec(id, "true") // asked to end, but not being killed
		}
		cancel()
		wantCode(t, "StopContainer that is given up", <-stopped, codes.Canceled)
	}
	// Its own ticks are the clock: four seconds after the last call it is still there.
	ticks := strings.Count(n.ContainerLog(p, c), "tick")
	n.Eventually("the container goes on", func() bool { return strings.Count(n.ContainerLog(p, c), "tick") > ticks+40 })
	if s := n.Status(id); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Fatalf("container after stops that were given up: %v, want running", s.State)
	}
	if log := n.ContainerLog(p, c); strings.Contains(log, "term 2") {
		t.Errorf("the stop signal came more than once:\n%s", tail(log))
	}
	short, long := make(chan error, 1), make(chan error, 1)
	for timeout, done := range map[int64]chan error{1: short, 100000: long} {
		go func() {
			_, err := n.Runtime.StopContainer(n.Ctx(), &cri.StopContainerRequest{ContainerId: id, Timeout: timeout})
			done <- err
		}()
	}
	for _, done := range []chan error{short, long} {
		if err := <-done; err != nil {
			t.Errorf("StopContainer = %v", err)
		}
	}
	if s := n.Status(id); s.ExitCode != 137 || s.Reason != "Error" {
		t.Errorf("after the kill: code %d, reason %q; want 137, Error", s.ExitCode, s.Reason)
	}
	if log := n.ContainerLog(p, c); strings.Contains(log, "term 2") {
		t.Errorf("the stop signal came more than once:\n%s", tail(log))
	}
}

func TestStopOfACreatedContainer(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("created")
	pod := n.RunPod(p)
	id := n.CreateContainer(pod, p, n.ContainerConfig("main", "sleep", "1000"))
	n.stop(id, 100)
	if s := n.Status(id); s.State != cri.ContainerState_CONTAINER_EXITED || s.FinishedAt == 0 || s.StartedAt != 0 {
		t.Errorf("created container after stop: %v, started %d, finished %d; want exited, never, set", s.State, s.StartedAt, s.FinishedAt)
	}
	if left := n.inCgroup(id); len(left) > 0 {
		t.Errorf("left in its cgroup: %q", left)
	}
	_, err := n.Runtime.StartContainer(n.Ctx(), &cri.StartContainerRequest{ContainerId: id})
	wantCode(t, "StartContainer after StopContainer", err, codes.FailedPrecondition)
}

// Where the container's first process is not the init of its PID namespace, its end
// takes nobody along by itself: crid does, also those that fork all the time, and
// does not show the container as exited before.
func TestLeftoversDieWithTheContainer(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	const walks = `printf '#!/bin/sh\n/tmp/walk &\n' > /tmp/walk; chmod +x /tmp/walk; for i in 1 2 3 4 5 6 7 8; do /tmp/walk & done; `
	for _, mode := range []cri.NamespaceMode{cri.NamespaceMode_POD, cri.NamespaceMode_NODE} {
		for _, test := range []struct {
			name, script string
			stop         bool
			code         int32
		}{
			{"exits", "setsid sleep 4441 & sleep 4442 & echo up; exit 3", false, 3},
			{"stopped", "setsid sleep 4441 & (trap '' TERM; setsid sleep 4442) & trap 'exit 4' TERM; echo up; while :; do sleep 0.02; done", true, 4},
			{"forks", walks + "echo up; exit 5", false, 5},
			{"forks-and-is-killed", walks + "trap '' TERM; echo up; while :; do sleep 0.02; done", true, 137},
		} {
			t.Run(strings.ToLower(mode.String())+"-"+test.name, func(t *testing.T) {
				p := n.PodConfig("rest-" + strings.ToLower(mode.String()) + "-" + test.name)
				c := n.ContainerConfig("main", "sh", "-c", test.script)
				sharePIDs(mode, p, c)
				pod := n.RunPod(p)
				defer n.RemovePod(pod)
				id := n.Run(pod, p, c)
				n.waitLog(p, c, "up")
				if test.stop {
					n.stop(id, 1)
				}
				if s := n.WaitExit(id); s.ExitCode != test.code {
					t.Errorf("exit code %d, want %d", s.ExitCode, test.code)
				}
				if left := n.inCgroup(id); len(left) > 0 {
					t.Errorf("left in the cgroup of an exited container: %q", left)
				}
			})
		}
	}
}

// freeze freezes a container from outside.
func (n *Node) freeze(pid int) {
	n.T.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		n.T.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if f[1] == "freezer" && os.WriteFile("/sys/fs/cgroup/freezer"+f[2]+"/freezer.state", []byte("FROZEN"), 0) == nil ||
			f[1] == "" && os.WriteFile("/sys/fs/cgroup"+f[2]+"/cgroup.freeze", []byte("1"), 0) == nil {
			return
		}
	}
	n.T.Fatalf("cannot freeze process %d, in:\n%s", pid, b)
}

func TestStopOfAFrozenContainer(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("frozen")
	pod := n.RunPod(p)
	id := n.Run(pod, p, n.ContainerConfig("main", "sleep", "1000"))
	n.freeze(n.containerPID(id))
	_, err := n.Runtime.ExecSync(n.Ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
	wantCode(t, "ExecSync in a frozen container", err, codes.FailedPrecondition, "frozen")
	n.stop(id, 0)
	if s := n.Status(id); s.ExitCode != 137 {
		t.Errorf("exit code %d, want 137", s.ExitCode)
	}
}

// A process that not even SIGKILL ends: the stop says so after a while, no exec
// gets in meanwhile, others are not held up, and later a stop succeeds.
func TestStopOfTheUnkillable(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	volume := n.path("volume")
	if err := os.MkdirAll(volume, 0o755); err != nil {
		t.Fatal(err)
	}
	release := hangingMount(t, filepath.Join(volume, "dead"))
	p := n.PodConfig("stuck")
	pod := n.RunPod(p)
	c := n.ContainerConfig("main", "sh", "-c", "echo up; exec cat /volume/dead/file")
	c.Mounts = []*cri.Mount{{HostPath: volume, ContainerPath: "/volume"}}
	id := n.Run(pod, p, c)
	pid := n.containerPID(id)
	n.Eventually("the container hangs in the kernel", func() bool {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return strings.Contains(string(b), "(cat) S") || strings.Contains(string(b), "(cat) D")
	})
	stopped := make(chan error, 1)
	go func() {
		_, err := n.Runtime.StopContainer(n.Ctx(), &cri.StopContainerRequest{ContainerId: id})
		stopped <- err
	}()
	n.Eventually("exec is refused once the container is being killed", func() bool {
		_, err := n.Runtime.ExecSync(n.Ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
		return err != nil && strings.Contains(err.Error(), "being killed")
	})
	n.RemovePod(n.RunPod(n.PodConfig("bystander")))
	if s := n.Status(id); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("state while it cannot be killed = %v, want running", s.State)
	}
	wantCode(t, "StopContainer of what cannot be killed", <-stopped, codes.DeadlineExceeded, id[:12], "SIGKILL")
	release()
	n.stop(id, 0)
	if s := n.Status(id); s.State != cri.ContainerState_CONTAINER_EXITED {
		t.Errorf("state after the second stop = %v, want exited", s.State)
	}
}

// The sandbox is stopped after its containers had their own grace, in
// StopContainer: what runs is killed at once.
func TestStopPodSandboxKillsAtOnce(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("grace")
	pod := n.RunPod(p)
	c := n.ContainerConfig("main", "sh", "-c", "trap 'echo term' TERM; echo up; while :; do sleep 0.02; done")
	id := n.Run(pod, p, c)
	waiting := n.CreateContainer(pod, p, n.ContainerConfig("waiting", "true"))
	n.waitLog(p, c, "up")
	for range 2 {
		if _, err := n.Runtime.StopPodSandbox(n.Ctx(), &cri.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{id, waiting} {
			if s := n.Status(id); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 {
				t.Errorf("%s: %v, code %d; want exited, 137", s.Metadata.Name, s.State, s.ExitCode)
			}
		}
	}
	if strings.Contains(n.ContainerLog(p, c), "term") {
		t.Error("the container was asked to end before it was killed")
	}
}
