package sys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// MountFlags are properties of one mount.
type MountFlags uint

// The flags that crid sets.
const (
	ReadOnly  MountFlags = unix.MS_RDONLY
	NoSuid    MountFlags = unix.MS_NOSUID
	NoDev     MountFlags = unix.MS_NODEV
	NoExec    MountFlags = unix.MS_NOEXEC
	Recursive MountFlags = unix.MS_REC // with Bind: the mounts below src too
)

// UnmountFlags change how Unmount works.
type UnmountFlags uint

// Detach takes the mount out of the tree at once and ends it when its last user is gone.
const Detach UnmountFlags = unix.MNT_DETACH

// TmpfsOptions are the properties of a tmpfs.
type TmpfsOptions struct {
	Size  int64       // bytes; 0 means half of the machine's memory
	Mode  os.FileMode // of its root, sticky bit included; 0 means 01777
	UID   uint32      // owner of its root
	GID   uint32
	Flags MountFlags
}

// MountTmpfs mounts a new tmpfs at path, which must be a folder.
func MountTmpfs(path string, o TmpfsOptions) error {
	mode := uint32(0o1777)
	if o.Mode != 0 {
		mode = uint32(o.Mode.Perm())
		if o.Mode&os.ModeSticky != 0 {
			mode |= unix.S_ISVTX
		}
	}
	data := fmt.Sprintf("mode=%o", mode)
	if o.Size > 0 {
		data += fmt.Sprintf(",size=%d", o.Size)
	}
	if o.UID != 0 || o.GID != 0 {
		data += fmt.Sprintf(",uid=%d,gid=%d", o.UID, o.GID)
	}
	if err := unix.Mount("tmpfs", path, "tmpfs", uintptr(o.Flags), data); err != nil {
		return &fs.PathError{Op: "mount tmpfs", Path: path, Err: err}
	}
	return nil
}

// Bind makes src appear at dst, which must exist and be of the same kind, file
// or folder. Flags other than Recursive are set in addition to those that src
// has, on the top mount only. On error nothing is left mounted.
func Bind(src, dst string, flags MountFlags) error {
	bindErr := func(err error) error {
		return fmt.Errorf("bind mount %s at %s: %w", src, dst, err)
	}
	if err := unix.Mount(src, dst, "", uintptr(unix.MS_BIND|flags&Recursive), ""); err != nil {
		return bindErr(err)
	}
	flags &^= Recursive
	if flags == 0 {
		return nil
	}
	// A bind mount ignores flags, and a remount resets those it is not given.
	var st unix.Statfs_t
	err := unix.Statfs(dst, &st)
	if err == nil {
		keep := uintptr(st.Flags) & (unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC |
			unix.MS_NOATIME | unix.MS_NODIRATIME)
		err = unix.Mount("", dst, "", unix.MS_REMOUNT|unix.MS_BIND|keep|uintptr(flags), "")
	}
	if err != nil {
		return errors.Join(bindErr(err), Unmount(dst, Detach))
	}
	return nil
}

// Unmount takes away the topmost mount at path. It is no error when path is
// absent or nothing is mounted there. A link at path is not followed.
func Unmount(path string, flags UnmountFlags) error {
	err := unix.Unmount(path, int(flags)|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "unmount", Path: path, Err: err}
	}
	return nil
}

// IsMountpoint reports whether something is mounted at path. A link at path is
// not followed. What is absent is not a mount point.
func IsMountpoint(path string) (bool, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &st)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return false, nil
	}
	if err != nil {
		return false, &fs.PathError{Op: "statx", Path: path, Err: err}
	}
	// Linux 5.8 and later answer this for every file system.
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return false, fmt.Errorf("is %s a mount point: the kernel is older than 5.8", path)
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}
