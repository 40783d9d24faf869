package sandboxtest

import (
	"fmt"
	"io/fs"
	"sync"

	"github.com/cridproject/crid/internal/cgstat"
	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/sandbox"
)

// Figures is a kernel's, in memory.
type Figures struct {
	mu         sync.Mutex
	cgroups    map[string]sandbox.Details        // +checklocks:mu
	interfaces map[string][]sandbox.NetInterface // +checklocks:mu
	asked      []string                          // +checklocks:mu
}

// Set says what a cgroup uses; others are not there.
func (f *Figures) Set(cgroup string, d sandbox.Details) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cgroups == nil {
		f.cgroups = make(map[string]sandbox.Details)
	}
	f.cgroups[cgroup] = d
}

// Unset makes a cgroup vanish.
func (f *Figures) Unset(cgroup string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.cgroups, cgroup)
}

// SetInterfaces says what is in a network namespace.
func (f *Figures) SetInterfaces(path string, interfaces ...sandbox.NetInterface) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.interfaces == nil {
		f.interfaces = make(map[string][]sandbox.NetInterface)
	}
	f.interfaces[path] = interfaces
}

// Asked is the cgroups that were asked for, and forgets them.
func (f *Figures) Asked() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	asked := f.asked
	f.asked = nil
	return asked
}

// Usage is what Set said.
func (f *Figures) Usage(cgroup string, _ cgstat.Parts) (sandbox.Usage, error) {
	d, err := f.Details(cgroup)
	return d.Usage, err
}

// Details is what Set said.
func (f *Figures) Details(cgroup string) (sandbox.Details, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, cgroup)
	d, ok := f.cgroups[cgroup]
	if !ok {
		return d, fmt.Errorf("cgroup %s: %w", cgroup, fs.ErrNotExist)
	}
	return d, nil
}

// Processes is one process.
func (f *Figures) Processes(string, int) sandbox.Processes {
	one := sandbox.Value{N: 1, Known: true}
	return sandbox.Processes{Count: one, OpenFiles: one, Sockets: one, OpenFilesLimit: one}
}

// Interfaces is what SetInterfaces said.
func (f *Figures) Interfaces(paths []string) [][]sandbox.NetInterface {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make([][]sandbox.NetInterface, len(paths))
	for i, path := range paths {
		all[i] = f.interfaces[path]
	}
	return all
}

// Filesystem is a disk of a thousand bytes.
func (f *Figures) Filesystem(string) (sys.Filesystem, error) {
	return sys.Filesystem{Bytes: 1000, Inodes: 100, FreeInodes: 50, Major: 8}, nil
}

// BlockDevice makes names of numbers.
func (f *Figures) BlockDevice(major, minor uint32) string {
	return fmt.Sprintf("/dev/d%d-%d", major, minor)
}
