package spec

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cridproject/crid/sandbox/config"
)

// mountOptions are those that a request may add to a bind mount. Read-only,
// recursion and propagation have fields of their own.
var mountOptions = [...]string{
	"exec", "noexec", "dev", "nodev", "suid", "nosuid", "atime", "noatime", "diratime", "nodiratime",
	"relatime", "norelatime", "strictatime", "nostrictatime", "symfollow", "nosymfollow",
}

// optionFields are the fields by which to ask for what is no option here.
var optionFields = map[string]string{
	"ro": "readonly", "rw": "readonly", "rro": "recursive_read_only",
	"private": "propagation", "rprivate": "propagation", "slave": "propagation", "rslave": "propagation",
	"shared": "propagation", "rshared": "propagation",
}

// mounts: the usual file systems, the sandbox's own files, the request's
// volumes. A volume replaces a default at the same path, and one at /dev or
// /sys all defaults below it. Parents come before what is mounted in them.
func mounts(b *builder) error {
	volumes, err := b.volumes()
	if err != nil {
		return err
	}
	var all []specs.Mount
	for _, m := range slices.Concat(b.fileSystems(), b.sandboxFiles(), b.boundDevices()) {
		if !replaced(m.Destination, volumes) {
			all = append(all, m)
		}
	}
	all = append(all, volumes...)
	slices.SortStableFunc(all, func(x, y specs.Mount) int { return cmp.Compare(depth(x.Destination), depth(y.Destination)) })
	b.Spec.Mounts = all
	return nil
}

// fileSystems are those that every container has.
func (b *builder) fileSystems() []specs.Mount {
	sys := []string{"nosuid", "noexec", "nodev", "ro"}
	cgroup := []string{"nosuid", "noexec", "nodev", "relatime", "ro"}
	if b.privileged() {
		sys[len(sys)-1], cgroup[len(cgroup)-1] = "rw", "rw"
	}
	all := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{
			Destination: "/dev/pts", Type: "devpts", Source: "devpts",
			Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"},
		},
		// The IPC namespace decides whose queues are seen.
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: sys},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: cgroup},
	}
	if shm := b.shm(); shm != "" {
		all = append(all, specs.Mount{
			Destination: "/dev/shm", Type: "bind", Source: shm, Options: []string{"rbind", "rprivate", "rw", "nosuid", "noexec", "nodev"},
		})
	}
	b.userNamespaceMounts(all)
	return all
}

// shm is the sandbox's, or the node's when the IPC namespace is the node's.
func (b *builder) shm() string {
	if b.Files.Shm == "" && b.Sandbox.Namespaces.IPC == config.NamespaceNode {
		return "/dev/shm"
	}
	return b.Files.Shm
}

// sandboxFiles are bound over the image's, read-only where the root file
// system is.
func (b *builder) sandboxFiles() []specs.Mount {
	access := "rw"
	if b.Container.Security.ReadonlyRootfs || b.Sandbox.ReadonlyRootfs {
		access = "ro"
	}
	var all []specs.Mount
	for _, f := range [...]struct{ at, from string }{
		{"/etc/hostname", b.Files.Hostname},
		{"/etc/hosts", b.Files.Hosts},
		{"/etc/resolv.conf", b.Files.ResolvConf},
	} {
		if f.from != "" {
			all = append(all, specs.Mount{
				Destination: f.at, Type: "bind", Source: f.from,
				Options: []string{"rbind", "rprivate", access, "nosuid", "noexec", "nodev"},
			})
		}
	}
	return all
}

// volumes are the request's mounts. They may need the root file system to take
// part in propagation.
func (b *builder) volumes() ([]specs.Mount, error) {
	var all []specs.Mount
	for i, m := range b.Container.Mounts {
		out, err := volume(i, m)
		if err == nil {
			err = b.idMap(i, m, &out)
		}
		if err != nil {
			return nil, err
		}
		switch m.Propagation {
		case config.PropagationBidirectional:
			b.Spec.Linux.RootfsPropagation = "rshared"
		case config.PropagationHostToContainer:
			if b.Spec.Linux.RootfsPropagation == "" {
				b.Spec.Linux.RootfsPropagation = "rslave"
			}
		}
		// Of two at one place the later counts, as with other runtimes: it would
		// hide the other anyway.
		all = slices.DeleteFunc(all, func(earlier specs.Mount) bool { return earlier.Destination == out.Destination })
		all = append(all, out)
	}
	return all, nil
}

func volume(i int, m config.Mount) (specs.Mount, error) {
	field := func(name string) string { return indexed("config.mounts", i, name) }
	dest := path.Clean(m.ContainerPath)
	switch {
	case !path.IsAbs(m.ContainerPath):
		return specs.Mount{}, invalid(field("container_path"), "%q is not an absolute path", m.ContainerPath)
	case dest == "/":
		return specs.Mount{}, invalid(field("container_path"), "a mount cannot replace the root file system")
	case m.Image == nil && !path.IsAbs(string(m.HostPath)):
		return specs.Mount{}, invalid(field("host_path"), "%q is not an absolute path", m.HostPath)
	case m.Image != nil && !m.Readonly:
		return specs.Mount{}, invalid(field("readonly"), "must be true for an image")
	}
	propagation, ok := map[config.Propagation]string{
		"": "rprivate", config.PropagationPrivate: "rprivate",
		config.PropagationHostToContainer: "rslave", config.PropagationBidirectional: "rshared",
	}[m.Propagation]
	if !ok {
		return specs.Mount{}, invalid(field("propagation"), "unknown propagation %q", m.Propagation)
	}
	access := "rw"
	switch {
	case m.RecursiveReadonly && !m.Readonly:
		return specs.Mount{}, invalid(field("recursive_read_only"), "needs readonly to be true")
	case m.RecursiveReadonly && propagation != "rprivate":
		return specs.Mount{}, invalid(field("recursive_read_only"), "needs propagation PROPAGATION_PRIVATE")
	case m.RecursiveReadonly:
		access = "rro"
	case m.Readonly:
		access = "ro"
	}
	options := []string{"rbind", propagation, access}
	source := string(m.HostPath)
	if m.Image != nil {
		// Programs of an image may run, but no image is trusted with more.
		options = append(options, "nosuid", "nodev")
		source = ImageSource(i)
	}
	for j, o := range m.Options {
		if f := optionFields[o]; f != "" {
			return specs.Mount{}, invalid(fmt.Sprintf("%s[%d]", field("mount_options"), j), "%q is said by the field %s", o, f)
		}
		if !slices.Contains(mountOptions[:], o) {
			return specs.Mount{}, invalid(fmt.Sprintf("%s[%d]", field("mount_options"), j), "unknown mount option %q", o)
		}
		options = append(options, o)
	}
	return specs.Mount{Destination: dest, Type: "bind", Source: source, Options: options}, nil
}

// ImageSource stands for the source of the mount of an image, the i-th of the
// container's mounts. Only the monitor, which mounts it, knows where it is.
func ImageSource(i int) string { return fmt.Sprintf("image:%d", i) }

// replaced reports whether a default mount makes way for a volume.
func replaced(dest string, volumes []specs.Mount) bool {
	for _, v := range volumes {
		if v.Destination == dest {
			return true
		}
		whole := v.Destination == "/dev" || v.Destination == "/sys"
		if whole && strings.HasPrefix(dest, v.Destination+"/") {
			return true
		}
	}
	return false
}

func depth(p string) int { return strings.Count(p, "/") }
