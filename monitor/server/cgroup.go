package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"golang.org/x/sys/unix"

	"github.com/cridproject/crid/internal/errkind"
)

// killTimeout is how long processes may take to end after SIGKILL. What takes
// longer hangs in the kernel.
const killTimeout = 10 * time.Second

// cgroup is the cgroup, in all hierarchies, of one container or holder.
type cgroup struct {
	m cgroups.Manager
}

// newCgroup is the cgroup that an OCI spec's cgroupsPath names, there or not.
func newCgroup(path string, systemd bool) (*cgroup, error) {
	c := &cgroups.Cgroup{Systemd: systemd, Resources: &cgroups.Resources{SkipDevices: true}}
	if systemd {
		parts := strings.Split(path, ":")
		if len(parts) != 3 || parts[0] == "" || parts[2] == "" {
			return nil, errkind.Errorf(errkind.Invalid, "cgroups path %q: want slice:prefix:name with the systemd driver", path)
		}
		c.Parent, c.ScopePrefix, c.Name = parts[0], parts[1], parts[2]
	} else {
		clean := filepath.Clean("/" + path)
		if clean == "/" {
			return nil, errkind.Errorf(errkind.Invalid, "cgroups path %q is the root", path)
		}
		c.Path = clean
	}
	m, err := manager.New(c)
	if err != nil {
		return nil, fmt.Errorf("cgroup %s: %w", path, err)
	}
	return &cgroup{m}, nil
}

// path is the cgroup as the kernel names it: below the root of the hierarchy that
// counts memory. "" when it is not known.
func (c *cgroup) path() string {
	full := c.m.Path("memory")
	for _, root := range []string{"/sys/fs/cgroup/memory/", "/sys/fs/cgroup/unified/", "/sys/fs/cgroup/"} {
		if rest, ok := strings.CutPrefix(full, root); ok {
			return "/" + rest
		}
	}
	return ""
}

// pids is the processes in the cgroup and those below it.
func (c *cgroup) pids() ([]int, error) {
	pids, err := c.m.GetAllPids()
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	return pids, err
}

// kill sends SIGKILL to all processes, frozen ones included. It does not wait.
func (c *cgroup) kill() error {
	if p := c.m.Path(""); p != "" {
		// Atomic, and forks do not escape it. Linux 5.14.
		err := os.WriteFile(filepath.Join(p, "cgroup.kill"), []byte("1"), 0)
		if err == nil && cgroups.IsCgroup2UnifiedMode() || errors.Is(err, os.ErrNotExist) && !cgroups.PathExists(p) && cgroups.IsCgroup2UnifiedMode() {
			return nil
		}
		// With v1 controllers beside it, processes may have been moved in one
		// hierarchy and not in the other.
	}
	return c.killEach()
}

// Rounds in which killEach looks for processes that have been forked while it
// killed, and after how many it stops their forking.
const (
	killRounds  = 20
	freezeAfter = 2
)

// killEach sends SIGKILL to one process after the other, where the kernel has no
// way to kill a whole cgroup. Processes that fork faster than this does are frozen
// for the moment, with v1: what is frozen does not fork, and neither does what has
// a SIGKILL waiting, so that a round finds nobody new. Not at once, because a freezer
// that does not get there is worse than one more round.
func (c *cgroup) killEach() error {
	freezer := c.m.Path("freezer")
	if cgroups.IsCgroup2UnifiedMode() {
		freezer = ""
	}
	known := map[int]bool{}
	defer func() {
		// v1 delivers no signal to what is frozen, by this or by the container itself.
		if freezer != "" && len(known) > 0 {
			thaw(freezer)
		}
	}()
	for round := range killRounds {
		if round == freezeAfter && freezer != "" {
			_ = os.WriteFile(filepath.Join(freezer, "freezer.state"), []byte(cgroups.Frozen), 0)
		}
		pids, err := c.pids()
		if err != nil {
			return fmt.Errorf("list processes of cgroup: %w", err)
		}
		forked := false
		for _, pid := range pids {
			if known[pid] {
				continue
			}
			known[pid], forked = true, true
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill process %d: %w", pid, err)
			}
		}
		if !forked {
			break
		}
	}
	return nil
}

// thaw thaws the cgroup at dir, in v1's freezer hierarchy, and those below it,
// which a container that may do so has made and frozen.
func thaw(dir string) {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			_ = os.WriteFile(filepath.Join(path, "freezer.state"), []byte(cgroups.Thawed), 0)
		}
		return nil // what went away is thawed, too
	})
}

// empty kills until no process is left. The error has kind Timeout and names
// the processes when some do not end within killTimeout.
func (c *cgroup) empty(ctx context.Context) error {
	pids, err := c.pids()
	if err != nil || len(pids) == 0 {
		return err
	}
	deadline := time.NewTimer(killTimeout)
	defer deadline.Stop()
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		if err := c.kill(); err != nil {
			return err
		}
		if pids, err = c.pids(); err != nil || len(pids) == 0 {
			return err
		}
		select {
		case <-deadline.C:
			slices.Sort(pids)
			return errkind.Errorf(errkind.Timeout,
				"processes %s are still there %v after SIGKILL, probably waiting in the kernel for a device or a file system",
				strings.Trim(fmt.Sprint(pids), "[]"), killTimeout)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// remove removes the cgroup, which must be empty. The kernel may need a moment
// after the last process has ended.
func (c *cgroup) remove(ctx context.Context) error {
	var err error
	for wait := time.Millisecond; wait < 2*time.Second; wait *= 2 {
		if err = c.m.Destroy(); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove cgroup: %w", err)
		case <-time.After(wait):
		}
	}
	return fmt.Errorf("remove cgroup: %w", err)
}
