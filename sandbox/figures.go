package sandbox

import (
	"path"
	"path/filepath"
	"strings"
	"sync"

	"github.com/cridproject/crid/cni"
	"github.com/cridproject/crid/internal/cgstat"
	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/sandbox/config"
)

// What the kernel counts, in the words of who reads it.
type (
	Usage        = cgstat.Usage
	Details      = cgstat.Details
	Value        = cgstat.Value
	Pressure     = cgstat.Pressure
	Stall        = cgstat.Stall
	HugePages    = cgstat.HugePages
	NetInterface = sys.NetInterface
)

// Figures is what the manager asks of the kernel about what is used. Like Kernel
// it is an interface so that tests need no root. Nothing of it may wait.
type Figures interface {
	// Usage is what a cgroup uses. One that is not there is fs.ErrNotExist. Paths
	// are as in /proc/<pid>/cgroup.
	Usage(cgroup string, parts cgstat.Parts) (Usage, error)
	// Details is Usage, and the rest.
	Details(cgroup string) (Details, error)
	// Processes counts those in a cgroup; main is the container's first.
	Processes(cgroup string, main int) Processes
	// Interfaces is the network interfaces in each of the namespaces pinned at
	// paths; nil for those that are not there.
	Interfaces(paths []string) [][]NetInterface
	// Filesystem is the size of the file system that path is on.
	Filesystem(path string) (sys.Filesystem, error)
	// BlockDevice is the path of a block device.
	BlockDevice(major, minor uint32) string
}

// Processes is what runs in a container.
type Processes struct {
	Count, OpenFiles, Sockets Value
	OpenFilesLimit            Value // the first process's soft limit; not known means none
}

// machine is the Figures of this machine.
type machine struct {
	tree func() (*cgstat.Tree, error) // found once, when first asked for
}

func newMachine() machine { return machine{sync.OnceValues(cgstat.Open)} }

func (f machine) Usage(cgroup string, parts cgstat.Parts) (Usage, error) {
	t, err := f.tree()
	if err != nil {
		return Usage{}, err
	}
	return t.Usage(cgroup, parts)
}

func (f machine) Details(cgroup string) (Details, error) {
	t, err := f.tree()
	if err != nil {
		return Details{}, err
	}
	return t.Details(cgroup)
}

// Processes that end meanwhile do not count.
func (f machine) Processes(cgroup string, main int) Processes {
	t, err := f.tree()
	if err != nil {
		return Processes{}
	}
	pids, err := t.Procs(cgroup)
	if err != nil {
		return Processes{}
	}
	p := Processes{Count: cgstat.Known(uint64(len(pids)))}
	var files, sockets uint64
	for _, pid := range pids {
		if f, s, err := sys.ProcFiles(pid); err == nil {
			files, sockets = files+uint64(f), sockets+uint64(s)
		}
	}
	p.OpenFiles, p.Sockets = cgstat.Known(files), cgstat.Known(sockets)
	if main > 0 {
		if soft, limited, err := sys.OpenFilesLimit(main); err == nil && limited {
			p.OpenFilesLimit = cgstat.Known(soft)
		}
	}
	return p
}

func (machine) Interfaces(paths []string) [][]NetInterface { return sys.NetInterfaces(paths) }

func (machine) Filesystem(path string) (sys.Filesystem, error) { return sys.FilesystemOf(path) }

func (machine) BlockDevice(major, minor uint32) string { return sys.BlockDevice(major, minor) }

// defaultInterface is the name of what a sandbox is attached to the network by.
const defaultInterface = cni.DefaultIfName

// cgroupOf is the cgroup that an OCI spec's cgroupsPath names: a path, or with
// systemd slice:prefix:name.
func cgroupOf(cgroupsPath string) string {
	parts := strings.Split(cgroupsPath, ":")
	if len(parts) != 3 {
		return filepath.Clean("/" + cgroupsPath)
	}
	return path.Join(slicePath(parts[0]), parts[1]+"-"+parts[2]+".scope")
}

// slicePath is where systemd puts a slice: a-b.slice is in a.slice.
func slicePath(name string) string {
	base, ok := strings.CutSuffix(name, ".slice")
	if !ok || base == "-" {
		return "/"
	}
	p := "/"
	for i := range base {
		if base[i] == '-' && i > 0 {
			p = path.Join(p, base[:i]+".slice")
		}
	}
	return path.Join(p, name)
}

// podCgroup is the cgroup that is this pod's alone, as kubelet makes one for each
// and names it by the pod's UID; "" when there is none. Any other parent may hold
// more than the pod.
func (m *Manager) podCgroup(s *config.Sandbox) string {
	if s.UID == "" || s.CgroupParent == "" {
		return ""
	}
	base, uid := path.Base(s.CgroupParent), s.UID
	if m.o.SystemdCgroup {
		// systemd takes a dash for a slash, so kubelet writes another character.
		base, uid = strings.TrimSuffix(base, ".slice"), strings.ReplaceAll(uid, "-", "_")
	}
	switch {
	case !strings.HasSuffix(base, "pod"+uid):
		return ""
	case m.o.SystemdCgroup:
		return slicePath(path.Base(s.CgroupParent))
	}
	return filepath.Clean("/" + s.CgroupParent)
}
