package sys

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Filesystem is the size of a file system and the device that it is on.
type Filesystem struct {
	Bytes, Inodes, FreeInodes uint64
	Major, Minor              uint32
}

// FilesystemOf is the file system that path is on, which must be a local one.
func FilesystemOf(path string) (Filesystem, error) {
	var s unix.Statfs_t
	var st unix.Stat_t
	if err := unix.Statfs(path, &s); err != nil {
		return Filesystem{}, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	if err := unix.Stat(path, &st); err != nil {
		return Filesystem{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return Filesystem{
		Bytes: s.Blocks * uint64(s.Bsize), Inodes: s.Files, FreeInodes: s.Ffree,
		Major: unix.Major(st.Dev), Minor: unix.Minor(st.Dev),
	}, nil
}

// BlockDevice is the path of a block device, such as /dev/vda1. One that the
// kernel does not know, as that of a file system on several, is "major:minor".
func BlockDevice(major, minor uint32) string {
	b, err := ReadSmall(fmt.Sprintf("/sys/dev/block/%d:%d/uevent", major, minor), nil)
	if err == nil {
		for line := range strings.Lines(string(b)) {
			if name, ok := strings.CutPrefix(line, "DEVNAME="); ok {
				return "/dev/" + strings.TrimSpace(name)
			}
		}
	}
	return fmt.Sprintf("%d:%d", major, minor)
}
