package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
)

// A kubelet has ports, folders and links of fixed names, so that its tests run in
// namespaces of their own: the test program executes itself once more in them.

// apartEnv is set in the process that runs in the new namespaces.
const apartEnv = "CRID_E2E_APART"

// NodeAddress is the node's own address in the new network namespace.
const NodeAddress = "192.168.253.1"

// runApart executes this program in new namespaces and returns its exit code.
func runApart() (int, error) {
	cmd := exec.Command("/proc/self/exe", append(os.Args[1:len(os.Args):len(os.Args)],
		"-crid", *cridFlag, "-monitor", *monitorFlag, "-cni-bin", *cniFlag)...)
	cmd.Env = append(os.Environ(), apartEnv+"=yes")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// The death signal comes when the thread ends, not the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return max(1, exit.ExitCode()), nil
	}
	return cmd.ProcessState.ExitCode(), err
}

// enterApart makes a machine of the new namespaces: mounts that spread among its own
// processes only, a /sys that shows its links, an address with a default route, and
// empty folders where kubelet's paths are fixed.
func enterApart(scratch string) error {
	script := `set -e
	mount --make-rprivate /
	mkdir "$1"
	mount --rbind /sys/fs/cgroup "$1"
	mount -t sysfs sysfs /sys
	mount --rbind "$1" /sys/fs/cgroup
	umount -l "$1"
	rmdir "$1"
	for d in /var/lib /var/log; do mount -t tmpfs -o mode=755 tmpfs $d; done
	# User-Mode Linux does not say how fast it is, and kubelet does not start without.
	if ! grep -q 'cpu MHz' /proc/cpuinfo; then
		sed 's/^processor.*/&\ncpu MHz\t\t: 1000.000/' /proc/cpuinfo >"$3"
		mount --bind "$3" /proc/cpuinfo
	fi
	mount --make-rshared /
	ip link set lo up
	ip link add node0 type veth peer name node1
	ip address add "$2/24" dev node0
	ip link set node0 up
	ip link set node1 up
	ip route add default dev node0`
	if out, err := exec.Command("sh", "-c", script,
		"sh", filepath.Join(scratch, "cgroup"), NodeAddress, "/var/lib/cpuinfo").CombinedOutput(); err != nil {
		return fmt.Errorf("namespaces of the tests: %w: %s", err, out)
	}
	return nil
}
