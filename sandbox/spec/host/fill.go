package host

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/sandbox/config"
	"github.com/cridproject/crid/sandbox/spec"
)

// seccompRoot is where relative names of localhost profiles start: kubelet's.
const seccompRoot = "/var/lib/kubelet/seccomp"

// Fill puts into in what its container needs to know of the node: h, the
// devices asked for (all of them for a privileged container), and what the
// localhost profiles named are.
func Fill(in *spec.Input, h spec.Host) error {
	in.Host = h
	var err error
	if in.Devices, err = Devices(in.Container.Devices); err != nil {
		return err
	}
	sec := in.Container.Security
	if sec.Privileged {
		if in.Host.Devices, err = AllDevices(); err != nil {
			return err
		}
	}
	if p := sec.Seccomp; p.Kind == config.ProfileLocalhost {
		path := strings.TrimPrefix(p.Ref, "localhost/")
		if !filepath.IsAbs(path) {
			path = filepath.Join(seccompRoot, path)
		}
		data, err := readProfile(path)
		if err != nil && !os.IsNotExist(err) {
			return errkind.Errorf(errkind.Invalid, "config.linux.security_context.seccomp.localhost_ref: %w", err)
		}
		in.SeccompProfile = data
	}
	if p := sec.AppArmor; p.Kind == config.ProfileLocalhost {
		in.AppArmorLoaded = appArmorLoaded(readTrim(appArmorProfiles), strings.TrimPrefix(p.Ref, "localhost/"))
	}
	return nil
}

// maxProfile bounds a seccomp profile; the default one has 20 KiB.
const maxProfile = 4 << 20

// readProfile reads a file of this node whose name came with a request.
func readProfile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe without a writer must not hold it
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxProfile+1))
	if err == nil && len(data) > maxProfile {
		err = fmt.Errorf("%s has more than %d bytes", path, maxProfile)
	}
	return data, err
}

// appArmorLoaded looks for name in the kernel's list, lines of "name (mode)".
func appArmorLoaded(list, name string) bool {
	for line := range strings.Lines(list) {
		i := strings.LastIndex(line, " (")
		if i >= 0 && line[:i] == name {
			return true
		}
	}
	return false
}

// Devices looks up the devices asked for. Links are followed; of a folder all
// devices below it are taken.
func Devices(wanted []config.Device) ([]spec.Device, error) {
	var all []spec.Device
	for i, w := range wanted {
		found, err := lookUp(w)
		if err != nil {
			return nil, errkind.Errorf(errkind.Invalid, "config.devices[%d].host_path: %w", i, err)
		}
		all = append(all, found...)
	}
	return all, nil
}

func lookUp(w config.Device) ([]spec.Device, error) {
	path, err := filepath.EvalSymlinks(string(w.HostPath))
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	at := string(w.ContainerPath)
	if at == "" {
		at = string(w.HostPath)
	}
	if d, ok := device(at, st); ok {
		d.Permissions, d.HostPath = w.Permissions, path
		return []spec.Device{d}, nil
	}
	if !st.IsDir() {
		return nil, fmt.Errorf("%s is no device", w.HostPath)
	}
	found, err := walk(path, at)
	for i := range found {
		found[i].Permissions = w.Permissions
	}
	return found, err
}

// AllDevices is every device below /dev but those that a container has of its
// own: terminals, its console, shared memory, message queues.
func AllDevices() ([]spec.Device, error) {
	all, err := walk("/dev", "/dev")
	if err != nil {
		return nil, fmt.Errorf("list the node's devices: %w", err)
	}
	return all, nil
}

func walk(dir, at string) ([]spec.Device, error) {
	var all []spec.Device
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil && path == dir:
			return err
		case err != nil:
			return nil //nolint:nilerr // it went away meanwhile
		case e.IsDir() && filepath.Dir(path) == "/dev" && slices.Contains([]string{"pts", "shm", "fd", "mqueue", ".udev"}, e.Name()):
			return filepath.SkipDir
		case path == "/dev/console" || e.Type()&fs.ModeDevice == 0:
			return nil
		}
		st, err := e.Info()
		if err != nil {
			return nil //nolint:nilerr // it went away meanwhile
		}
		if d, ok := device(filepath.Join(at, strings.TrimPrefix(path, dir)), st); ok {
			d.HostPath = path
			all = append(all, d)
		}
		return nil
	})
	return all, err
}

// device reports what st is, if it is a device.
func device(at string, st fs.FileInfo) (spec.Device, bool) {
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || st.Mode()&fs.ModeDevice == 0 {
		return spec.Device{}, false
	}
	d := spec.Device{Path: at, Type: "b", Mode: uint32(st.Mode().Perm()), UID: sys.Uid, GID: sys.Gid}
	if st.Mode()&fs.ModeCharDevice != 0 {
		d.Type = "c"
	}
	// The kernel's encoding of a device number, as in makedev(3).
	rdev := uint64(sys.Rdev) //nolint:unconvert // another width elsewhere
	d.Major = int64(rdev>>8&0xfff | rdev>>32&^uint64(0xfff))
	d.Minor = int64(rdev&0xff | rdev>>12&^uint64(0xff))
	return d, true
}
