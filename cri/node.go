package cri

import (
	"fmt"
	"os"
	"strings"
)

// Node is what the machine can do, as far as it decides which requests are
// refused and what Status tells of features.
type Node struct {
	SELinux           bool // enabled, enforcing or not
	RecursiveReadOnly bool // the kernel has mount_setattr, Linux 5.12
	UserNamespaces    bool // pods can have user namespaces of their own
}

// DetectNode looks at the machine that this process runs on.
func DetectNode() Node {
	_, err := os.Stat("/sys/fs/selinux/enforce")
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return Node{SELinux: err == nil, RecursiveReadOnly: kernelAtLeast(strings.TrimSpace(string(release)), 5, 12)}
}

// kernelAtLeast compares a release such as "6.1.0-13-amd64"; one that cannot be
// read is older than anything.
func kernelAtLeast(release string, major, minor int) bool {
	var a, b int
	if n, _ := fmt.Sscanf(release, "%d.%d", &a, &b); n != 2 {
		return false
	}
	return a > major || a == major && b >= minor
}
