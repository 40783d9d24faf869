package server

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/monitor"
)

// mountIDMapped mounts a root file system whose layers are seen through a user
// namespace. They are shared with other pods and stay as they are on disk: what
// is mapped is a mount of them, of which overlayfs takes a copy. The overlay
// itself, and with it the writable layer, cannot be mapped.
func mountIDMapped(dir string, r monitor.Rootfs, label string) error {
	userns, err := os.Open(r.UserNS)
	if err != nil {
		return fmt.Errorf("mount rootfs: user namespace: %w", err)
	}
	defer userns.Close()
	if r.Upper == "" && len(r.Lower) == 1 {
		return mountLayer(dir, r.Lower[0], userns)
	}
	mfd := -1
	err = sys.WithIDMapped(r.Lower, userns, func(names []string) error {
		if r.Upper != "" {
			if err := ownUpper(names[0], r.Upper); err != nil {
				return err
			}
		}
		mapped := r
		mapped.Lower = names
		var err error
		mfd, err = overlay(mapped, label)
		return err
	})
	if errors.Is(err, errOldKernel) {
		return errkind.Errorf(errkind.Invalid, "mount rootfs: user namespaces need Linux 6.5 or later: %w", err)
	}
	if err != nil {
		return fmt.Errorf("mount rootfs with mapped IDs: %w", err)
	}
	defer unix.Close(mfd)
	return attachMount(mfd, dir)
}

// mountLayer mounts one layer, read-only.
func mountLayer(dir, layer string, userns *os.File) error {
	f, err := sys.CloneIDMapped(layer, userns)
	if err != nil {
		return fmt.Errorf("mount rootfs with mapped IDs: %w", err)
	}
	defer f.Close()
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(int(f.Fd()), "", unix.AT_EMPTY_PATH, attr); err != nil {
		return fmt.Errorf("mount rootfs %s read-only: %w", layer, err)
	}
	return attachMount(int(f.Fd()), dir)
}

// ownUpper gives the writable layer's root folder the owner that the uppermost
// layer's has in the container: that is what overlayfs shows.
func ownUpper(lower, upper string) error {
	var st unix.Stat_t
	if err := unix.Stat(lower, &st); err != nil {
		return &os.PathError{Op: "stat", Path: lower, Err: err}
	}
	return os.Lchown(upper, int(st.Uid), int(st.Gid))
}
