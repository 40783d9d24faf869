package server

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// userInit is a command that starts an init in a user namespace and ends.
type userInit struct {
	ns            *os.File
	number, child *os.File // the pipe through which the init's PID comes
}

// inUserNS makes cmd start the init in the user namespace at path.
func inUserNS(cmd *exec.Cmd, path string) (*userInit, error) {
	ns, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("enter user namespace: %w", err)
	}
	number, child, err := os.Pipe()
	if err != nil {
		_ = ns.Close()
		return nil, err
	}
	cmd.ExtraFiles = append(cmd.ExtraFiles, ns, child)
	cmd.Env = []string{pid1UserEnv}
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true} // it makes the namespaces itself
	return &userInit{ns, number, child}, nil
}

// pid is the init's. It waits for the command's end.
func (u *userInit) pid() (int, error) {
	_ = u.child.Close()
	pid, err := strconv.Atoi(readAll(u.number, 16))
	if err != nil {
		return 0, fmt.Errorf("start init in user namespace: %w", err)
	}
	return pid, nil
}

func (u *userInit) close() {
	for _, f := range []*os.File{u.ns, u.number, u.child} {
		_ = f.Close()
	}
}

// checkBound refuses device nodes that would become other devices in a user
// namespace, where libcontainer cannot make a node and mounts what has the same
// path on the node.
func checkBound(devices []specs.LinuxDevice) error {
	for _, d := range devices {
		var st unix.Stat_t
		if err := unix.Stat(d.Path, &st); err != nil {
			return fmt.Errorf("device %s: in a user namespace only the node's device of the same path can be had: %w", d.Path, err)
		}
		kind := map[uint32]string{unix.S_IFCHR: "c", unix.S_IFBLK: "b"}[st.Mode&unix.S_IFMT]
		rdev := uint64(st.Rdev) //nolint:unconvert // another width elsewhere
		if kind == "" || kind != strings.Replace(d.Type, "u", "c", 1) || int64(unix.Major(rdev)) != d.Major || int64(unix.Minor(rdev)) != d.Minor {
			return fmt.Errorf("device %s: in a user namespace only the node's device of the same path can be had, and that is another one", d.Path)
		}
	}
	return nil
}
