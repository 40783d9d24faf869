//lint:file-ignore SA1019 the replaced profile fields are tested too

package cri

import (
	"math"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/internal/errkind"
)

func goodSandbox() *v1.RunPodSandboxRequest {
	return &v1.RunPodSandboxRequest{Config: &v1.PodSandboxConfig{
		Metadata:     &v1.PodSandboxMetadata{Name: "n", Uid: "u", Namespace: "ns"},
		DnsConfig:    &v1.DNSConfig{},
		PortMappings: []*v1.PortMapping{{ContainerPort: 80}},
		Linux: &v1.LinuxPodSandboxConfig{
			Overhead:  &v1.LinuxContainerResources{HugepageLimits: []*v1.HugepageLimit{{PageSize: "2MB"}}},
			Resources: &v1.LinuxContainerResources{HugepageLimits: []*v1.HugepageLimit{{PageSize: "2MB"}}},
			SecurityContext: &v1.LinuxSandboxSecurityContext{
				NamespaceOptions: &v1.NamespaceOption{UsernsOptions: &v1.UserNamespace{Mode: v1.NamespaceMode_NODE}},
			},
		},
	}}
}

// goodContainer has nothing in it that some test below does not set.
func goodContainer() *v1.CreateContainerRequest {
	return &v1.CreateContainerRequest{PodSandboxId: "p", Config: &v1.ContainerConfig{
		Metadata: &v1.ContainerMetadata{Name: "c"},
		Image:    &v1.ImageSpec{Image: "busybox"},
		Mounts: []*v1.Mount{{
			ContainerPath: "/c", HostPath: "/h",
			UidMappings: []*v1.IDMapping{{Length: 1}}, GidMappings: []*v1.IDMapping{{Length: 1}},
		}},
		Devices: []*v1.Device{{ContainerPath: "/dev/c", HostPath: "/dev/h", Permissions: "r"}},
		Envs:    []*v1.KeyValue{{Key: "K", Value: []byte("v")}},
		Linux: &v1.LinuxContainerConfig{
			Resources: &v1.LinuxContainerResources{HugepageLimits: []*v1.HugepageLimit{{PageSize: "2MB"}}},
			SecurityContext: &v1.LinuxContainerSecurityContext{
				Capabilities:     &v1.Capability{},
				NamespaceOptions: &v1.NamespaceOption{UsernsOptions: &v1.UserNamespace{Mode: v1.NamespaceMode_NODE}},
			},
		},
	}}
}

const (
	scField  = "config.linux.security_context"
	resField = "config.linux.resources"
)

// TestBadSandbox: every malformed field is Invalid, and is named.
func TestBadSandbox(t *testing.T) {
	type (
		req = *v1.RunPodSandboxRequest
		sc  = v1.LinuxSandboxSecurityContext
	)
	good := []*v1.IDMapping{{HostId: 1 << 16, Length: 1 << 16}}
	userns := func(uids, gids []*v1.IDMapping) func(req) {
		return func(r req) {
			r.Config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &v1.UserNamespace{Mode: v1.NamespaceMode_POD, Uids: uids, Gids: gids}
		}
	}
	ports := func(p *v1.PortMapping) func(req) {
		return func(r req) { r.Config.PortMappings = []*v1.PortMapping{p} }
	}
	context := func(f func(*sc)) func(req) { return func(r req) { f(r.Config.Linux.SecurityContext) } }
	sysctl := func(k, v string) func(req) {
		return func(r req) { r.Config.Linux.Sysctls = map[string]string{k: v} }
	}
	const nsField = scField + ".namespace_options"
	for _, test := range []struct {
		field string
		spoil func(req)
	}{
		{"runtime_handler", func(r req) { r.RuntimeHandler = "kata" }},
		{"config", func(r req) { r.Config = nil }},
		{"config.metadata", func(r req) { r.Config.Metadata = nil }},
		{"config.metadata.name", func(r req) { r.Config.Metadata.Name = "" }},
		{"config.metadata.name", func(r req) { r.Config.Metadata.Name = "a\nb" }},
		{"config.metadata.uid", func(r req) { r.Config.Metadata.Uid = "" }},
		{"config.metadata.namespace", func(r req) { r.Config.Metadata.Namespace = "" }},
		{"config.hostname", func(r req) { r.Config.Hostname = strings.Repeat("h", 65) }},
		{"config.hostname", func(r req) { r.Config.Hostname = "a\n127.0.0.1 b" }},
		{"config.hostname", func(r req) { r.Config.Hostname = "a b" }},
		{"config.log_directory", func(r req) { r.Config.LogDirectory = "var/log" }},
		{"config.log_directory", func(r req) { r.Config.LogDirectory = "/var\x00" }},
		{"config.dns_config.servers[0]", func(r req) { r.Config.DnsConfig.Servers = []string{"1.1.1.1\noptions x"} }},
		{"config.dns_config.searches[1]", func(r req) { r.Config.DnsConfig.Searches = []string{"a", ""} }},
		{"config.dns_config.options[0]", func(r req) { r.Config.DnsConfig.Options = []string{"ndots: 5"} }},
		{"config.port_mappings[0].container_port", ports(&v1.PortMapping{})},
		{"config.port_mappings[0].container_port", ports(&v1.PortMapping{ContainerPort: -1})},
		{"config.port_mappings[0].container_port", ports(&v1.PortMapping{ContainerPort: 65536})},
		{"config.port_mappings[0].host_port", ports(&v1.PortMapping{ContainerPort: 1, HostPort: -1})},
		{"config.port_mappings[0].host_port", ports(&v1.PortMapping{ContainerPort: 1, HostPort: 1 << 20})},
		{"config.port_mappings[0].host_ip", ports(&v1.PortMapping{ContainerPort: 1, HostIp: "localhost"})},
		{"config.port_mappings[0].protocol", ports(&v1.PortMapping{ContainerPort: 1, Protocol: 3})},
		{"config.linux.cgroup_parent", func(r req) { r.Config.Linux.CgroupParent = "kubepods.slice" }},
		{"config.linux.cgroup_parent", func(r req) { r.Config.Linux.CgroupParent = "/a/../../b" }},
		{"config.linux.cgroup_parent", func(r req) { r.Config.Linux.CgroupParent = "/a b" }},
		{`config.linux.sysctls["net.."]`, sysctl("net..", "1")},
		{`config.linux.sysctls["net/../kernel/core_pattern"]`, sysctl("net/../kernel/core_pattern", "|/bin/x")},
		{`config.linux.sysctls[""]`, sysctl("", "1")},
		{`config.linux.sysctls["net.core.somaxconn"]`, sysctl("net.core.somaxconn", "1\n2")},
		{"config.linux.overhead.cpu_period", func(r req) { r.Config.Linux.Overhead.CpuPeriod = -1 }},
		{"config.linux.resources.memory_limit_in_bytes", func(r req) { r.Config.Linux.Resources.MemoryLimitInBytes = -2 }},
		{nsField + ".network", context(func(s *sc) { s.NamespaceOptions.Network = v1.NamespaceMode_CONTAINER })},
		{nsField + ".ipc", context(func(s *sc) { s.NamespaceOptions.Ipc = v1.NamespaceMode_CONTAINER })},
		{nsField + ".pid", context(func(s *sc) { s.NamespaceOptions.Pid, s.NamespaceOptions.TargetId = v1.NamespaceMode_TARGET, "x" })},
		{nsField + ".pid", context(func(s *sc) { s.NamespaceOptions.Pid = 9 })},
		{nsField + ".target_id", context(func(s *sc) { s.NamespaceOptions.TargetId = "x" })},
		{nsField + ".userns_options.uids", context(func(s *sc) { s.NamespaceOptions.UsernsOptions.Mode = v1.NamespaceMode_POD })},
		{nsField + ".userns_options.mode", context(func(s *sc) { s.NamespaceOptions.UsernsOptions.Mode = v1.NamespaceMode_CONTAINER })},
		{nsField + ".userns_options.mode", context(func(s *sc) { s.NamespaceOptions.UsernsOptions.Mode = v1.NamespaceMode_TARGET })},
		{nsField + ".userns_options.mode", context(func(s *sc) { s.NamespaceOptions.UsernsOptions.Mode = 9 })},
		{nsField + ".userns_options.uids", context(func(s *sc) { s.NamespaceOptions.UsernsOptions.Uids = []*v1.IDMapping{{Length: 1}} })},
		{nsField + ".userns_options.uids", userns(nil, good)},
		{nsField + ".userns_options.gids", userns(good, []*v1.IDMapping{})},
		{nsField + ".userns_options.uids", userns(append(slices.Clone(good), good...), good)},
		{nsField + ".userns_options.gids[0].container_id", userns(good, []*v1.IDMapping{{ContainerId: 1, HostId: 1, Length: 1}})},
		{nsField + ".userns_options.uids[0].length", userns([]*v1.IDMapping{{HostId: 1}}, good)},
		{nsField + ".userns_options.uids[0].length", userns([]*v1.IDMapping{{HostId: 1 << 31, Length: 1 << 31}}, good)},
		{nsField + ".userns_options.gids[0].length", userns(good, []*v1.IDMapping{{HostId: math.MaxUint32, Length: math.MaxUint32}})},
		{nsField + ".userns_options.gids", context(func(s *sc) { s.NamespaceOptions.UsernsOptions.Gids = []*v1.IDMapping{{Length: 1}} })},
		{scField + ".run_as_user", context(func(s *sc) { s.RunAsUser = &v1.Int64Value{Value: -1} })},
		{scField + ".run_as_group", context(func(s *sc) { s.RunAsGroup = &v1.Int64Value{Value: 1} })},
		{scField + ".supplemental_groups[0]", context(func(s *sc) { s.SupplementalGroups = []int64{1 << 32} })},
		{scField + ".supplemental_groups_policy", context(func(s *sc) { s.SupplementalGroupsPolicy = 2 })},
		{scField + ".seccomp.profile_type", context(func(s *sc) { s.Seccomp = &v1.SecurityProfile{ProfileType: 3} })},
		{scField + ".apparmor.localhost_ref", context(func(s *sc) { s.Apparmor = &v1.SecurityProfile{ProfileType: v1.SecurityProfile_Localhost} })},
		{scField + ".seccomp_profile_path", context(func(s *sc) { s.SeccompProfilePath = "bogus" })},
	} {
		t.Run(test.field, func(t *testing.T) {
			r := goodSandbox()
			if _, err := newDecoder().sandbox(r); err != nil {
				t.Fatalf("decoding the good request = %v, want no error", err)
			}
			test.spoil(r)
			_, err := newDecoder().sandbox(r)
			wantInvalid(t, r, err, test.field)
		})
	}
}

// TestBadContainer: every malformed field is Invalid, and is named.
func TestBadContainer(t *testing.T) {
	type (
		req = *v1.CreateContainerRequest
		sc  = v1.LinuxContainerSecurityContext
		res = v1.LinuxContainerResources
	)
	context := func(f func(*sc)) func(req) { return func(r req) { f(r.Config.Linux.SecurityContext) } }
	limits := func(f func(*res)) func(req) { return func(r req) { f(r.Config.Linux.Resources) } }
	mount := func(f func(*v1.Mount)) func(req) { return func(r req) { f(r.Config.Mounts[0]) } }
	volume := func(f func(*v1.Mount)) func(req) {
		return mount(func(m *v1.Mount) {
			m.HostPath, m.Readonly, m.Propagation, m.Image = "", true, 0, &v1.ImageSpec{Image: "busybox"}
			f(m)
		})
	}
	device := func(f func(*v1.Device)) func(req) { return func(r req) { f(r.Config.Devices[0]) } }
	env := func(k, v string) func(req) {
		return func(r req) { r.Config.Envs[0] = &v1.KeyValue{Key: k, Value: []byte(v)} }
	}
	const nsField = scField + ".namespace_options"
	localhost := func(ref string) *v1.SecurityProfile {
		return &v1.SecurityProfile{ProfileType: v1.SecurityProfile_Localhost, LocalhostRef: ref}
	}
	for _, test := range []struct {
		field string
		spoil func(req)
	}{
		{"pod_sandbox_id", func(r req) { r.PodSandboxId = "" }},
		{"config", func(r req) { r.Config = nil }},
		{"config.metadata", func(r req) { r.Config.Metadata = nil }},
		{"config.metadata.name", func(r req) { r.Config.Metadata.Name = "" }},
		{"config.image", func(r req) { r.Config.Image = nil }},
		{"config.image.image", func(r req) { r.Config.Image.Image = "" }},
		{"config.image.image", func(r req) { r.Config.Image.Image = "a b" }},
		{"config.image.user_specified_image", func(r req) { r.Config.Image.UserSpecifiedImage = "a\nb" }},
		{"config.image.runtime_handler", func(r req) { r.Config.Image.RuntimeHandler = "kata" }},
		{"config.command[0]", func(r req) { r.Config.Command = []string{"a\x00b"} }},
		{"config.args[1]", func(r req) { r.Config.Args = []string{"a", "\x00"} }},
		{"config.working_dir", func(r req) { r.Config.WorkingDir = "srv" }},
		{"config.envs[0].key", env("", "v")},
		{"config.envs[0].key", env("A=B", "v")},
		{"config.envs[0].key", env("A\x00", "v")},
		{"config.envs[0].value", env("A", "\x00")},
		{"config.envs[0].value", env("A", "\xff")},
		{"config.mounts[0].container_path", mount(func(m *v1.Mount) { m.ContainerPath = "" })},
		{"config.mounts[0].container_path", mount(func(m *v1.Mount) { m.ContainerPath = "c" })},
		{"config.mounts[0].container_path", mount(func(m *v1.Mount) { m.ContainerPath = "/a/.." })},
		{"config.mounts[0].host_path", mount(func(m *v1.Mount) { m.HostPath = "" })},
		{"config.mounts[0].host_path", mount(func(m *v1.Mount) { m.HostPath = "h" })},
		{"config.mounts[0].host_path", mount(func(m *v1.Mount) { m.Image = &v1.ImageSpec{Image: "busybox"} })},
		{"config.mounts[0].readonly", volume(func(m *v1.Mount) { m.Readonly = false })},
		{"config.mounts[0].propagation", volume(func(m *v1.Mount) { m.Propagation = 1 })},
		{"config.mounts[0].image.image", volume(func(m *v1.Mount) { m.Image.Image = "a b" })},
		{"config.mounts[0].image.runtime_handler", volume(func(m *v1.Mount) { m.Image.RuntimeHandler = "x" })},
		{"config.mounts[0].image_sub_path", volume(func(m *v1.Mount) { m.ImageSubPath = "a/../../b" })},
		{"config.mounts[0].image_sub_path", volume(func(m *v1.Mount) { m.ImageSubPath = "/../b" })},
		{"config.mounts[0].image_sub_path", volume(func(m *v1.Mount) { m.ImageSubPath = "a\x00" })},
		{"config.mounts[0].propagation", mount(func(m *v1.Mount) { m.Propagation = 3 })},
		{"config.mounts[0].recursive_read_only", mount(func(m *v1.Mount) { m.RecursiveReadOnly = true })},
		{"config.mounts[0].recursive_read_only", mount(func(m *v1.Mount) {
			m.Readonly, m.RecursiveReadOnly, m.Propagation = true, true, v1.MountPropagation_PROPAGATION_BIDIRECTIONAL
		})},
		{"config.mounts[0].gidMappings", mount(func(m *v1.Mount) { m.GidMappings = nil })},
		{"config.mounts[0].uidMappings", mount(func(m *v1.Mount) { m.UidMappings = nil })},
		{"config.mounts[0].uidMappings[0].container_id", mount(func(m *v1.Mount) { m.UidMappings[0].ContainerId = 1 })},
		{"config.devices[0].container_path", device(func(d *v1.Device) { d.ContainerPath = "dev/c" })},
		{"config.devices[0].host_path", device(func(d *v1.Device) { d.HostPath = "" })},
		{"config.devices[0].permissions", device(func(d *v1.Device) { d.Permissions = "" })},
		{"config.devices[0].permissions", device(func(d *v1.Device) { d.Permissions = "rwx" })},
		{"config.log_path", func(r req) { r.Config.LogPath = "/var/log/x" }},
		{"config.log_path", func(r req) { r.Config.LogPath = "../x" }},
		{"config.log_path", func(r req) { r.Config.LogPath = "a/../../x" }},
		{"config.log_path", func(r req) { r.Config.LogPath = "." }},
		{"config.log_path", func(r req) { r.Config.LogPath = "a/" }},
		{"config.log_path", func(r req) { r.Config.LogPath = "a\nb" }},
		{"config.stop_signal", func(r req) { r.Config.StopSignal = 66 }},
		{"config.stop_signal", func(r req) { r.Config.StopSignal = -1 }},
		{"config.CDI_devices[0].name", func(r req) { r.Config.CDIDevices = []*v1.CDIDevice{{Name: "gpu0"}} }},
		{resField + ".cpu_period", limits(func(l *res) { l.CpuPeriod = -1 })},
		{resField + ".cpu_shares", limits(func(l *res) { l.CpuShares = -1 })},
		{resField + ".memory_limit_in_bytes", limits(func(l *res) { l.MemoryLimitInBytes = -2 })},
		{resField + ".memory_swap_limit_in_bytes", limits(func(l *res) { l.MemorySwapLimitInBytes = -2 })},
		{resField + ".memory_swap_limit_in_bytes", limits(func(l *res) { l.MemoryLimitInBytes, l.MemorySwapLimitInBytes = 10, 9 })},
		{resField + ".oom_score_adj", limits(func(l *res) { l.OomScoreAdj = 1001 })},
		{resField + ".cpuset_cpus", limits(func(l *res) { l.CpusetCpus = "0-" })},
		{resField + ".cpuset_mems", limits(func(l *res) { l.CpusetMems = "a" })},
		{resField + ".hugepage_limits[0].page_size", limits(func(l *res) { l.HugepageLimits = []*v1.HugepageLimit{{PageSize: "2"}} })},
		{resField + ".hugepage_limits[1].page_size", limits(func(l *res) { l.HugepageLimits = []*v1.HugepageLimit{{PageSize: "2MB"}, {PageSize: "2MB"}} })},
		{resField + `.unified["../memory.max"]`, limits(func(l *res) { l.Unified = map[string]string{"../memory.max": "1"} })},
		{resField + `.unified["cgroup.procs"]`, limits(func(l *res) { l.Unified = map[string]string{"cgroup.procs": "1"} })},
		{scField + ".run_as_user", context(func(s *sc) { s.RunAsUser = &v1.Int64Value{Value: 1<<32 - 1} })},
		{scField + ".run_as_group", context(func(s *sc) { s.RunAsGroup = &v1.Int64Value{Value: 0} })},
		{scField + ".run_as_group", context(func(s *sc) { s.RunAsUser, s.RunAsGroup = &v1.Int64Value{}, &v1.Int64Value{Value: -5} })},
		{scField + ".run_as_username", context(func(s *sc) { s.RunAsUser, s.RunAsUsername = &v1.Int64Value{}, "u" })},
		{scField + ".run_as_username", context(func(s *sc) { s.RunAsUsername = "u:g" })},
		{scField + ".supplemental_groups[1]", context(func(s *sc) { s.SupplementalGroups = []int64{0, -1} })},
		{scField + ".supplemental_groups_policy", context(func(s *sc) { s.SupplementalGroupsPolicy = -1 })},
		{scField + ".masked_paths[0]", context(func(s *sc) { s.MaskedPaths = []string{"proc/kcore"} })},
		{scField + ".readonly_paths[0]", context(func(s *sc) { s.ReadonlyPaths = []string{""} })},
		{scField + ".seccomp.localhost_ref", context(func(s *sc) { s.Seccomp = localhost("profile.json") })},
		{scField + ".seccomp.localhost_ref", context(func(s *sc) { s.Seccomp = localhost("localhost/profile.json") })},
		{scField + ".seccomp.localhost_ref", context(func(s *sc) { s.Seccomp = &v1.SecurityProfile{LocalhostRef: "/x"} })},
		{scField + ".seccomp.profile_type", context(func(s *sc) { s.Seccomp = &v1.SecurityProfile{ProfileType: 7} })},
		{scField + ".seccomp_profile_path", context(func(s *sc) { s.SeccompProfilePath = "localhost/" })},
		{scField + ".seccomp_profile_path.localhost_ref", context(func(s *sc) { s.SeccompProfilePath = "localhost/relative" })},
		{scField + ".apparmor.localhost_ref", context(func(s *sc) { s.Apparmor = localhost("") })},
		{scField + ".apparmor_profile", context(func(s *sc) { s.ApparmorProfile = "enforce" })},
		{nsField + ".network", context(func(s *sc) { s.NamespaceOptions.Network = v1.NamespaceMode_TARGET })},
		{nsField + ".ipc", context(func(s *sc) { s.NamespaceOptions.Ipc = v1.NamespaceMode_TARGET })},
		{nsField + ".pid", context(func(s *sc) { s.NamespaceOptions.Pid = 4 })},
		{nsField + ".target_id", context(func(s *sc) { s.NamespaceOptions.Pid = v1.NamespaceMode_TARGET })},
		{nsField + ".userns_options.uids", context(func(s *sc) { s.NamespaceOptions.UsernsOptions.Mode = v1.NamespaceMode_POD })},
	} {
		t.Run(test.field, func(t *testing.T) {
			r := goodContainer()
			if _, err := newDecoder().container(r); err != nil {
				t.Fatalf("decoding the good request = %v, want no error", err)
			}
			test.spoil(r)
			_, err := newDecoder().container(r)
			wantInvalid(t, r, err, test.field)
		})
	}
}

func wantInvalid(t *testing.T, r proto.Message, err error, field string) {
	t.Helper()
	if !errkind.Is(err, errkind.Invalid) || !strings.HasPrefix(err.Error(), field+": ") {
		t.Errorf("decoding {%v} = %v, want kind invalid and the field %s", r, err, field)
	}
}

func TestBadCgroupParentOfSystemd(t *testing.T) {
	for parent, good := range map[string]bool{
		"/kubepods.slice/kubepods-x.slice": true, "crid.slice": true, "": true, "/kubepods/pod1": false, "/a.slice/b": false,
	} {
		d := decoder{systemd: true}
		d.cgroupParent(parent)
		if err := d.err(); (err == nil) != good {
			t.Errorf("cgroupParent(%q) with systemd = %v, want good: %v", parent, err, good)
		}
	}
}

// Everything wrong is said at once, up to a bound.
func TestAllProblemsAreNamed(t *testing.T) {
	_, err := newDecoder().container(&v1.CreateContainerRequest{Config: &v1.ContainerConfig{LogPath: "/x"}})
	for _, field := range []string{"pod_sandbox_id: ", "config.metadata: ", "config.image: ", "config.log_path: "} {
		if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("decoding = %v, want %s named", err, field)
		}
	}
	r := goodContainer()
	r.Config.Command = make([]string, 100)
	for i := range r.Config.Command {
		r.Config.Command[i] = "\x00"
	}
	if _, err := newDecoder().container(r); err == nil || !strings.HasSuffix(err.Error(), "and 92 more") {
		t.Errorf("decoding 100 bad arguments = %v, want 8 of them and the number of the others", err)
	}
}

// What clients look for at the start of an error is there only if it is the cause.
func TestNoRecursiveReadonlyMounts(t *testing.T) {
	r := goodContainer()
	m := r.Config.Mounts[0]
	m.Readonly, m.RecursiveReadOnly = true, true
	_, err := (&decoder{}).container(r)
	if !errkind.Is(err, errkind.Invalid) || !strings.HasPrefix(err.Error(), "RROUnsupported: config.mounts[0].recursive_read_only: ") {
		t.Errorf("decoding for an old kernel = %v, want RROUnsupported first", err)
	}
	m.Readonly = false
	_, err = (&decoder{}).container(r)
	wantInvalid(t, r, err, "config.mounts[0].recursive_read_only")
}

func TestSELinuxOptions(t *testing.T) {
	r := goodContainer()
	r.Config.Linux.SecurityContext.SelinuxOptions = &v1.SELinuxOption{Level: "s0"}
	if _, err := newDecoder().container(r); err != nil {
		t.Errorf("decoding for a node without SELinux = %v, want no error", err)
	}
	_, err := (&decoder{node: Node{SELinux: true}}).container(r)
	wantInvalid(t, r, err, scField+".selinux_options")
}
