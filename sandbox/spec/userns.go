package spec

import (
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cridproject/crid/sandbox/config"
)

const fieldUserNS = fieldSecurity + "namespace_options.userns_options"

// userNamespace: the sandbox's, if it has one. The maps are in the spec beside
// the path, so that the monitor need not ask the kernel for them.
func userNamespace(b *builder) error {
	wanted, pod := b.Container.Security.Namespaces, b.userMap()
	switch {
	case wanted.User == config.NamespacePod && (pod == nil || wanted.UserMap == nil || *wanted.UserMap != *pod):
		return invalid(fieldUserNS, "is not that of the pod sandbox; all containers of a pod share its user namespace")
	case wanted.User == config.NamespaceNode && pod != nil:
		return invalid(fieldUserNS, "is NODE, but the pod sandbox has a user namespace, which its containers share")
	case pod == nil:
		return nil
	case b.pidMode() == config.NamespaceNode:
		return invalid(fieldSecurity+"namespace_options.pid", "is NODE: in a user namespace the node's processes cannot be shown")
	}
	if err := b.checkIDs(pod); err != nil {
		return err
	}
	b.Spec.Linux.Namespaces = append(b.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: b.NS.User})
	b.Spec.Linux.UIDMappings, b.Spec.Linux.GIDMappings = ociMapping(pod.UIDs), ociMapping(pod.GIDs)
	return nil
}

// userMap is nil for a pod in the node's user namespace.
func (b *builder) userMap() *config.IDMaps { return b.Sandbox.Namespaces.UserMap }

// checkIDs refuses a user and groups that the user namespace does not have.
func (b *builder) checkIDs(pod *config.IDMaps) error {
	sec := &b.Container.Security
	field := func(given bool, name, otherwise string) string {
		if given {
			return fieldSecurity + name
		}
		return otherwise
	}
	const missing = "%d is not in the pod's user namespace, which has %d IDs"
	if _, ok := pod.UIDs.Host(b.User.UID); !ok {
		return invalid(field(sec.RunAsUser != nil, "run_as_user", "user of the image"), missing, b.User.UID, pod.UIDs.Length)
	}
	if _, ok := pod.GIDs.Host(b.User.GID); !ok {
		return invalid(field(sec.RunAsGroup != nil, "run_as_group", "group of the image"), missing, b.User.GID, pod.GIDs.Length)
	}
	for i, g := range sec.SupplementalGroups {
		if _, ok := pod.GIDs.Host(g); !ok {
			return invalid(fieldSecurity+"supplemental_groups["+strconv.Itoa(i)+"]", missing, g, pod.GIDs.Length)
		}
	}
	for _, g := range b.User.Groups {
		if _, ok := pod.GIDs.Host(g); !ok {
			return invalid("groups of the image's user", missing, g, pod.GIDs.Length)
		}
	}
	return nil
}

func ociMapping(m config.IDMapping) []specs.LinuxIDMapping {
	return []specs.LinuxIDMapping{{ContainerID: m.ContainerID, HostID: m.HostID, Size: m.Length}}
}

// idMap makes a volume show its owners through the user namespace, as asked for.
// Without being asked for, they are shown as they are on the node: as nobody.
func (b *builder) idMap(i int, m config.Mount, out *specs.Mount) error {
	pod := b.userMap()
	field := func(name string) string { return indexed("config.mounts", i, name) }
	switch {
	case pod != nil && m.Propagation == config.PropagationBidirectional:
		return invalid(field("propagation"), "mounts made in a user namespace do not reach the node, so PROPAGATION_BIDIRECTIONAL cannot work")
	case m.IDMap == nil:
		return nil
	case pod == nil:
		return invalid(field("uidMappings"), "the pod sandbox has no user namespace")
	case m.IDMap.UIDs != pod.UIDs:
		return invalid(field("uidMappings"), "are not those of the pod's user namespace")
	case m.IDMap.GIDs != pod.GIDs:
		return invalid(field("gidMappings"), "are not those of the pod's user namespace")
	}
	if m.Image == nil { // whose layers the monitor maps
		out.Options = append(out.Options, "idmap")
	}
	return nil
}

// userNamespaceMounts changes the default file systems to what can be mounted in
// a user namespace.
func (b *builder) userNamespaceMounts(all []specs.Mount) {
	pod := b.userMap()
	if pod == nil {
		return
	}
	for i := range all {
		switch m := &all[i]; m.Destination {
		case "/dev/pts":
			if _, ok := pod.GIDs.Host(5); !ok {
				m.Options = m.Options[:len(m.Options)-1] // the group of terminals
			}
		case "/sys":
			if !b.Sandbox.HostNetwork() {
				continue
			}
			// Whoever mounts a sysfs must own the network namespace that it shows.
			access := m.Options[len(m.Options)-1]
			if access == "ro" {
				access = "rro"
			}
			m.Type, m.Source = "bind", "/sys"
			m.Options = []string{"rbind", "rprivate", "nosuid", "noexec", "nodev", access}
		}
	}
}

// boundDevices are devices of the request as mounts: nobody can make a device
// node in a user namespace, and what libcontainer does in its place is to mount
// whatever has the same path on the node.
func (b *builder) boundDevices() []specs.Mount {
	if b.userMap() == nil {
		return nil
	}
	var all []specs.Mount
	for _, d := range b.Devices {
		if d.HostPath != "" && d.HostPath != d.Path {
			all = append(all, specs.Mount{
				Destination: d.Path, Type: "bind", Source: d.HostPath, Options: []string{"bind", "rprivate", "nosuid", "noexec"},
			})
		}
	}
	return all
}
