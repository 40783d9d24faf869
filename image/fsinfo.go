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

// FsInfo returns what is known, and waits for nothing. The images' figures were
// counted when they were unpacked, rounded up to blocks. The containers' come from
// walking their writable layers in the background, at most every ten seconds,
// asked for by this call: they are that much older, as At says, and a first
// call knows little.
func (s *Store) FsInfo(context.Context) (FsInfo, error) {
	used := s.published.Load().used
	info := FsInfo{
		Images:     FsUsage{Mountpoint: s.root, UsedBytes: used.bytes, Inodes: used.inodes, At: time.Now()},
		Containers: s.usage.sum(s.path("rootfs"), s.Prepared),
	}
	info.Containers.Mountpoint = s.root
	return info, nil
}
