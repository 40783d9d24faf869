package server

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cridproject/crid/internal/errkind"
)

// cgroupFields are the fields, in the words of CRI, behind a cgroup's files.
var cgroupFields = map[string]string{
	"cpuset.cpus": "cpuset_cpus", "cpuset.mems": "cpuset_mems",
	"cpu.cfs_quota_us": "cpu_quota", "cpu.cfs_period_us": "cpu_period", "cpu.shares": "cpu_shares",
	"cpu.max": "cpu_quota", "cpu.weight": "cpu_shares",
	"memory.limit_in_bytes": "memory_limit_in_bytes", "memory.max": "memory_limit_in_bytes",
	"memory.memsw.limit_in_bytes": "memory_swap_limit_in_bytes", "memory.swap.max": "memory_swap_limit_in_bytes",
}

// refusedValue is err with the field behind it, below what prefix names, when the
// kernel has refused to write a value to a file of the cgroup; else nil.
func refusedValue(err error, prefix string, res *specs.LinuxResources) error {
	if res != nil {
		// Also when there is no such file, which the request has named.
		for name := range res.Unified {
			if strings.Contains(err.Error(), fmt.Sprintf("unified resource %q", name)) {
				return errkind.Errorf(errkind.Invalid, "%sunified[%q]: %w", prefix, name, err)
			}
		}
	}
	var file *fs.PathError
	if !errors.As(err, &file) || file.Op != "write" {
		return nil
	}
	if !slices.ContainsFunc([]error{unix.EINVAL, unix.ERANGE, unix.EACCES}, func(no error) bool { return errors.Is(file, no) }) {
		return nil
	}
	name := filepath.Base(file.Path)
	field := cgroupFields[name]
	if strings.HasPrefix(name, "hugetlb.") {
		field = "hugepage_limits"
	}
	if field == "" {
		return nil
	}
	return errkind.Errorf(errkind.Invalid, "%s%s: the kernel does not take the value: %w", prefix, field, err)
}

// startAdvice says what to look at when the kernel, or libcontainer in its words, does
// not execute a program. Of two that fit, the first is meant.
var startAdvice = []struct{ begin, end, advice string }{
	{"exec: ", "executable file not found in $PATH", "the image has no such program; look at the container's command and at PATH"},
	{"exec: ", "no such file or directory", "the image has no such program; look at the container's command and at the image's entry point"},
	{"exec ", "no such file or directory", "the program is there, but its interpreter is not: what the first line of a script names, or the loader of a program that is not static"},
	{"exec", "exec format error", "it is for another architecture, or a script without #! in its first line"},
	{"exec", "permission denied", "the container's user may not execute it, or its mount has noexec"},
}

// startText is what the first process has said about its program, with advice.
func startText(text string) string {
	for _, a := range startAdvice {
		if strings.HasPrefix(text, a.begin) && strings.HasSuffix(text, a.end) {
			return text + "; " + a.advice
		}
	}
	return text
}

// createError gives an error of libcontainer's create the field at fault, where it
// is the request's fault. What its init says comes as text only.
func createError(err error, spec *specs.Spec) error {
	res := spec.Linux.Resources
	if refused := refusedValue(err, "config.linux.resources.", res); refused != nil {
		return refused
	}
	text := err.Error()
	// systemd takes a scope away with the last process in it.
	gone := strings.Contains(text, "error setting cgroup config") && strings.HasSuffix(text, unix.ENOENT.Error())
	little := gone || strings.Contains(text, "unable to set memory limit") || strings.Contains(text, "OOM-killed")
	if little && res != nil && res.Memory != nil && res.Memory.Limit != nil {
		return errkind.Errorf(errkind.Invalid, "config.linux.resources.memory_limit_in_bytes: %d bytes are not enough to start the container: %w", *res.Memory.Limit, err)
	}
	if why, ok := workingDirError(text, spec.Process.Cwd); ok {
		return errkind.Errorf(errkind.Invalid, "config.working_dir: %s: %s", spec.Process.Cwd, why)
	}
	if why, ok := mountError(text, spec.Mounts); ok {
		return errkind.Errorf(errkind.Invalid, "config.mounts: %s", why)
	}
	return fmt.Errorf("create container: %w", err)
}

// workingDirError is what libcontainer's init says of the working folder.
func workingDirError(text, cwd string) (why string, ok bool) {
	if _, why, ok := strings.Cut(text, "chdir to cwd ("); ok {
		_, why, ok = strings.Cut(why, " failed: ")
		return why, ok
	}
	// It makes what is missing of it, from the top.
	for dir := cwd; dir != "/" && dir != "."; dir = path.Dir(dir) {
		if _, why, ok := strings.Cut(text, "error during container init: mkdir "+dir+": "); ok {
			return "make " + dir + ": " + why, true
		}
	}
	return "", false
}

// unmountable are the ends of errors about a mount that come from where it is to be.
var unmountable = []string{
	unix.ENOTDIR.Error(), unix.ENAMETOOLONG.Error(), unix.ELOOP.Error(), "because it is inside /proc",
}

// ownTargets are places of mounts that the request has not asked for. Over a path
// of another kind in the image they fail as well.
var ownTargets = []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/shm"}

// mountError is what libcontainer's init says of a mount that cannot be where it is
// to be, as a folder on a file.
func mountError(text string, mounts []specs.Mount) (why string, ok bool) {
	i := strings.Index(text, "error mounting ")
	if i < 0 || !slices.ContainsFunc(unmountable, func(end string) bool { return strings.HasSuffix(text, end) }) {
		return "", false
	}
	for _, m := range mounts {
		asked := m.Type == "bind" && !slices.Contains(ownTargets, m.Destination)
		if asked && strings.Contains(text, fmt.Sprintf(" to rootfs at %q: ", m.Destination)) {
			return text[i:], true
		}
	}
	return "", false
}
