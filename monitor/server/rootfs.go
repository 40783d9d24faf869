package server

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/monitor"
)

// mountRootfs mounts a container's root file system at dir, which it makes.
// On error nothing is left behind. label, if set, is the SELinux context.
func mountRootfs(dir string, r monitor.Rootfs, label string) (err error) {
	if len(r.Lower) == 0 {
		return errkind.Errorf(errkind.Invalid, "mount rootfs: no lower layer")
	}
	if (r.Upper == "") != (r.Work == "") {
		return errkind.Errorf(errkind.Invalid, "mount rootfs: upper and work folder come together or not at all")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make mount point of rootfs: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(dir)
		}
	}()
	if r.UserNS != "" {
		return mountIDMapped(dir, r, label)
	}
	if r.Upper == "" && len(r.Lower) == 1 {
		return bindReadOnly(r.Lower[0], dir) // overlay without an upper layer needs two
	}
	err = mountByFsopen(dir, r, label)
	if errors.Is(err, errOldKernel) {
		err = mountByOptions(dir, r, label)
	}
	return err
}

// unmountRootfs undoes mountRootfs. It is no error when nothing is there.
func unmountRootfs(dir string) error {
	// Detached: a mount namespace that was copied a moment ago, by a container
	// being made, may hold it until that container has its own root.
	err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount rootfs %s: %w", dir, err)
	}
	if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("remove mount point of rootfs: %w", err)
	}
	return nil
}

func bindReadOnly(src, dir string) error {
	err := unix.Mount(src, dir, "", unix.MS_BIND, "")
	if err == nil {
		err = unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
		if err != nil {
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	}
	if err != nil {
		return fmt.Errorf("mount rootfs %s read-only: %w", src, err)
	}
	return nil
}

// errOldKernel: the kernel lacks what mountByFsopen uses.
var errOldKernel = errors.New("kernel has no lowerdir+")

// fsconfigMax is the longest value that fsconfig(2) takes.
const fsconfigMax = 255

// mountByFsopen gives overlayfs its layers one by one (Linux 6.5), so that their
// number is limited by overlayfs alone (500) and not by the length of a string.
func mountByFsopen(dir string, r monitor.Rootfs, label string) error {
	mfd, err := overlay(r, label)
	if err != nil {
		return err
	}
	defer unix.Close(mfd)
	return attachMount(mfd, dir)
}

func attachMount(mfd int, dir string) error {
	if err := unix.MoveMount(mfd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount rootfs at %s: %w", dir, err)
	}
	return nil
}

// overlay is the descriptor of an overlayfs that is mounted nowhere yet.
func overlay(r monitor.Rootfs, label string) (int, error) {
	type option struct{ key, value string }
	options := []option{{"source", "crid"}}
	for _, l := range r.Lower {
		options = append(options, option{"lowerdir+", l})
	}
	if r.Upper != "" {
		// In these two a backslash protects what follows, in lowerdir+ it does not.
		escape := strings.NewReplacer(`\`, `\\`)
		options = append(options, option{"upperdir", escape.Replace(r.Upper)}, option{"workdir", escape.Replace(r.Work)})
	}
	if label != "" {
		options = append(options, option{"context", label})
	}
	fsfd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("%w: fsopen: %w", errOldKernel, err)
	}
	defer unix.Close(fsfd)
	for _, o := range options {
		if len(o.value) > fsconfigMax {
			return -1, errOldKernel
		}
		err := unix.FsconfigSetString(fsfd, o.key, o.value)
		if errors.Is(err, unix.EINVAL) && o.key == "lowerdir+" && !strings.Contains(fsMessages(fsfd), "lowerdir") {
			return -1, errOldKernel
		}
		if err != nil {
			return -1, fmt.Errorf("mount rootfs: overlay %s=%s: %w%s", o.key, o.value, err, fsMessages(fsfd))
		}
	}
	if r.Volatile && r.Upper != "" {
		if err := unix.FsconfigSetFlag(fsfd, "volatile"); err != nil {
			return -1, fmt.Errorf("mount rootfs: overlay volatile: %w%s", err, fsMessages(fsfd))
		}
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return -1, fmt.Errorf("mount rootfs: overlay over %s: %w%s", r.Lower[0], err, fsMessages(fsfd))
	}
	mfd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("mount rootfs: fsmount: %w", err)
	}
	return mfd, nil
}

// fsMessages is what the kernel says about a failure, in parentheses.
func fsMessages(fsfd int) string {
	var msgs []string
	buf := make([]byte, 4096)
	for range 16 {
		n, err := unix.Read(fsfd, buf)
		if err != nil || n <= 0 {
			break
		}
		// Each message begins with its level: "e overlay: ...".
		msgs = append(msgs, strings.TrimSpace(strings.TrimLeft(string(buf[:n]), "ewi ")))
	}
	if len(msgs) == 0 {
		return ""
	}
	return " (" + strings.Join(msgs, "; ") + ")"
}

// optionsMax is how many bytes of options mount(2) takes: a page with its end.
const optionsMax = 4095

// mountByOptions is the way of kernels before 6.5. Layers are named relative to
// the folder that they share, which makes room for about a hundred.
func mountByOptions(dir string, r monitor.Rootfs, label string) error {
	build := func(name func(string) string) string {
		var lower []string
		for _, l := range r.Lower {
			lower = append(lower, escapeOption(name(l)))
		}
		opts := "lowerdir=" + strings.Join(lower, ":")
		if r.Upper != "" {
			opts += ",upperdir=" + escapeOption(name(r.Upper)) + ",workdir=" + escapeOption(name(r.Work))
			if r.Volatile {
				opts += ",volatile"
			}
		}
		if label != "" {
			opts += fmt.Sprintf(",context=%q", label)
		}
		return opts
	}
	opts := build(func(p string) string { return p })
	if len(opts) <= optionsMax {
		return mountErr(r, unix.Mount("crid", dir, "overlay", 0, opts))
	}
	base := commonFolder(append([]string{r.Upper, r.Work}, r.Lower...))
	opts = build(func(p string) string {
		rel, err := filepath.Rel(base, p)
		if err != nil {
			return p
		}
		return rel
	})
	if len(opts) > optionsMax {
		return errkind.Errorf(errkind.Invalid,
			"mount rootfs: %d layers need %d bytes of mount options, this kernel takes %d; Linux 6.5 and later has no such limit",
			len(r.Lower), len(opts), optionsMax)
	}
	result := make(chan error)
	go func() {
		// The thread gets a working folder of its own and ends with the
		// goroutine, since it is never unlocked.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Chdir(base)
		}
		if err == nil {
			err = unix.Mount("crid", dir, "overlay", 0, opts)
		}
		result <- err
	}()
	return mountErr(r, <-result)
}

func mountErr(r monitor.Rootfs, err error) error {
	if err != nil {
		return fmt.Errorf("mount rootfs: overlay over %s: %w", r.Lower[0], err)
	}
	return nil
}

// escapeOption protects what overlayfs and mount(2) give a meaning.
func escapeOption(path string) string {
	return strings.NewReplacer(`\`, `\\`, `:`, `\:`, `,`, `\,`).Replace(path)
}

// commonFolder is the deepest folder that all non-empty paths are below.
func commonFolder(paths []string) string {
	base := ""
	for _, p := range paths {
		if p == "" {
			continue
		}
		if base == "" {
			base = filepath.Dir(p)
		}
		for base != "/" && !strings.HasPrefix(p, base+"/") {
			base = filepath.Dir(base)
		}
	}
	return base
}
