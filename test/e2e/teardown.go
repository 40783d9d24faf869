package e2e

import (
	"os"
	"os/exec"
	"slices"
	"syscall"
)

// What a node itself has, as opposed to its pods, goes with the node: the
// bridge that CNI made, its parent cgroup, the mounts over its folders.

func (n *Node) deleteLink() {
	if _, err := os.Stat("/sys/class/net/" + n.Bridge); err != nil {
		return
	}
	if out, err := exec.Command("ip", "link", "delete", n.Bridge).CombinedOutput(); err != nil {
		n.T.Errorf("ip link delete %s: %v: %s", n.Bridge, err, out)
	}
}

func (n *Node) deleteMounts() {
	mounts := n.mounts()
	slices.Reverse(mounts)
	for _, m := range mounts {
		if err := syscall.Unmount(m, syscall.MNT_DETACH); err != nil {
			n.T.Errorf("unmount %s: %v", m, err)
		}
	}
}

func (n *Node) deleteCgroups() {
	if n.Programs.CgroupDriver == "systemd" {
		// systemd made the slice when the first scope in it was asked for.
		if out, err := exec.Command("systemctl", "stop", n.Cgroup).CombinedOutput(); err != nil {
			n.T.Errorf("systemctl stop %s: %v: %s", n.Cgroup, err, out)
		}
	}
	found := n.cgroups()
	slices.SortFunc(found, func(a, b string) int { return len(b) - len(a) }) // children first
	for _, c := range found {
		if err := syscall.Rmdir(c); err != nil && err != syscall.ENOENT {
			n.T.Errorf("left behind: cgroup %s: %v", c, err)
		}
	}
}
