// Package sys is the kernel as crid needs it: namespaces pinned to files,
// mounts, pidfds, cgroup folders, file descriptors passed over sockets.
//
// It is the only package of the daemon that imports golang.org/x/sys/unix, so
// that everything dangerous is found in one folder. It knows nothing of
// sandboxes or containers and keeps no state; every function may be called
// concurrently.
//
// Threads. A namespace belongs to a thread, and Go moves goroutines between
// threads. Whatever enters a namespace here does so on a thread that ends
// afterwards and never runs another goroutine.
package sys

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// SystemdBooted reports whether systemd is the init of this machine.
func SystemdBooted() bool {
	fi, err := os.Lstat("/run/systemd/system")
	return err == nil && fi.IsDir()
}

// BootID is different after each boot of the machine; "" when /proc does not
// say. A record of another boot names processes and mounts that are gone.
func BootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// SetSysctl writes a sysctl of the calling thread's namespaces. The name is in
// either notation of sysctl(8): net.ipv4.conf.eth0/1.rp_filter is
// net/ipv4/conf/eth0.1/rp_filter.
func SetSysctl(name, value string) error {
	path, err := sysctlPath(name)
	if err != nil {
		return err
	}
	// No O_CREATE: a name that the kernel does not have is ENOENT, not EACCES.
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("set sysctl %s: %w", name, err)
	}
	defer f.Close()
	if _, err := f.WriteString(value); err != nil {
		return fmt.Errorf("set sysctl %s to %q: %w", name, value, err)
	}
	return nil
}

// sysctlPath: the separator that comes first in name is the separator of
// folders, and the other one is part of names.
func sysctlPath(name string) (string, error) {
	i := strings.IndexAny(name, "./")
	if i < 0 {
		return "", fmt.Errorf("sysctl %q has no folder", name)
	}
	if name[i] == '.' {
		name = strings.Map(func(r rune) rune {
			switch r {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return r
		}, name)
	}
	if !filepath.IsLocal(name) || filepath.Clean(name) != name {
		return "", fmt.Errorf("sysctl %q is not a path below /proc/sys", name)
	}
	return filepath.Join("/proc/sys", name), nil
}
