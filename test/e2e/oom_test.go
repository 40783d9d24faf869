package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// eat takes memory until something stops it.
const eat = "x=a; while :; do x=$x$x; done"

// limited is a container with a limit of 32 MiB, without swap.
func (n *Node) limited(name, script string) *cri.ContainerConfig {
	c := n.ContainerConfig(name, "sh", "-c", script)
	c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 32 * mib, MemorySwapLimitInBytes: 32 * mib}
	return c
}

// The kill counts that the kernel counts in the container's own cgroup, whichever
// process it took, and whatever the first process made of it; no other's does, nor
// does a SIGKILL that somebody sent.
func TestOOMReason(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("oom")
	pod := n.RunPod(p)
	sibling := n.Run(pod, p, n.ContainerConfig("sibling", "sleep", "1000"))
	for _, tt := range []struct {
		name, script string
		code         int32
	}{
		{"a child, seen by its parent", "sh -c '" + eat + "'; exit 7", 7},
		{"a child, not looked at", "sh -c '" + eat + "'; exit 0", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := n.limited(strings.ReplaceAll(strings.ReplaceAll(tt.name, " ", "-"), ",", ""), tt.script)
			// As kubelet has it with singleProcessOOMKill; without, v2 kills them all.
			s := n.WaitExit(n.Run(pod, p, c))
			if s.Reason != "OOMKilled" || s.ExitCode != tt.code {
				t.Errorf("reason %q, code %d; want OOMKilled, %d", s.Reason, s.ExitCode, tt.code)
			}
		})
	}
	// A user has 128 inotify instances by default, and the monitor any number of containers.
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", n.MonitorPID()))
	if err != nil || len(fds) == 0 {
		t.Errorf("the monitor has %d descriptors, %v", len(fds), err)
	}
	for _, fd := range fds {
		if what, _ := os.Readlink(fd); strings.Contains(what, "inotify") {
			t.Errorf("the monitor has an inotify instance: %s", fd)
		}
	}
	if err := syscall.Kill(n.containerPID(sibling), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if s := n.WaitExit(sibling); s.Reason != "Error" || s.ExitCode != 137 {
		t.Errorf("the sibling, killed by hand: reason %q, code %d; want Error, 137", s.Reason, s.ExitCode)
	}
}
