package server

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/cgroups"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/sys"
)

// thawed returns an error of kind BadState when the cgroup is frozen, or one above
// it is. With v2, libcontainer has the kernel put an exec's process into the
// cgroup as it is made (CLONE_INTO_CGROUP), with vfork: where that freezes, the
// process does not get to its execve, and the thread that made it waits in the
// kernel for that, with Go's lock on all forks and unable to stop for the garbage
// collector. One such container would stop the whole monitor, so an exec in it
// is refused. With v1 the process joins when it runs, and would wait alone.
func (c *cgroup) thawed() error {
	if !cgroups.IsCgroup2UnifiedMode() {
		if st, err := c.m.GetFreezerState(); err == nil && st == cgroups.Frozen {
			return errkind.Errorf(errkind.BadState, "cgroup %s is frozen", c.m.Path("freezer"))
		}
		return nil
	}
	// Not cgroup.events, which says so only once the last process has stopped.
	for dir := c.m.Path(""); strings.HasPrefix(dir, sys.CgroupRoot+"/"); dir = filepath.Dir(dir) {
		if b, _ := os.ReadFile(filepath.Join(dir, "cgroup.freeze")); strings.TrimSpace(string(b)) == "1" {
			return errkind.Errorf(errkind.BadState, "cgroup %s is frozen", dir)
		}
	}
	return nil
}
