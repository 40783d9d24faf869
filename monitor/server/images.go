package server

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/monitor"
)

// imageSign is before the number of an image mount in the name of its mount point,
// beside that of the root file system.
const imageSign = "@"

// mountImages mounts the images that a container is to get and puts paths in the
// place of their sources in the spec. The container binds them when it is made,
// and needs them here no longer: unmountImages then takes them away. On error
// nothing is left mounted. userns is as in monitor.Rootfs.
func (s *Server) mountImages(id string, images []monitor.ImageMount, userns string, spec *specs.Spec) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("%s: %w", monitor.ImageVolumeFailed, err), s.unmountImages(id))
		}
	}()
	for i, img := range images {
		dir := s.rootfs(id) + imageSign + strconv.Itoa(i)
		if err := mountRootfs(dir, monitor.Rootfs{Lower: img.Lower, UserNS: userns}, spec.Linux.MountLabel); err != nil {
			return fmt.Errorf("%s: %w", img.Name, err)
		}
		path, err := inImage(dir, img.SubPath)
		if err != nil {
			return fmt.Errorf("%s: sub path %q of the image: %w", img.Name, img.SubPath, err)
		}
		used := false
		for j := range spec.Mounts {
			if m := &spec.Mounts[j]; m.Source == img.Source {
				m.Source, used = path, true
			}
		}
		if !used {
			return errkind.Errorf(errkind.Invalid, "%s: the spec has no mount of %s", img.Name, img.Source)
		}
	}
	return nil
}

// unmountImages undoes mountImages, also that of a monitor that died. It is no
// error when nothing is there.
func (s *Server) unmountImages(id string) error {
	dir := filepath.Dir(s.rootfs(id))
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("look for image mounts: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if strings.Contains(e.Name(), imageSign) {
			errs = append(errs, unmountRootfs(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// inImage is the path of a file or folder of the image that is mounted at dir.
// Links in the sub path are followed as if dir were the root. They cannot change
// afterwards: images are not written to.
func inImage(dir, sub string) (string, error) {
	if sub == "" {
		return dir, nil
	}
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(root)
	fd, err := openBelow(root, sub, 0, unix.RESOLVE_NO_XDEV)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return "", errkind.Errorf(errkind.Invalid, "there is no such folder or file")
	case err != nil:
		return "", errkind.New(errkind.Invalid, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFDIR && kind != unix.S_IFREG {
		return "", errkind.Errorf(errkind.Invalid, "it is neither a folder nor a regular file")
	}
	// Both as the kernel has them: a link may lead to where dir is.
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return "", err
	}
	if dir, err = os.Readlink("/proc/self/fd/" + strconv.Itoa(root)); err != nil {
		return "", err
	}
	if path != dir && !strings.HasPrefix(path, dir+"/") {
		return "", fmt.Errorf("it is at %s, outside of %s", path, dir)
	}
	return path, nil
}
