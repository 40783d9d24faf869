package e2e

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestExecSync(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("exec")
	pod := n.RunPod(p)
	c := n.ContainerConfig("main", "sleep", "1000")
	c.Envs = []*cri.KeyValue{{Key: "OWN", Value: []byte("value")}}
	id := n.Run(pod, p, c)
	r, err := n.Runtime.ExecSync(n.Ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "echo out; echo err >&2; echo $OWN; exit 5"}})
	if err != nil {
		t.Fatal(err)
	}
	if r.ExitCode != 5 || string(r.Stdout) != "out\nvalue\n" || string(r.Stderr) != "err\n" {
		t.Errorf("ExecSync = %d, %q, %q; want 5, out and value, err", r.ExitCode, r.Stdout, r.Stderr)
	}
	if _, err := n.Runtime.ExecSync(n.Ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"/no/such"}}); err == nil || !strings.Contains(err.Error(), "/no/such") {
		t.Errorf("ExecSync of a missing program = %v, want an error that names it", err)
	}
	_, err = n.Runtime.ExecSync(n.Ctx(), &cri.ExecSyncRequest{ContainerId: id})
	wantCode(t, "ExecSync without a command", err, codes.InvalidArgument, "cmd")
}

func TestExecSyncTimeoutKillsChildren(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("timeout")
	pod := n.RunPod(p)
	id := n.Run(pod, p, n.ContainerConfig("main", "sleep", "1000"))
	_, err := n.Runtime.ExecSync(n.Ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "sleep 777 & setsid sh -c 'sleep 776 & sleep 779' & sleep 778"}, Timeout: 1})
	wantCode(t, "ExecSync over its time", err, codes.DeadlineExceeded)
	n.Eventually("the exec's processes are gone", func() bool { return !strings.Contains(n.Exec(id, "ps"), "sleep 77") })
}

// A grandchild that keeps stdout open does not hold the answer.
func TestExecSyncWithAGrandchild(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("grandchild")
	pod := n.RunPod(p)
	id := n.Run(pod, p, n.ContainerConfig("main", "sleep", "1000"))
	if got := n.Sh(id, "echo said; setsid sleep 555 &"); got != "said\n" {
		t.Errorf("stdout = %q, want said", got)
	}
}

func TestExecSyncOutputIsCapped(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("cap")
	pod := n.RunPod(p)
	id := n.Run(pod, p, n.ContainerConfig("main", "sleep", "1000"))
	const most = 16 << 20
	// The answer with both streams must fit into a message, so one is enough here.
	r, err := n.Runtime.ExecSync(n.Ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "head -c 30000000 /dev/zero"}}, maxMessage)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Stdout) > most || len(r.Stdout) < most-1<<20 || r.ExitCode != 0 {
		t.Errorf("stdout has %d bytes, exit code %d; want about %d, 0", len(r.Stdout), r.ExitCode, most)
	}
	// Both at once share the message.
	r, err = n.Runtime.ExecSync(n.Ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "head -c 20000000 /dev/zero & head -c 20000000 /dev/zero >&2; wait; exit 3"}}, maxMessage)
	if err != nil {
		t.Fatal(err)
	}
	if sum := len(r.Stdout) + len(r.Stderr); sum > most || sum < most-1<<20 || len(r.Stdout) < most/4 || len(r.Stderr) < most/4 || r.ExitCode != 3 {
		t.Errorf("stdout has %d bytes, stderr %d, exit code %d; want about %d in all, 3", len(r.Stdout), len(r.Stderr), r.ExitCode, most)
	}
}

func TestConcurrentExecs(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("many")
	pod := n.RunPod(p)
	id := n.Run(pod, p, n.ContainerConfig("main", "sleep", "1000"))
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			want := bytes.Repeat(fmt.Appendf(nil, "%d\n", i), 1000)
			r, err := n.Runtime.ExecSync(n.Ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", fmt.Sprintf("yes %d | head -n 1000; exit %d", i, i)}})
			if err != nil || r.ExitCode != int32(i) || !bytes.Equal(r.Stdout, want) {
				t.Errorf("exec %d = %v, code %d, %d bytes", i, err, r.GetExitCode(), len(r.GetStdout()))
			}
		})
	}
	wg.Wait()
}

// Before its start a container has all but its program: an exec is in the same
// namespaces and folders, with the same environment, and the start is as ever.
func TestExecBeforeStart(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("early")
	pod := n.RunPod(p)
	c := n.ContainerConfig("main", "sleep", "1000")
	c.Envs = []*cri.KeyValue{{Key: "OWN", Value: []byte("value")}}
	c.WorkingDir = "/work"
	c.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 1000}
	id := n.CreateContainer(pod, p, c)
	const look = "echo $OWN $HOSTNAME; pwd; id -u; touch seen; for i in mnt net ipc uts pid; do readlink /proc/self/ns/$i; done"
	before := n.Sh(id, look)
	if !strings.HasPrefix(before, "value early\n/work\n1000\n") {
		t.Errorf("before the start: %q", before)
	}
	n.StartContainer(id)
	if after := n.Sh(id, "ls seen >/dev/null; "+look); after != before {
		t.Errorf("after the start: %q, before it: %q", after, before)
	}
	if s := n.Status(id); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("state %v", s.State)
	}

	// What an exec has left running goes with a container that was never started.
	c = n.ContainerConfig("second", "sleep", "1000")
	c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_NODE
	id = n.CreateContainer(pod, p, c)
	n.Sh(id, "sleep 1000 </dev/null >/dev/null 2>&1 &")
	if _, err := n.Runtime.StopContainer(n.Ctx(), &cri.StopContainerRequest{ContainerId: id, Timeout: 10}); err != nil {
		t.Fatal(err)
	}
	if left := n.inCgroup(id); len(left) > 0 {
		t.Errorf("left in its cgroup: %q", left)
	}
	_, err := n.Runtime.ExecSync(n.Ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
	wantCode(t, "ExecSync after it has exited", err, codes.FailedPrecondition, "exited")
	_, err = n.Runtime.StartContainer(n.Ctx(), &cri.StartContainerRequest{ContainerId: id})
	wantCode(t, "StartContainer after it has exited", err, codes.FailedPrecondition, "exited")
}
