// Package host finds out what the node is like, for sandbox/spec: its cgroups,
// its devices, what crid itself may do. It only looks, and changes nothing.
package host

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/cridproject/crid/sandbox/spec"
)

const (
	cgroupRoot       = "/sys/fs/cgroup"
	cgroup2Magic     = 0x63677270
	capSysResource   = "CAP_SYS_RESOURCE"
	lowestOOMScore   = -1000
	appArmorEnabled  = "/sys/module/apparmor/parameters/enabled"
	appArmorProfiles = "/sys/kernel/security/apparmor/profiles"
)

// Probe looks at everything that stays as it is until the node reboots.
func Probe() (spec.Host, error) {
	h := spec.Host{
		CgroupUnified: unified(),
		HugePageSizes: hugePageSizes("/sys/kernel/mm/hugepages"),
		// Both: where the kernel's folder is not mounted, nobody can set a profile.
		HasAppArmor: readTrim(appArmorEnabled) == "Y" && exists(appArmorProfiles),
		HasSELinux:  exists("/sys/fs/selinux/enforce"),
	}
	h.Controllers = controllers(h.CgroupUnified)
	h.SwapAccounting = swapAccounting(h.CgroupUnified)

	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return spec.Host{}, fmt.Errorf("find out crid's capabilities: %w", err)
	}
	h.BoundingCaps = capsOf(string(status), "CapBnd")
	if !slices.Contains(capsOf(string(status), "CapEff"), capSysResource) {
		// Without the capability nobody can go below where they are.
		h.MinOOMScoreAdj, _ = strconv.Atoi(readTrim("/proc/self/oom_score_adj"))
	} else {
		h.MinOOMScoreAdj = lowestOOMScore
	}
	if h.NodeHostname, err = os.Hostname(); err != nil {
		return spec.Host{}, fmt.Errorf("find out the node's name: %w", err)
	}
	return h, nil
}

// unified reports whether cgroup v2 is all there is.
func unified() bool {
	var st syscall.Statfs_t
	return syscall.Statfs(cgroupRoot, &st) == nil && st.Type == cgroup2Magic
}

// controllers are the cgroup controllers that containers can have.
func controllers(unified bool) []string {
	if unified {
		return strings.Fields(readTrim(cgroupRoot + "/cgroup.controllers"))
	}
	var names []string
	for line := range strings.Lines(readTrim("/proc/cgroups")) {
		name, _, _ := strings.Cut(line, "\t")
		if !strings.HasPrefix(name, "#") && exists(filepath.Join(cgroupRoot, name)) {
			names = append(names, name)
		}
	}
	return names
}

// swapAccounting looks for the file of the swap limit. With v2 the root has
// none, so any group below it is asked.
func swapAccounting(unified bool) bool {
	if !unified {
		return exists(cgroupRoot + "/memory/memory.memsw.limit_in_bytes")
	}
	found, _ := filepath.Glob(cgroupRoot + "/*/memory.swap.max")
	return len(found) > 0
}

// capsOf are the capabilities in one line of /proc/<pid>/status.
func capsOf(status, line string) []string {
	var names []string
	for l := range strings.Lines(status) {
		hex, ok := strings.CutPrefix(l, line+":")
		if !ok {
			continue
		}
		bits, _ := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
		for n := range 64 {
			if name := spec.CapName(n); bits&(1<<n) != 0 && name != "" {
				names = append(names, name)
			}
		}
	}
	return names
}

// hugePageSizes turns the kernel's hugepages-2048kB into CRI's 2MB.
func hugePageSizes(dir string) []string {
	entries, _ := os.ReadDir(dir)
	var sizes []string
	for _, e := range entries {
		kb, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(e.Name(), "hugepages-"), "kB"))
		if err != nil {
			continue
		}
		units := []string{"KB", "MB", "GB"}
		for kb >= 1024 && len(units) > 1 {
			kb /= 1024
			units = units[1:]
		}
		sizes = append(sizes, strconv.Itoa(kb)+units[0])
	}
	return sizes
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func readTrim(path string) string {
	data, _ := os.ReadFile(path)
	return strings.TrimSpace(string(data))
}
