package image

import (
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cridproject/crid/image/dirfd"
)

const (
	usageAge = 10 * time.Second // of figures that are good enough
	// usageRest is how many times as long as a look takes it is left at that: looks at
	// writable layers take at most a twentieth of one CPU, however large they are.
	usageRest = 20
	// usageBudget is the files of one look, after which it begins no further layer.
	usageBudget = 200_000
	// quickBudget is the files that a caller itself may count, which takes less
	// than a tenth of a millisecond: as many as new containers have.
	quickBudget = 32
)

// Written is what the container whose root file system was prepared under key has
// written: its writable layer. It waits for nothing. With project quota the kernel
// says it as it is now, the folder that overlayfs works in included; else see FsInfo,
// and At is zero while the figures are not known, because they are large and nobody
// has asked before.
func (s *Store) Written(key string) FsUsage {
	s.mu.Lock()
	var project uint32
	if r := s.rootfs[key]; r != nil {
		project = r.Project
	}
	s.mu.Unlock()
	u := FsUsage{At: time.Now()}
	if use, ok := s.projects.usage(project); ok {
		u.UsedBytes, u.Inodes = use.Bytes, use.Inodes
	} else {
		u = s.usage.of(s.path("rootfs"), key, s.uncounted)
	}
	u.Mountpoint = s.root
	return u
}

// allWritten is the sum of what all containers have written. Without project quota
// it is as old as it says.
func (s *Store) allWritten() FsUsage {
	s.mu.Lock()
	ids := make([]uint32, 0, len(s.rootfs))
	for _, r := range s.rootfs {
		if !r.Volume {
			ids = append(ids, r.Project)
		}
	}
	s.mu.Unlock()
	sum := FsUsage{At: time.Now()}
	walked := false
	for _, id := range ids {
		use, ok := s.projects.usage(id)
		sum.UsedBytes, sum.Inodes, walked = sum.UsedBytes+use.Bytes, sum.Inodes+use.Inodes, walked || !ok
	}
	if walked {
		rest := s.usage.sum(s.path("rootfs"), s.uncounted)
		sum.UsedBytes, sum.Inodes, sum.At = sum.UsedBytes+rest.UsedBytes, sum.Inodes+rest.Inodes, rest.At
	}
	sum.Mountpoint = s.root
	return sum
}

// uncounted are the keys of the writable layers that have to be walked, sorted.
func (s *Store) uncounted() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []string
	for key, r := range s.rootfs {
		if !r.Volume && (r.Project == 0 || s.projects.quota == nil) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// usageCache is what the writable layers take, by key. Nothing is counted that
// nobody asks for.
type usageCache struct {
	wg      sync.WaitGroup
	stopped atomic.Bool

	mu      sync.Mutex
	running bool
	next    int           // where the next look begins, in the order of keys
	at      time.Time     // of the end of the last look
	rest    time.Duration // until the next one
	byKey   map[string]layerUsage
	// Each is +checklocks:mu.
}

type layerUsage struct {
	usageOfImages
	at time.Time
}

// refresh begins a look in the background when the last one is old.
//
// Preconditions: u.mu is held.
func (u *usageCache) refresh(dir string, keys func() []string) {
	if u.running || time.Since(u.at) <= max(usageAge, u.rest) || u.stopped.Load() {
		return
	}
	u.running = true
	u.wg.Go(func() { u.look(dir, keys()) })
}

// sum is all layers.
func (u *usageCache) sum(dir string, keys func() []string) FsUsage {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.refresh(dir, keys)
	sum := FsUsage{At: u.at}
	if u.at.IsZero() {
		sum.At = time.Now()
	}
	for _, use := range u.byKey {
		sum.UsedBytes += use.bytes
		sum.Inodes += use.inodes
	}
	return sum
}

// of is one layer. What is not known yet is counted on the spot if it is small.
func (u *usageCache) of(dir, key string, keys func() []string) FsUsage {
	u.mu.Lock()
	u.refresh(dir, keys)
	use, known := u.byKey[key]
	u.mu.Unlock()
	if !known {
		left := quickBudget
		use = layerUsage{usageOf(upperDir(dir, key), func() bool { left--; return left >= 0 }), time.Now()}
		if left < 0 {
			return FsUsage{}
		}
		u.mu.Lock()
		if u.byKey == nil {
			u.byKey = make(map[string]layerUsage)
		}
		u.byKey[key] = use
		u.mu.Unlock()
	}
	return FsUsage{UsedBytes: use.bytes, Inodes: use.inodes, At: use.at}
}

func upperDir(dir, key string) string { return filepath.Join(dir, key, "upper") }

// look walks writable layers until its budget is spent, beginning where the last
// one stopped. A layer is walked as a whole: half of one says nothing.
func (u *usageCache) look(dir string, keys []string) {
	began := time.Now()
	u.mu.Lock()
	first := u.next
	u.mu.Unlock()
	seen := make(map[string]layerUsage)
	files, done := 0, 0
	for ; done < len(keys) && files < usageBudget && !u.stopped.Load(); done++ {
		key := keys[(first+done)%len(keys)]
		seen[key] = layerUsage{usageOf(upperDir(dir, key), func() bool { files++; return !u.stopped.Load() }), time.Now()}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	old := u.byKey
	u.byKey = make(map[string]layerUsage, len(keys))
	for _, key := range keys {
		use, ok := seen[key]
		if !ok {
			use, ok = old[key]
		}
		if ok {
			u.byKey[key] = use
		}
	}
	for key, use := range old {
		if _, ok := u.byKey[key]; !ok && use.at.After(began) { // came meanwhile
			u.byKey[key] = use
		}
	}
	u.running, u.next, u.at = false, first+done, time.Now()
	u.rest = usageRest * time.Since(began)
}

func usageOf(dir string, goOn func() bool) usageOfImages {
	bytes, inodes := dirfd.Usage(dir, goOn)
	return usageOfImages{bytes, inodes}
}

func (u *usageCache) wait() { u.wg.Wait() }

// end stops a look that is under way and waits for it.
func (u *usageCache) end() {
	u.stopped.Store(true)
	u.wg.Wait()
}
