package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/sandbox/config"
)

const fieldUserNS = "config.linux.security_context.namespace_options.userns_options"

// ProbeUserNS reports whether pods can have user namespaces on this node: nil,
// or the reason why not. layers and rootfs are two folders on the file system of
// the image store, state is that of Options.
func ProbeUserNS(layers, rootfs, state string) error {
	if err := sys.ProbeIDMap([2]string{layers, rootfs}); err != nil {
		return err
	}
	// A container's first process is its own root when it goes to its root file system.
	for dir := filepath.Clean(state); dir != "/"; dir = filepath.Dir(dir) {
		st, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if st.Mode().Perm()&0o001 == 0 {
			return fmt.Errorf("users other than root may not pass through %s: its mode is %v, give it o+x", dir, st.Mode())
		}
	}
	return nil
}

// checkUserNS refuses a user namespace that cannot work.
func (m *Manager) checkUserNS(w *config.Sandbox) error {
	n := &w.Namespaces
	switch {
	case n.UserMap == nil:
		return nil
	case m.o.NoUserNS != nil:
		return errkind.Errorf(errkind.Invalid, "%s: this node has no user namespaces for pods: %w", fieldUserNS, m.o.NoUserNS)
	case n.PID == config.NamespaceNode, n.IPC == config.NamespaceNode:
		return errkind.Errorf(errkind.Invalid, "%s: a pod with a user namespace cannot have the node's PID or IPC namespace", fieldUserNS)
	}
	return nil
}

// root is the user and group that are root in the pod.
func root(w *config.Sandbox) (uid, gid uint32) {
	if maps := w.Namespaces.UserMap; maps != nil {
		return maps.UIDs.HostID, maps.GIDs.HostID
	}
	return 0, 0
}

func sysMapping(m config.IDMapping) []syscall.SysProcIDMap {
	return []syscall.SysProcIDMap{{ContainerID: int(m.ContainerID), HostID: int(m.HostID), Size: int(m.Length)}}
}

// setSysctl is sys.SetSysctl with what a user namespace changes: some sysctls
// are its root's, and group IDs in them are those of the node to crid.
func setSysctl(p *Pins, name, value string) error {
	if p.UserMap == nil {
		return sys.SetSysctl(name, value)
	}
	if isPingGroups(name) {
		value = pingGroups(value, p.UserMap.GIDs)
	}
	err := sys.SetSysctl(name, value)
	if errors.Is(err, fs.ErrPermission) {
		err = sys.AsUser(int(p.UserMap.UIDs.HostID), func() error { return sys.SetSysctl(name, value) })
	}
	return err
}

const pingGroupRange = "net.ipv4.ping_group_range"

func isPingGroups(name string) bool { return strings.ReplaceAll(name, "/", ".") == pingGroupRange }

// pingGroups is a range of groups as the node knows them. Groups that the pod does
// not have are left out: "0 2147483647" means all groups that there are.
func pingGroups(value string, m config.IDMapping) string {
	f := strings.Fields(value)
	if len(f) != 2 {
		return value // for the kernel to refuse
	}
	low, err := strconv.ParseInt(f[0], 10, 64)
	high, err2 := strconv.ParseInt(f[1], 10, 64)
	if err != nil || err2 != nil || low < 0 || high < 0 {
		return value
	}
	first := int64(m.ContainerID)
	low, high = max(low, first), min(high, first+int64(m.Length)-1)
	if low > high {
		return "1 0" // nobody, in the kernel's own words
	}
	shift := int64(m.HostID) - first
	return fmt.Sprintf("%d %d", low+shift, high+shift)
}
