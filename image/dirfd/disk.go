package dirfd

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"
)

// SyncFS makes all that was written to the file system of path survive a power
// cut. It is one call for a hundred thousand files.
func SyncFS(path string) error {
	d, err := Open(path)
	if err != nil {
		return err
	}
	if err := errors.Join(unix.Syncfs(d.fd), d.Close()); err != nil {
		return &fs.PathError{Op: "syncfs", Path: path, Err: err}
	}
	return nil
}

// Free is the number of bytes that can still be written to path's file system.
func Free(path string) (int64, error) {
	bytes, _, err := Room(path)
	return bytes, err
}

// Room is Free, and the number of files that can still be made there.
func Room(path string) (bytes int64, files uint64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, 0, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	return int64(st.Bavail) * st.Bsize, st.Ffree, nil
}
