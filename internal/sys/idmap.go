package sys

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// CloneIDMapped makes a copy of the mount at path, without what is mounted below
// it, in which owners are seen through the user namespace userns: what ID 0 owns
// on disk is owned by the namespace's root in the copy. Nothing changes on disk.
// The copy is mounted nowhere, and ends with the file.
func CloneIDMapped(path string, userns *os.File) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, &fs.PathError{Op: "open_tree", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Fd())}
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attr)
	if err == nil {
		return f, nil
	}
	_ = f.Close()
	if errors.Is(err, unix.EINVAL) {
		err = fmt.Errorf("%w: this kernel has no ID-mapped mounts of its file system", err)
	}
	return nil, &fs.PathError{Op: "map IDs of mount", Path: path, Err: err}
}

// WithIDMapped runs use with names for folders as CloneIDMapped shows them, in
// the same order. The names are of use to the thread that runs use, and to an
// overlayfs that it makes of them; that may live on. Nothing may be mounted on
// the way from the folder that they share to one of them: then it is an error.
func WithIDMapped(folders []string, userns *os.File, use func(names []string) error) error {
	err := onOwnThread(func() error { return withIDMapped(folders, userns, false, use) })
	if errors.Is(err, errDetached) {
		err = onOwnThread(func() error { return withIDMapped(folders, userns, true, use) })
	}
	return err
}

// errDetached: kernels before 6.15 take no layer from a mount that is nowhere.
var errDetached = errors.New("the kernel makes no overlay of detached mounts")

// withIDMapped needs a thread that ends afterwards.
func withIDMapped(folders []string, userns *os.File, attach bool, use func([]string) error) error {
	shared := sharedFolder(folders)
	clone, err := CloneIDMapped(cmp.Or(shared, "/"), userns)
	if err != nil {
		return err
	}
	defer clone.Close()
	base := "/proc/thread-self/fd/" + strconv.Itoa(int(clone.Fd()))
	if attach {
		if base, err = attachHere(clone); err != nil {
			return err
		}
	}
	var names []string
	for _, folder := range folders {
		name := base + strings.TrimPrefix(folder, shared)
		// The copy has no mounts below its own: never take an empty folder for a layer.
		if err := sameFolder(folder, name); err != nil {
			return err
		}
		names = append(names, name)
	}
	err = use(names)
	if !attach && errors.Is(err, unix.EINVAL) {
		err = fmt.Errorf("%w: %w", errDetached, err)
	}
	return err
}

// sharedFolder is the deepest folder that all absolute, clean paths are below,
// "" for the root.
func sharedFolder(paths []string) string {
	shared := filepath.Dir(paths[0])
	for _, p := range paths[1:] {
		for shared != "/" && !strings.HasPrefix(p, shared+"/") {
			shared = filepath.Dir(shared)
		}
	}
	return strings.TrimSuffix(shared, "/")
}

// attachHere mounts a copy in a mount namespace that ends with this thread.
func attachHere(clone *os.File) (base string, err error) {
	base = "/proc" // any folder that is on each machine, and that no layer is below
	err = unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS)
	if err == nil {
		err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	}
	if err == nil {
		err = unix.MoveMount(int(clone.Fd()), "", unix.AT_FDCWD, base, unix.MOVE_MOUNT_F_EMPTY_PATH)
	}
	if err != nil {
		return "", fmt.Errorf("attach ID-mapped folder: %w", err)
	}
	return base, nil
}

func sameFolder(path, copied string) error {
	a, err := os.Stat(path)
	if err != nil {
		return err
	}
	b, err := os.Stat(copied)
	if err != nil {
		return err
	}
	if !os.SameFile(a, b) {
		return fmt.Errorf("map IDs of %s: something is mounted there", path)
	}
	return nil
}

// ProbeIDMap reports whether this machine can run containers with user
// namespaces over the two folders, which must be on the file system of the
// layers: nil, or an error with the reason. Nothing is written or mounted.
func ProbeIDMap(folders [2]string) error {
	some := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1 << 16, Size: 1 << 16}}
	userns, err := newUserNS(UserNS{UIDs: some, GIDs: some})
	if err != nil {
		return err
	}
	defer userns.Close()
	return WithIDMapped(folders[:], userns, func(names []string) error {
		fsfd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
		if err != nil {
			return fmt.Errorf("open overlayfs: %w", err)
		}
		defer unix.Close(fsfd)
		for _, name := range names {
			if err == nil {
				err = unix.FsconfigSetString(fsfd, "lowerdir+", name) // Linux 6.5
			}
		}
		if err == nil {
			err = unix.FsconfigCreate(fsfd)
		}
		if err != nil {
			return fmt.Errorf("make overlayfs of ID-mapped folders, for which Linux 6.5 or later is needed: %w", err)
		}
		return nil
	})
}
