package sandbox

import (
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/cridproject/crid/image"
	"github.com/cridproject/crid/internal/cgstat"
)

// SandboxMetrics is all that is known of a ready sandbox and its containers.
type SandboxMetrics struct {
	Status     *SandboxStatus // shared: it must not be changed
	Cgroup     string         // of the pod where it has one of its own; else ""
	Network    *NetworkStats
	Containers []ContainerMetrics
}

// ContainerMetrics is all that is known of a running container.
type ContainerMetrics struct {
	Status     *ContainerStatus // shared: it must not be changed
	Cgroup     string
	At         time.Time
	Details    Details
	Processes  Processes
	Devices    []DeviceUsage // as Details.Devices
	Written    image.FsUsage
	Filesystem *FilesystemSize // of what is written; nil when it is not known
}

// DeviceUsage is what was read from and written to a block device.
type DeviceUsage struct {
	Name string // such as /dev/vda
	cgstat.Device
}

// FilesystemSize is the file system that the writable layers are on.
type FilesystemSize struct {
	Device                    string // as DeviceUsage.Name
	Bytes, Inodes, FreeInodes uint64
}

// AllMetrics is what there is of all ready sandboxes, in no order, in one pass over
// their cgroups. A container that ends meanwhile is left out.
func (m *Manager) AllMetrics() iter.Seq[SandboxMetrics] {
	return func(yield func(SandboxMetrics) bool) {
		scrape := scrape{figures: m.o.Figures}
		for group := range slices.Chunk(m.pods(func(*SandboxStatus) bool { return true }), statsGroup) {
			networks := make(chan []*NetworkStats, 1)
			go func() { networks <- m.networks(group) }() // ends by itself, and is waited for
			all := readAll(group, func(p pod) (SandboxMetrics, bool) { return m.sandboxMetrics(p, &scrape), true })
			for i, network := range <-networks {
				all[i].Network = network
				if !yield(all[i]) {
					return
				}
			}
		}
	}
}

func (m *Manager) sandboxMetrics(p pod, s *scrape) SandboxMetrics {
	out := SandboxMetrics{Status: p.status, Cgroup: m.podCgroup(&p.status.Config)}
	for _, c := range p.containers {
		if cm, ok := m.containerMetrics(c, s); ok {
			out.Containers = append(out.Containers, cm)
		}
	}
	return out
}

func (m *Manager) containerMetrics(c *container, s *scrape) (ContainerMetrics, bool) {
	st := c.status.Load()
	if st == nil || st.State != ContainerRunning {
		return ContainerMetrics{}, false
	}
	cgroup := cgroupOf(st.cgroupsPath)
	d, err := m.o.Figures.Details(cgroup)
	if err != nil {
		m.noFigures(err, "container", string(c.id))
		return ContainerMetrics{}, false
	}
	out := ContainerMetrics{
		Status: st, Cgroup: cgroup, At: m.o.Now(), Details: d,
		Processes: m.o.Figures.Processes(cgroup, st.PID),
		Written:   m.o.Images.Written(string(c.id)),
	}
	for _, device := range d.Devices {
		out.Devices = append(out.Devices, DeviceUsage{s.device(device.Major, device.Minor), device})
	}
	out.Filesystem = s.filesystem(out.Written.Mountpoint)
	return out, true
}

// scrape remembers, for one look at everything, what is the same for many.
type scrape struct {
	figures Figures

	mu          sync.Mutex
	devices     map[[2]uint32]string       // +checklocks:mu
	filesystems map[string]*FilesystemSize // +checklocks:mu; by path
}

func (s *scrape) device(major, minor uint32) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := [2]uint32{major, minor}
	name, ok := s.devices[key]
	if !ok {
		if s.devices == nil {
			s.devices = make(map[[2]uint32]string)
		}
		name = s.figures.BlockDevice(major, minor)
		s.devices[key] = name
	}
	return name
}

func (s *scrape) filesystem(path string) *FilesystemSize {
	s.mu.Lock()
	f, ok := s.filesystems[path]
	s.mu.Unlock()
	if ok {
		return f
	}
	if size, err := s.figures.Filesystem(path); err == nil {
		f = &FilesystemSize{s.device(size.Major, size.Minor), size.Bytes, size.Inodes, size.FreeInodes}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.filesystems == nil {
		s.filesystems = make(map[string]*FilesystemSize)
	}
	s.filesystems[path] = f
	return f
}
