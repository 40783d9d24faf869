package server

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cridproject/crid/internal/errkind"
)

// ownWorkingDir makes what is missing of the working folder, in the root file
// system at root, for the container's user. libcontainer would make it for root,
// whose folder the user could not write to. Folders that are there stay as they
// are, and so does what a volume will cover. uid and gid are the node's.
func ownWorkingDir(root, cwd string, uid, gid int) error {
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open root file system: %w", err)
	}
	defer unix.Close(fd)
	err = makeDirs(fd, cwd, uid, gid)
	if errors.Is(err, unix.ENAMETOOLONG) {
		return errkind.Errorf(errkind.Invalid, "config.working_dir: %w", err)
	}
	if err != nil {
		return fmt.Errorf("make working folder %s: %w", cwd, err)
	}
	return nil
}

// makeDirs makes the folders of p that are missing below root, a descriptor.
// Links lead nowhere but below root, whoever has made them.
func makeDirs(root int, p string, uid, gid int) error {
	switch fd, err := openDir(root, p); {
	case err == nil:
		return unix.Close(fd) // all there, the usual case
	case errors.Is(err, unix.ENOSYS):
		return nil // before Linux 5.6: left to libcontainer, and to root
	}
	at, err := unix.Dup(root)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(at) }()
	done := "/"
	for name := range strings.SplitSeq(strings.Trim(path.Clean(p), "/"), "/") {
		done = path.Join(done, name)
		next, err := openDir(root, done)
		if errors.Is(err, unix.ENOENT) {
			if err := unix.Mkdirat(at, name, 0o755); err != nil {
				// A link to what is not there: libcontainer says what is wrong with it.
				return ignoreExists(err)
			}
			if err := unix.Fchownat(at, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return err
			}
			next, err = openDir(root, done)
		}
		switch {
		case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
			return nil // as above
		case err != nil:
			return err
		}
		_ = unix.Close(at)
		at = next
	}
	return nil
}

func openDir(root int, p string) (int, error) { return openBelow(root, p, unix.O_DIRECTORY, 0) }

// openBelow opens what links lead to as if root were the root: a descriptor for its
// path only. While others mount and rename, as on any node, the kernel may not be
// able to tell where a link upwards leads.
func openBelow(root int, p string, flags, resolve uint64) (fd int, err error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC | flags,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | resolve,
	}
	for range 100 {
		fd, err = unix.Openat2(root, p, &how)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return fd, err
}

func ignoreExists(err error) error {
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}
