package image

import (
	"context"
	"time"
)

// FsInfo is what images and containers take of the disk.
type FsInfo struct {
	Images     FsUsage // records and layers, each layer once
	Containers FsUsage // writable layers
}

// FsUsage is a share of a file system.
type FsUsage struct {
	// Mountpoint is the store's root, for all of them: kubelet takes images and
	// containers to be on one file system only if the paths are equal.
	Mountpoint string
	UsedBytes  uint64
	Inodes     uint64
	At         time.Time // when it was so
}

// usageOfImages is a sum over the stored layers.
type usageOfImages struct{ bytes, inodes uint64 }

// settleLimit is how long after an image's removal FsInfo waits for its files to go.
const settleLimit = 2 * time.Second

// FsInfo returns what is known, and walks nothing. The images' figures were
// counted when they were unpacked, rounded up to blocks. The containers' are the
// kernel's where it counts by projects. Otherwise they come from walking the
// writable layers in the background, at most every ten seconds, asked for by this
// call: they are that much older, as At says, and a first call knows little.
//
// What has been removed does not count, though it may be on disk for a while. For
// the layers of images the call waits for that, until two seconds after the latest
// removal: kubelet removes images to make room, calls this, looks at the free space
// of Mountpoint, and evicts a pod if there is still too little. It waits for nothing
// else, as for the files of containers, which go all the time.
func (s *Store) FsInfo(ctx context.Context) (FsInfo, error) {
	s.trash.settle(ctx)
	used := s.published.Load().used
	info := FsInfo{
		Images:     FsUsage{Mountpoint: s.root, UsedBytes: used.bytes, Inodes: used.inodes, At: time.Now()},
		Containers: s.allWritten(),
	}
	return info, nil
}

// StoredBytes is what the images' layers take of the disk, as FsInfo has it. It
// waits for nothing, and has nothing looked at.
func (s *Store) StoredBytes() uint64 { return s.published.Load().used.bytes }
