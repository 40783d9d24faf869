package dirfd

import (
	"golang.org/x/sys/unix"
)

// maxDepth bounds the descriptors that Usage has open at a time. Folders further
// down are counted, and what is in them is not.
const maxDepth = 128

// Usage adds up the disk space and the files of the folder at path, itself included,
// files of several names once. It asks goOn before each file, and ends when that says
// no. What vanishes meanwhile does not count; other file systems are left out.
func Usage(path string, goOn func() bool) (bytes, inodes uint64) {
	d, err := Open(path)
	if err != nil {
		return 0, 0
	}
	u := usage{goOn: goOn, links: make(map[uint64]bool), dents: make([]byte, 16<<10)}
	var st unix.Stat_t
	if unix.Fstat(d.fd, &st) == nil && goOn() {
		u.device = st.Dev
		u.add(&st)
		u.walk(d.fd, 1)
	}
	_ = d.Close()
	return u.bytes, u.inodes
}

type usage struct {
	bytes, inodes uint64

	goOn   func() bool
	ended  bool
	device uint64
	links  map[uint64]bool // inodes of several names that have been seen
	dents  []byte
}

func (u *usage) add(st *unix.Stat_t) {
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if u.links[st.Ino] {
			return
		}
		u.links[st.Ino] = true
	}
	u.bytes += uint64(st.Blocks) * 512
	u.inodes++
}

// walk counts what is in an open folder.
func (u *usage) walk(fd, depth int) {
	var below []string
	for !u.ended {
		n, err := retry(func() (int, error) { return unix.ReadDirent(fd, u.dents) })
		if err != nil || n <= 0 {
			break
		}
		_, _, names := unix.ParseDirent(u.dents[:n], -1, nil)
		for _, name := range names {
			if u.ended = !u.goOn(); u.ended {
				return
			}
			var st unix.Stat_t
			if unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Dev != u.device {
				continue
			}
			u.add(&st)
			if st.Mode&unix.S_IFMT == unix.S_IFDIR && depth < maxDepth {
				below = append(below, name)
			}
		}
	}
	for _, name := range below {
		if u.ended {
			return
		}
		// Never a link or a fifo, whatever the container has put there meanwhile.
		child, err := retry(func() (int, error) {
			return unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|openFlags, 0)
		})
		if err == nil {
			u.walk(child, depth+1)
			_ = unix.Close(child)
		}
	}
}
