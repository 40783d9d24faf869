package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// brief is a context whose deadline passes before what is asked for can be done.
func (n *Node) brief() context.Context {
	ctx, cancel := context.WithTimeout(n.Ctx(), 300*time.Millisecond)
	n.T.Cleanup(cancel)
	return ctx
}

// slowNetwork puts a plugin in the place of the bridge that notes each call in
// the first of the files and lets no ADD on before the second exists.
func (n *Node) slowNetwork() (calls, gate string) {
	n.T.Helper()
	calls, gate = n.path("cni-calls"), n.path("cni-gate")
	n.WriteFile(n.path("slow-bin", "slow"), fmt.Sprintf(`#!/bin/sh
echo "$CNI_COMMAND $CNI_CONTAINERID" >> %s
if [ "$CNI_COMMAND" = ADD ]; then
	while ! [ -e %s ]; do sleep 0.02; done
fi
exec %s/bridge
`, calls, gate, n.Programs.CNIBin))
	if err := os.Chmod(n.path("slow-bin", "slow"), 0o755); err != nil {
		n.T.Fatal(err)
	}
	conf := n.CNIDir() + "/10-e2e.conflist"
	b, err := os.ReadFile(conf)
	if err != nil {
		n.T.Fatal(err)
	}
	n.WriteFile(conf, strings.Replace(string(b), `"type": "bridge"`, `"type": "slow"`, 1))
	return calls, gate
}

// TestRunPodSandboxOutlivesItsDeadline: kubelet's deadline passes while a plugin
// works. It asks again, and again, and gets the sandbox of the first attempt, for
// which the plugin was called once; nobody else had to wait.
func TestRunPodSandboxOutlivesItsDeadline(t *testing.T) {
	n := NewNode(t, NodeOptions{NoNetwork: true})
	n.WriteCNI()
	calls, gate := n.slowNetwork()
	conf, err := os.ReadFile(n.Config)
	if err != nil {
		t.Fatal(err)
	}
	n.WriteFile(n.Config, strings.Replace(string(conf), "bin_dirs = [", "bin_dirs = ["+quote(n.path("slow-bin"))+", ", 1))
	n.Stop()
	n.Start()
	p := n.PodConfig("slow")
	for range 2 {
		_, err := n.Runtime.RunPodSandbox(n.brief(), &cri.RunPodSandboxRequest{Config: p})
		wantCode(t, "RunPodSandbox whose deadline passes", err, codes.DeadlineExceeded)
	}
	if r, err := n.Runtime.ListPodSandbox(n.brief(), &cri.ListPodSandboxRequest{}); err != nil || len(r.Items) != 0 {
		t.Errorf("ListPodSandbox meanwhile = %v, %v; want nothing yet", r.GetItems(), err)
	}
	host := n.PodConfig("bystander")
	host.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	host.Hostname = ""
	n.RemovePod(n.RunPod(host))

	n.WriteFile(gate, "")
	pod := n.RunPod(p)
	if got := n.PodStatus(pod).GetNetwork().GetIp(); got == "" {
		t.Error("the pod has no address")
	}
	if b, err := os.ReadFile(calls); err != nil || strings.Count(string(b), "ADD ") != 1 || !strings.Contains(string(b), "ADD "+pod+"\n") {
		t.Errorf("plugin calls = %q, %v; want one ADD", b, err)
	}
	if again := n.RunPod(p); again != pod {
		t.Errorf("RunPodSandbox again = %s, want %s", again, pod)
	}
}

// TestContainerCallsOutliveTheirDeadline: the same for containers, with a monitor
// that does not get to answer.
func TestContainerCallsOutliveTheirDeadline(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("late")
	pod := n.RunPod(p)
	c := n.ContainerConfig("main", "sleep", "1000")
	halted := func(what string, call func(ctx context.Context) error) {
		t.Helper()
		monitor := n.MonitorPID()
		if err := syscall.Kill(monitor, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			wantCode(t, what+" whose deadline passes", call(n.brief()), codes.DeadlineExceeded)
		}
		if err := syscall.Kill(monitor, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	halted("CreateContainer", func(ctx context.Context) error {
		_, err := n.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: p})
		return err
	})
	id := n.CreateContainer(pod, p, c)
	if r, err := n.Runtime.ListContainers(n.Ctx(), &cri.ListContainersRequest{}); err != nil || len(r.Containers) != 1 || r.Containers[0].Id != id {
		t.Errorf("containers = %v, %v; want only %s", r.GetContainers(), err, id)
	}
	halted("StartContainer", func(ctx context.Context) error {
		_, err := n.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id})
		return err
	})
	n.Eventually("the container runs", func() bool { return n.Status(id).State == cri.ContainerState_CONTAINER_RUNNING })
	n.Exec(id, "true")
	halted("RemovePodSandbox", func(ctx context.Context) error {
		_, err := n.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod})
		return err
	})
	n.Eventually("the pod is removed, though nobody asks again", func() bool {
		r, err := n.Runtime.ListPodSandbox(n.Ctx(), &cri.ListPodSandboxRequest{})
		return err == nil && len(r.Items) == 0
	})
}
