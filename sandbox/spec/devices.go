package spec

import (
	"os"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// deviceNodes: the request's devices, and all of the node's for a privileged
// container, first come first served by path. libcontainer adds the usual ones
// (null, zero, full, random, urandom, tty) and the links beside them.
func deviceNodes(b *builder) error {
	devices := slices.Clone(b.Devices)
	if b.privileged() {
		devices = append(devices, b.Host.Devices...)
	}
	seen := map[string]bool{}
	for _, m := range b.boundDevices() {
		seen[m.Destination] = true
	}
	for _, d := range devices {
		if seen[d.Path] {
			continue
		}
		seen[d.Path] = true
		mode := os.FileMode(d.Mode)
		b.Spec.Linux.Devices = append(b.Spec.Linux.Devices, specs.LinuxDevice{
			Path: d.Path, Type: d.Type, Major: d.Major, Minor: d.Minor,
			FileMode: &mode, UID: &d.UID, GID: &d.GID,
		})
	}
	return nil
}

// deviceRules is the device cgroup: everything for a privileged container,
// else nothing but the devices given (and libcontainer's usual ones).
func deviceRules(privileged bool, devices []Device) []specs.LinuxDeviceCgroup {
	rules := []specs.LinuxDeviceCgroup{{Allow: privileged, Access: "rwm"}}
	if privileged {
		return rules
	}
	for _, d := range devices {
		access := d.Permissions
		if access == "" {
			access = "rwm"
		}
		rules = append(rules, specs.LinuxDeviceCgroup{
			Allow: true, Type: d.Type, Major: &d.Major, Minor: &d.Minor, Access: access,
		})
	}
	return rules
}
