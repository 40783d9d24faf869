package sys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// unpinTries bounds the loop against someone who mounts as fast as we unmount.
const unpinTries = 64

// pin bind-mounts the namespace file ns on a new file at path. On error it
// may leave that file; Unpin removes it.
func pin(ns, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	// After a crash there may be a file without a mount, a mount of an old
	// namespace, or several on top of each other.
	if err := Unpin(path); err != nil {
		return fmt.Errorf("replace what was left there: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	_ = f.Close()
	if err := unix.Mount(ns, path, "", unix.MS_BIND, ""); err != nil {
		return &fs.PathError{Op: "bind mount", Path: path, Err: err}
	}
	return nil
}

// Unpin unmounts everything that is mounted at path and removes the file there. A
// namespace ends with its last pin and process. It is no error when path is
// absent or only a file.
func Unpin(path string) error {
	var last error
	for range unpinTries {
		// Lazily: somebody's open descriptor must not keep a pod from going.
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil: // there may be another below
			continue
		case errors.Is(err, unix.ENOENT):
			return nil
		case !errors.Is(err, unix.EINVAL): // EINVAL: not a mount point
			return &fs.PathError{Op: "unmount", Path: path, Err: err}
		}
		last = os.Remove(path)
		if last == nil || errors.Is(last, fs.ErrNotExist) {
			return nil
		}
		if !errors.Is(last, unix.EBUSY) { // EBUSY: mounted again since
			return last
		}
	}
	return fmt.Errorf("unpin %s: mounts come back as fast as they are removed: %w", path, errors.Join(last, unix.EBUSY))
}

// ShareDir makes dir, which it creates if need be, a mount point with shared
// propagation: what is mounted below it from now on shows in every mount
// namespace that has a copy of dir's mount. Without that a pinned namespace is
// an empty file to a process that has unshared its mounts.
//
// Doing it again does nothing, and doing it at once from several goroutines,
// or beside `ip netns add`, makes one mount. Unmount undoes it.
func ShareDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("share folder: %w", err)
	}
	share := func() error { return unix.Mount("", dir, "", unix.MS_SHARED, "") }
	err := share()
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.EINVAL) { // dir is not a mount point
		unlock, lockErr := lockDir(dir)
		if lockErr != nil {
			return fmt.Errorf("share folder: %w", lockErr)
		}
		defer unlock()
		if err = share(); errors.Is(err, unix.EINVAL) { // still not, under the lock
			if err = unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, ""); err == nil {
				err = share()
			}
		}
	}
	if err != nil {
		return fmt.Errorf("share folder: %w", &fs.PathError{Op: "mount", Path: dir, Err: err})
	}
	return nil
}

// lockDir takes the lock that iproute2 takes for the same purpose: flock on
// the folder. It is held for microseconds, so it is not waited for with a context.
func lockDir(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(d.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		_ = d.Close()
		return nil, &fs.PathError{Op: "flock", Path: dir, Err: err}
	}
	return func() { _ = d.Close() }, nil
}
