package sandbox

import (
	"sync"
	"time"

	"github.com/cridproject/crid/internal/cgstat"
)

// recent is what has just been read, for the next who asks: kubelet's summary, its
// metrics and other scrapers ask for the same figures within moments, and the kernel
// takes 0.1 ms for those of a container. A reading keeps the time at which it was made.
type recent struct {
	figures Figures
	now     func() time.Time

	mu       sync.Mutex               // never held across I/O
	since    time.Time                // +checklocks:mu; nothing below is older
	usage    map[string]usageReading  // +checklocks:mu; by cgroup
	networks map[string]*NetworkStats // +checklocks:mu; by the path of the namespace
	forgets  int                      // calls of forget; +checklocks:mu
}

type usageReading struct {
	at    time.Time
	parts cgstat.Parts
	usage Usage
}

// recentFor is how old figures may be. A rate needs a longer time anyway (minWindow).
const recentFor = time.Second

// Usage is as Figures.Usage, with the time of the reading.
func (r *recent) Usage(cgroup string, parts cgstat.Parts) (Usage, time.Time, error) {
	r.mu.Lock()
	r.expireLocked()
	old, ok := r.usage[cgroup]
	r.mu.Unlock()
	if ok && old.parts&parts == parts {
		return old.usage, old.at, nil
	}
	return r.read(cgroup, parts)
}

// read is Usage, as it is now.
func (r *recent) read(cgroup string, parts cgstat.Parts) (Usage, time.Time, error) {
	r.mu.Lock()
	forgets := r.forgets
	r.mu.Unlock()
	u, err := r.figures.Usage(cgroup, parts)
	if err != nil {
		return Usage{}, time.Time{}, err
	}
	at := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expireLocked()
	if forgets == r.forgets { // else it may have the limits of before
		r.usage[cgroup] = usageReading{at, parts, u}
	}
	return u, at, nil
}

// Networks is what is in the network namespaces at paths; nil for those that are not there.
func (r *recent) Networks(paths []string) []*NetworkStats {
	all := make([]*NetworkStats, len(paths))
	var ask []string
	r.mu.Lock()
	r.expireLocked()
	for i, path := range paths {
		if all[i] = r.networks[path]; all[i] == nil {
			ask = append(ask, path)
		}
	}
	r.mu.Unlock()
	if len(ask) == 0 {
		return all
	}
	found := r.figures.Interfaces(ask)
	at := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expireLocked()
	next := 0
	for i := range all {
		if all[i] != nil {
			continue
		}
		if interfaces := found[next]; interfaces != nil {
			all[i] = networkStats(at, interfaces)
			r.networks[paths[i]] = all[i]
		}
		next++
	}
	return all
}

// forget makes the next ask the kernel, after limits have been changed.
func (r *recent) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.usage, r.networks, r.since = nil, nil, time.Time{}
	r.forgets++
}

// expireLocked begins anew when what is kept has become old. All of it goes at once, which is
// simpler than by reading, and means only that some are used for less than recentFor.
//
// +checklocks:r.mu
func (r *recent) expireLocked() {
	now := r.now()
	if age := now.Sub(r.since); r.usage != nil && age >= 0 && age < recentFor {
		return
	}
	r.since, r.usage, r.networks = now, make(map[string]usageReading), make(map[string]*NetworkStats)
}
