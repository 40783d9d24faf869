package sandbox

import (
	"errors"
	"io/fs"
	"iter"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"github.com/cridproject/crid/image"
	"github.com/cridproject/crid/internal/cgstat"
	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/sandbox/config"
)

// ContainerStats is what a container uses, at one moment.
type ContainerStats struct {
	Status *ContainerStatus // shared: it must not be changed

	At           time.Time // when Usage was read; zero: it does not run, and there is no Usage
	Usage        Usage
	CPUNanocores Value // the rate of CPUNanoseconds since it was last asked for; see cpuRate

	Written image.FsUsage // its writable layer; without a time while that is not known
}

// SandboxStats is what a sandbox and its containers use, at one moment.
type SandboxStats struct {
	Status *SandboxStatus // shared: it must not be changed

	// At is when Usage was read, which is of the pod's cgroup where it has one of its
	// own, else the sum of the containers. Zero: it is not ready, and there is none.
	At           time.Time
	Usage        Usage
	CPUNanocores Value

	Network    *NetworkStats // nil with the node's network, or none
	Containers []ContainerStats
}

// NetworkStats is the interfaces of a sandbox, but for the loopback one.
type NetworkStats struct {
	At      time.Time
	Default *NetInterface // the one that the pod's address is on; nil when it is not there
	Others  []NetInterface
}

// statsGroup is how many containers or sandboxes are looked at before the first of
// them is handed on: what bounds the memory of a stream.
const statsGroup = 64

// ContainerStats is what the container with the ID id, or one that begins so, uses.
// Kinds are as with Container. One that does not run uses no more than disk space.
//
// Like the other calls for figures it asks the kernel and waits for nobody: no lock
// that is held across I/O, no plugin, no monitor. Figures are at most recentFor old, and
// have the time at which they were read.
func (m *Manager) ContainerStats(id string) (ContainerStats, error) {
	c, err := m.findContainer(id)
	if err != nil {
		return ContainerStats{}, err
	}
	st := c.status.Load()
	if st == nil {
		return ContainerStats{}, notFound("container", id)
	}
	s, ok := m.containerStats(c, cgstat.Swap)
	if !ok {
		s = ContainerStats{Status: st, Written: m.o.Images.Written(string(c.id))}
	}
	return s, nil
}

// AllContainerStats is what the running containers use that match lets through, in
// no order. One that ends meanwhile is left out.
func (m *Manager) AllContainerStats(match func(*ContainerStatus) bool) iter.Seq[ContainerStats] {
	return func(yield func(ContainerStats) bool) {
		var found []*container
		for _, c := range m.allContainers() {
			if st := c.status.Load(); st != nil && st.State == ContainerRunning && match(st) {
				found = append(found, c)
			}
		}
		for group := range slices.Chunk(found, statsGroup) {
			read := func(c *container) (ContainerStats, bool) { return m.containerStats(c, cgstat.Swap) }
			for _, s := range readAll(group, read) {
				if !yield(s) {
					return
				}
			}
		}
	}
}

// containerStats returns false for a container that does not run, or not any more.
func (m *Manager) containerStats(c *container, parts cgstat.Parts) (ContainerStats, bool) {
	st := c.status.Load()
	if st == nil || st.State != ContainerRunning {
		return ContainerStats{}, false
	}
	u, at, nanocores, err := m.usage(cgroupOf(st.cgroupsPath), parts, &c.cpu)
	if err != nil {
		m.noFigures(err, "container", string(c.id))
		return ContainerStats{}, false
	}
	return ContainerStats{
		Status: st, At: at, Usage: u, CPUNanocores: nanocores,
		Written: m.o.Images.Written(string(c.id)),
	}, true
}

// usage is what a cgroup uses, when that was read, and the rate of its CPU time. While
// no rate is known it is read anew for everyone: kubelet then makes a rate of two
// answers itself, and takes two of one time for an error.
func (m *Manager) usage(cgroup string, parts cgstat.Parts, rate *cpuRate) (Usage, time.Time, Value, error) {
	read := m.recent.Usage
	if !rate.known() {
		read = m.recent.read
	}
	u, at, err := read(cgroup, parts)
	if err != nil {
		return Usage{}, time.Time{}, Value{}, err
	}
	return u, at, rate.sample(at, u.CPUNanoseconds), nil
}

// SandboxStats is what the sandbox with the ID id, or one that begins so, uses.
// Kinds are as with Sandbox.
func (m *Manager) SandboxStats(id string) (SandboxStats, error) {
	s, err := m.findSandbox(id)
	if err != nil {
		return SandboxStats{}, err
	}
	st := s.status.Load()
	if st == nil {
		return SandboxStats{}, notFound("sandbox", id)
	}
	if st.State != SandboxReady {
		return SandboxStats{Status: st}, nil
	}
	p := pod{sandbox: s, status: st, containers: m.containersOf(s)}
	stats := m.sandboxStats(p)
	stats.Network = m.networks([]pod{p})[0]
	return stats, nil
}

// AllSandboxStats is what the ready sandboxes use that match lets through, in no
// order. One that is stopped meanwhile is left out.
func (m *Manager) AllSandboxStats(match func(*SandboxStatus) bool) iter.Seq[SandboxStats] {
	return func(yield func(SandboxStats) bool) {
		for group := range slices.Chunk(m.pods(match), statsGroup) {
			networks := make(chan []*NetworkStats, 1)
			go func() { networks <- m.networks(group) }() // ends by itself, and is waited for
			all := readAll(group, func(p pod) (SandboxStats, bool) { return m.sandboxStats(p), true })
			for i, network := range <-networks {
				if all[i].Network = network; !all[i].ready() {
					continue
				}
				if !yield(all[i]) {
					return
				}
			}
		}
	}
}

func (s *SandboxStats) ready() bool { return !s.At.IsZero() }

// pod is a ready sandbox and its containers.
type pod struct {
	sandbox    *sandbox
	status     *SandboxStatus
	containers []*container
}

// pods is those that match lets through.
func (m *Manager) pods(match func(*SandboxStatus) bool) []pod {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var found []pod
	index := make(map[config.SandboxID]int)
	for id, s := range m.sandboxes {
		if st := s.status.Load(); st != nil && st.State == SandboxReady && match(st) {
			index[id] = len(found)
			found = append(found, pod{sandbox: s, status: st})
		}
	}
	for _, c := range m.containers {
		if i, ok := index[c.sandbox.id]; ok {
			found[i].containers = append(found[i].containers, c)
		}
	}
	return found
}

// sandboxStats leaves out the network. At is zero when the sandbox is not ready
// any more.
func (m *Manager) sandboxStats(p pod) SandboxStats {
	s := SandboxStats{Status: p.status}
	path, parts := m.podCgroup(&p.status.Config), cgstat.Swap
	if path == "" {
		parts |= cgstat.Tasks // for the sum
	}
	for _, c := range p.containers {
		if cs, ok := m.containerStats(c, parts); ok {
			s.Containers = append(s.Containers, cs)
		}
	}
	if st := p.sandbox.status.Load(); st == nil || st.State != SandboxReady {
		return s
	}
	if path != "" {
		var err error
		if s.Usage, s.At, s.CPUNanocores, err = m.usage(path, cgstat.Tasks, &p.sandbox.cpu); err == nil {
			return s
		}
		m.noFigures(err, "sandbox", string(p.sandbox.id))
	}
	s.At = m.o.Now()
	s.addUp()
	return s
}

// addUp makes the sandbox's figures of its containers'. Limits and pressures do
// not add up.
func (s *SandboxStats) addUp() {
	u := &s.Usage
	for i := range s.Containers {
		c := &s.Containers[i]
		s.CPUNanocores = s.CPUNanocores.Add(c.CPUNanocores)
		u.CPUNanoseconds = u.CPUNanoseconds.Add(c.Usage.CPUNanoseconds)
		u.MemoryBytes = u.MemoryBytes.Add(c.Usage.MemoryBytes)
		u.WorkingSetBytes = u.WorkingSetBytes.Add(c.Usage.WorkingSetBytes)
		u.RSSBytes = u.RSSBytes.Add(c.Usage.RSSBytes)
		u.PageFaults = u.PageFaults.Add(c.Usage.PageFaults)
		u.MajorPageFaults = u.MajorPageFaults.Add(c.Usage.MajorPageFaults)
		u.SwapBytes = u.SwapBytes.Add(c.Usage.SwapBytes)
		u.Tasks = u.Tasks.Add(c.Usage.Tasks)
	}
}

// networks is what each of the pods has on the network.
func (m *Manager) networks(pods []pod) []*NetworkStats {
	var paths []string
	var of []int
	for i, p := range pods {
		if p.status.NetNS != "" {
			paths, of = append(paths, p.status.NetNS), append(of, i)
		}
	}
	all := make([]*NetworkStats, len(pods))
	if len(paths) == 0 {
		return all
	}
	for i, network := range m.recent.Networks(paths) {
		all[of[i]] = network
	}
	return all
}

func networkStats(at time.Time, interfaces []NetInterface) *NetworkStats {
	n := &NetworkStats{At: at}
	for i := range interfaces {
		switch interfaces[i].Name {
		case "lo":
		case defaultInterface:
			n.Default = &interfaces[i]
		default:
			n.Others = append(n.Others, interfaces[i])
		}
	}
	return n
}

// noFigures logs why there are none, unless it is that the cgroup has gone, which
// is the normal end of one.
func (m *Manager) noFigures(err error, noun, id string) {
	if !errors.Is(err, fs.ErrNotExist) && !errkind.Is(err, errkind.NotFound) {
		klog.FromContext(m.base).V(2).Info("Could not read figures", noun, id, "err", err)
	}
}

// readAll calls read for each item, on all CPUs, and keeps the order of what it returns.
func readAll[T, R any](items []T, read func(T) (R, bool)) []R {
	all, ok := make([]R, len(items)), make([]bool, len(items))
	var next atomic.Int64
	work := func() {
		for {
			i := int(next.Add(1)) - 1
			if i >= len(items) {
				return
			}
			all[i], ok[i] = read(items[i])
		}
	}
	var wg sync.WaitGroup
	for range min(len(items), runtime.GOMAXPROCS(0)) - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
	kept := all[:0]
	for i := range all {
		if ok[i] {
			kept = append(kept, all[i])
		}
	}
	return kept
}

// cpuRate makes a rate of a count, out of the questions that are asked anyway: it
// costs nothing while nobody asks.
type cpuRate struct {
	mu    sync.Mutex // never held across I/O
	at    time.Time  // +checklocks:mu; of used; zero: none yet
	used  uint64     // +checklocks:mu; nanoseconds
	value Value      // +checklocks:mu; of the window that ended at at
}

// Windows of a rate: a shorter one says more about the kernel's ticks than about the
// container, and a longer one nothing about now.
const (
	minWindow = time.Second
	maxWindow = 5 * time.Minute
)

// known reports whether the last sample had a rate.
func (r *cpuRate) known() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.value.Known
}

// sample tells that used nanoseconds of CPU have been used by the time at. It returns
// nanoseconds a second over the window since an earlier call that is minWindow
// ago at least; until there is one it is not known. A call too soon after the last gets the
// last's answer.
func (r *cpuRate) sample(at time.Time, used Value) Value {
	r.mu.Lock()
	defer r.mu.Unlock()
	window := at.Sub(r.at)
	switch {
	case !used.Known:
		return Value{}
	case !r.at.IsZero() && window.Abs() < minWindow:
		return r.value // also of who read before another caller, and comes after it
	case r.at.IsZero(), window > maxWindow, window < 0, used.N < r.used:
		r.value = Value{} // begins anew
	default:
		r.value = Value{N: uint64(float64(used.N-r.used) / window.Seconds()), Known: true}
	}
	r.at, r.used = at, used.N
	return r.value
}
