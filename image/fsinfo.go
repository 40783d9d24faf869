package image

import (
	"context"
	"io/fs"
	"path/filepath"
	"sync"
	"time"

	"github.com/cridproject/crid/image/dirfd"
)

// FsInfo is what images and containers take of the disk.
type FsInfo struct {
	Images     FsUsage // records and layers, each layer once
	Containers FsUsage // writable layers
}

// FsUsage is a share of a file system.
type FsUsage struct {
	Mountpoint string // a folder on the file system
	UsedBytes  uint64
	Inodes     uint64
	At         time.Time // when it was so
}

// usageOfImages is a sum over the stored layers.
type usageOfImages struct{ bytes, inodes uint64 }

const (
	usageAge = 10 * time.Second // of figures that are good enough
	// usageBudget bounds one look at the writable layers: files looked at. A layer
	// that it does not reach keeps its figure until a later look.
	usageBudget = 200_000
)

// FsInfo returns what is known, and waits for nothing. The images' figures were
// counted when they were unpacked, rounded up to blocks. The containers' come from
// walking their writable layers in the background, at most every ten seconds,
// asked for by this call: they are that much older, as At says, and a first
// call knows none.
func (s *Store) FsInfo(context.Context) (FsInfo, error) {
	used := s.published.Load().used
	return FsInfo{
		Images:     FsUsage{Mountpoint: s.root, UsedBytes: used.bytes, Inodes: used.inodes, At: time.Now()},
		Containers: s.usage.get(s.path("rootfs"), s.Prepared),
	}, nil
}

// usageCache is what the writable layers take, by key.
type usageCache struct {
	wg sync.WaitGroup

	mu      sync.Mutex
	running bool
	next    int // where the next look begins, in the order of keys
	at      time.Time
	byKey   map[string]usageOfImages
	// Each is +checklocks:mu.
}

func (u *usageCache) get(dir string, keys func() []string) FsUsage {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.running && time.Since(u.at) > usageAge {
		u.running = true
		u.wg.Go(func() { u.look(dir, keys()) })
	}
	sum := FsUsage{Mountpoint: dir, At: u.at}
	if u.at.IsZero() {
		sum.At = time.Now()
	}
	for _, use := range u.byKey {
		sum.UsedBytes += use.bytes
		sum.Inodes += use.inodes
	}
	return sum
}

// look walks writable layers until its budget is spent, beginning where the last
// one stopped.
func (u *usageCache) look(dir string, keys []string) {
	u.mu.Lock()
	first := u.next
	u.mu.Unlock()
	seen := make(map[string]usageOfImages)
	left := usageBudget
	done := 0
	for ; done < len(keys) && left > 0; done++ {
		key := keys[(first+done)%len(keys)]
		seen[key] = usageOf(filepath.Join(dir, key), &left)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	old := u.byKey
	u.byKey = make(map[string]usageOfImages, len(keys))
	for _, key := range keys {
		use, ok := seen[key]
		if !ok {
			use = old[key]
		}
		u.byKey[key] = use
	}
	u.running, u.next, u.at = false, first+done, time.Now()
}

// usageOf adds up a tree. What vanishes meanwhile does not count, and a layer
// larger than the whole budget counts as far as it was seen.
func usageOf(dir string, left *int) (sum usageOfImages) {
	links := make(map[uint64]bool)
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // it has vanished
		}
		if *left--; *left <= 0 {
			return fs.SkipAll
		}
		fi, err := d.Info()
		if err != nil {
			return nil //nolint:nilerr // it has vanished
		}
		bytes, inode, names := dirfd.Blocks(fi)
		if names > 1 && !d.IsDir() {
			if links[inode] {
				return nil
			}
			links[inode] = true
		}
		sum.bytes += bytes
		sum.inodes++
		return nil
	})
	return sum
}

func (u *usageCache) wait() { u.wg.Wait() }
