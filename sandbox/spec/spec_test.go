package spec

import (
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/sandbox/config"
)

// TestBuildRefuses: each wrong field is Invalid and named.
func TestBuildRefuses(t *testing.T) {
	id := func(n int64) *int64 { return &n }
	tests := []struct {
		name   string
		change func(*Input)
		want   string // beginning of the error
	}{
		{"no command", func(in *Input) { in.Image = ImageConfig{} }, "config.command: no command specified"},
		{"empty program", func(in *Input) { in.Container.Command = []string{""} }, "config.command: "},
		{"env name", func(in *Input) { in.Container.Env = []config.EnvVar{{Name: "A=B"}} }, "config.envs[0].key: "},
		{"working dir", func(in *Input) { in.Container.WorkingDir = "srv" }, "config.working_dir: "},
		{"stop signal", func(in *Input) { in.Container.StopSignal = "SIGFOO" }, `config.stop_signal: unknown signal "SIGFOO"`},
		{"oom score", func(in *Input) { in.Container.Resources.OOMScoreAdj = 1001 }, "config.linux.resources.oom_score_adj: "},
		{"privileged", func(in *Input) { in.Container.Security.Privileged = true }, "config.linux.security_context.privileged: "},

		{"user and name", func(in *Input) { in.Container.Security.RunAsUser, in.Container.Security.RunAsUsername = id(1), "www" }, "config.linux.security_context.run_as_username: "},
		{"group alone", func(in *Input) { in.Container.Security.RunAsGroup = id(1) }, "config.linux.security_context.run_as_group: "},
		{"user negative", func(in *Input) { in.Container.Security.RunAsUser = id(-1) }, "config.linux.security_context.run_as_user: "},
		{"user too large", func(in *Input) { in.Container.Security.RunAsUser = id(1 << 31) }, "config.linux.security_context.run_as_user: "},
		{"name unknown", func(in *Input) { in.Container.Security.RunAsUsername = "nobody" }, `config.linux.security_context.run_as_username: no user "nobody"`},
		{"no passwd", func(in *Input) { in.Passwd = nil; in.Container.Security.RunAsUsername = "www" }, "config.linux.security_context.run_as_username: "},
		{"groups", func(in *Input) { in.Container.Security.SupplementalGroups = []int64{1, -2} }, "config.linux.security_context.supplemental_groups[1]: "},
		{"image user", func(in *Input) { in.Image.User = "nobody" }, `user of the image: no user "nobody"`},
		{"image group", func(in *Input) { in.Image.User = "www:nogroup" }, `group of the image: no group "nogroup"`},
		{"image number too large", func(in *Input) { in.Image.User = "99999999999999999999" }, "user of the image: "},

		{"capability", func(in *Input) { in.Container.Security.AddCaps = []string{"FLY"} }, "config.linux.security_context.capabilities.add_capabilities: "},
		{"dropped capability", func(in *Input) { in.Container.Security.DropCaps = []string{"FLY"} }, "config.linux.security_context.capabilities.drop_capabilities: "},
		{"ambient capability", func(in *Input) { in.Container.Security.AmbientCaps = []string{"FLY"} }, "config.linux.security_context.capabilities.add_ambient_capabilities: "},
		{"seccomp file", func(in *Input) {
			in.Container.Security.Seccomp = config.Profile{Kind: config.ProfileLocalhost, Ref: "/x"}
		}, `config.linux.security_context.seccomp.localhost_ref: no such file: "/x"`},
		{"seccomp empty", func(in *Input) {
			in.Container.Security.Seccomp, in.SeccompProfile = config.Profile{Kind: config.ProfileLocalhost}, []byte("{}")
		}, "config.linux.security_context.seccomp.localhost_ref: "},
		{"seccomp no JSON", func(in *Input) {
			in.Container.Security.Seccomp, in.SeccompProfile = config.Profile{Kind: config.ProfileLocalhost}, []byte("x")
		}, "config.linux.security_context.seccomp.localhost_ref: "},
		{"seccomp type", func(in *Input) { in.Container.Security.Seccomp.Kind = "x" }, "config.linux.security_context.seccomp.profile_type: "},
		{"apparmor absent", func(in *Input) {
			in.Container.Security.AppArmor = config.Profile{Kind: config.ProfileLocalhost, Ref: "p"}
		}, "config.linux.security_context.apparmor.localhost_ref: "},
		{"apparmor not loaded", func(in *Input) {
			in.Host.HasAppArmor = true
			in.Container.Security.AppArmor = config.Profile{Kind: config.ProfileLocalhost, Ref: "p"}
		}, "config.linux.security_context.apparmor.localhost_ref: "},
		{"pid mode", func(in *Input) { in.Container.Security.Namespaces.PID = "x" }, "config.linux.security_context.namespace_options.pid: "},

		{"mount target", func(in *Input) { mount(in, config.Mount{ContainerPath: "data", HostPath: "/v"}) }, "config.mounts[0].container_path: "},
		{"mount on root", func(in *Input) { mount(in, config.Mount{ContainerPath: "/a/..", HostPath: "/v"}) }, "config.mounts[0].container_path: "},
		{"mount source", func(in *Input) { mount(in, config.Mount{ContainerPath: "/data", HostPath: "v"}) }, "config.mounts[0].host_path: "},
		{"mount propagation", func(in *Input) { mount(in, config.Mount{ContainerPath: "/d", HostPath: "/v", Propagation: "x"}) }, "config.mounts[0].propagation: "},
		{"mount option", func(in *Input) {
			mount(in, config.Mount{ContainerPath: "/d", HostPath: "/v", Options: []string{"noexec", "rw"}})
		}, "config.mounts[0].mount_options[1]: "},
		{"rro not ro", func(in *Input) { mount(in, config.Mount{ContainerPath: "/d", HostPath: "/v", RecursiveReadonly: true}) }, "config.mounts[0].recursive_read_only: "},
		{"rro shared", func(in *Input) {
			mount(in, config.Mount{ContainerPath: "/d", HostPath: "/v", Readonly: true, RecursiveReadonly: true, Propagation: config.PropagationBidirectional})
		}, "config.mounts[0].recursive_read_only: "},

		{"cpu period", func(in *Input) { in.Container.Resources.CPUPeriod = 10 }, "config.linux.resources.cpu_period: "},
		{"cpu quota", func(in *Input) { in.Container.Resources.CPUQuota = 10 }, "config.linux.resources.cpu_quota: "},
		{"cpu shares", func(in *Input) { in.Container.Resources.CPUShares = -1 }, "config.linux.resources.cpu_shares: "},
		{"cpuset", func(in *Input) { in.Container.Resources.CpusetCPUs = "all" }, "config.linux.resources.cpuset_cpus: "},
		{"memory", func(in *Input) { in.Container.Resources.MemoryLimit = -2 }, "config.linux.resources.memory_limit_in_bytes: "},
		{"swap alone", func(in *Input) { in.Container.Resources.MemorySwap = 1 }, "config.linux.resources.memory_swap_limit_in_bytes: "},
		{"swap below memory", func(in *Input) { in.Container.Resources.MemoryLimit, in.Container.Resources.MemorySwap = 2<<30, 1<<30 }, "config.linux.resources.memory_swap_limit_in_bytes: "},
		{"swap impossible", func(in *Input) {
			in.Host.SwapAccounting = false
			in.Container.Resources.MemoryLimit, in.Container.Resources.MemorySwap = 1<<30, 2<<30
		}, "config.linux.resources.memory_swap_limit_in_bytes: "},
		{"huge page size", func(in *Input) { in.Container.Resources.HugepageMax = map[string]uint64{"3MB": 1} }, "config.linux.resources.hugepage_limits: "},
		{"unified on v1", func(in *Input) {
			in.Host.CgroupUnified = false
			in.Container.Resources.Unified = map[string]string{"memory.high": "1"}
		}, "config.linux.resources.unified: "},
		{"unified path", func(in *Input) { in.Container.Resources.Unified = map[string]string{"../memory.high": "1"} }, "config.linux.resources.unified: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := readInput(t, "testdata/kubelet.in.json")
			in.Container = config.Container{Name: "main"}
			tt.change(&in)
			_, err := Build(in)
			if !errkind.Is(err, errkind.Invalid) || !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("Build = %v (%v), want an Invalid one beginning with %q", err, errkind.Of(err), tt.want)
			}
		})
	}
}

func mount(in *Input, m config.Mount) { in.Container.Mounts = []config.Mount{m} }

func TestArgs(t *testing.T) {
	type list = []string
	tests := []struct {
		name                             string
		command, args, entrypoint, image list
		want                             list
	}{
		{"image's both", nil, nil, list{"e"}, list{"c"}, list{"e", "c"}},
		{"image's command only", nil, nil, nil, list{"c"}, list{"c"}},
		{"args replace the image's command", nil, list{"a"}, list{"e"}, list{"c"}, list{"e", "a"}},
		{"args without entrypoint", nil, list{"a"}, nil, list{"c"}, list{"a"}},
		{"command replaces both", list{"x"}, nil, list{"e"}, list{"c"}, list{"x"}},
		{"command and args", list{"x"}, list{"a", ""}, list{"e"}, list{"c"}, list{"x", "a", ""}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := readInput(t, "testdata/minimal.in.json")
			in.Container.Command, in.Container.Args = tt.command, tt.args
			in.Image.Entrypoint, in.Image.Cmd = tt.entrypoint, tt.image
			r, err := Build(in)
			if err != nil || !slices.Equal(r.Spec.Process.Args, tt.want) {
				t.Errorf("args = %v, %v, want %v", r.Spec, err, tt.want)
			}
		})
	}
}

func TestResolveUser(t *testing.T) {
	const passwd = "root:x:0:0:root:/root:/bin/sh\nwww:x:33:34:web:/var/www:\nodd:x:50:50::rel:\n\nbroken line\n"
	const group = "root:x:0:\nlogs:x:40:www\nssl:x:41:other,www\nadm:x:4:root\n"
	id := func(n int64) *int64 { return &n }
	tests := []struct {
		name  string
		sec   config.Security
		image string
		want  User
	}{
		{"nothing said", config.Security{}, "", User{0, 0, []int64{0, 4}, "/root", "root"}},
		{"image name", config.Security{}, "www", User{33, 34, []int64{34, 40, 41}, "/var/www", "www"}},
		{"image number", config.Security{}, "33", User{33, 34, []int64{34, 40, 41}, "/var/www", "www"}},
		{"image name and group", config.Security{}, "www:ssl", User{33, 41, []int64{41, 40}, "/var/www", "www"}},
		{"image numbers unknown", config.Security{}, "7:8", User{7, 8, []int64{8}, "/", ""}},
		{"image group only", config.Security{}, ":40", User{0, 40, []int64{40, 4}, "/root", "root"}},
		{"relative home", config.Security{}, "odd", User{50, 50, []int64{50}, "/", "odd"}},
		{"user over image", config.Security{RunAsUser: id(1000)}, "www:ssl", User{1000, 0, []int64{0}, "/", ""}},
		{"user zero over image", config.Security{RunAsUser: id(0)}, "www", User{0, 0, []int64{0, 4}, "/root", "root"}},
		{"user and group", config.Security{RunAsUser: id(33), RunAsGroup: id(5)}, "", User{33, 5, []int64{5, 40, 41}, "/var/www", "www"}},
		{"username", config.Security{RunAsUsername: "www", RunAsGroup: id(0)}, "root", User{33, 0, []int64{0, 40, 41}, "/var/www", "www"}},
		{"merge", config.Security{RunAsUser: id(33), SupplementalGroups: []int64{40, 9}}, "", User{33, 34, []int64{34, 40, 41, 9}, "/var/www", "www"}},
		{"strict", config.Security{RunAsUser: id(33), SupplementalGroups: []int64{9, 34}, GroupsPolicy: config.GroupsStrict}, "", User{33, 34, []int64{34, 9}, "/var/www", "www"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ResolveUser(tt.sec, tt.image, []byte(passwd), []byte(group))
			if err != nil {
				t.Fatal(err)
			}
			if got.UID != tt.want.UID || got.GID != tt.want.GID || got.Home != tt.want.Home || got.Name != tt.want.Name || !slices.Equal(got.Groups, tt.want.Groups) {
				t.Errorf("ResolveUser = %+v, want %+v", got, tt.want)
			}
		})
	}
}

// TestUserOutOfRange: 4294967296 is 0 in 32 bits.
func TestUserOutOfRange(t *testing.T) {
	const passwd = "big:x:4294967296:1::/:\nbiggroup:x:1:4294967296::/:\nneg:x:-1:1::/:\nok:x:7:7::/:\n"
	const group = "big:x:4294967296:ok\nfine:x:9:ok\n"
	for _, image := range []string{"big", "biggroup", "1", "neg", "ok:big"} {
		if got, err := ResolveUser(config.Security{}, image, []byte(passwd), []byte(group)); !errkind.Is(err, errkind.Invalid) {
			t.Errorf("ResolveUser(%q) = %+v, %v, want an Invalid error", image, got, err)
		}
	}
	if got, err := ResolveUser(config.Security{}, "ok", []byte(passwd), []byte(group)); err != nil || !slices.Equal(got.Groups, []int64{7, 9}) {
		t.Errorf("ResolveUser(ok) = %+v, %v, want groups 7 and 9", got, err)
	}
}

func TestStopSignal(t *testing.T) {
	tests := []struct {
		requested, image, want string
		n                      syscall.Signal
	}{
		{"", "", "SIGTERM", 15},
		{"", "SIGQUIT", "SIGQUIT", 3},
		{"", "3", "SIGQUIT", 3},
		{"", "nonsense", "SIGTERM", 15},
		{"SIGUSR1", "SIGQUIT", "SIGUSR1", 10},
		{"SIGRTMIN+3", "", "SIGRTMIN+3", 37},
		{"", "SIGRTMIN+20", "SIGRTMAX-10", 54},
		{"rtmax", "", "SIGRTMAX", 64},
		{"", "99", "SIGTERM", 15},
		{"", "0", "SIGTERM", 15},
		{"", "SIGRTMIN+200", "SIGTERM", 15},
		{"6", "", "SIGABRT", 6},
	}
	for _, tt := range tests {
		name, n, err := StopSignal(tt.requested, tt.image)
		if err != nil || name != tt.want || n != tt.n {
			t.Errorf("StopSignal(%q, %q) = %s, %d, %v, want %s, %d", tt.requested, tt.image, name, n, err, tt.want, tt.n)
		}
	}
}

// TestSeccompFollowsCapabilities: the default filter lets mount through only
// for a container that may mount anyway.
func TestSeccompFollowsCapabilities(t *testing.T) {
	for _, add := range []string{"", "SYS_ADMIN"} {
		in := readInput(t, "testdata/kubelet.in.json")
		if add != "" {
			in.Container.Security.AddCaps = []string{add}
		}
		r, err := Build(in)
		if err != nil {
			t.Fatal(err)
		}
		allowed := false
		for _, s := range r.Spec.Linux.Seccomp.Syscalls {
			allowed = allowed || slices.Contains(s.Names, "mount")
		}
		if want := add != ""; allowed != want {
			t.Errorf("with %q added: mount allowed = %v, want %v", add, allowed, want)
		}
	}
}

func TestCapabilities(t *testing.T) {
	type list = []string
	tests := []struct {
		name               string
		add, drop, ambient list
		want, not          list
		wantNumber         int
		wantAmbient        list
	}{
		{name: "default", want: list{"CAP_CHOWN"}, not: list{"CAP_SYS_ADMIN"}, wantNumber: 14},
		{name: "drop ALL, add one", add: list{"net_admin"}, drop: list{"ALL"}, want: list{"CAP_NET_ADMIN"}, wantNumber: 1},
		{name: "add ALL, drop one", add: list{"ALL"}, drop: list{"SYS_ADMIN"}, want: list{"CAP_NET_ADMIN"}, not: list{"CAP_SYS_ADMIN"}, wantNumber: 15},
		{name: "add twice", add: list{"CHOWN", "CAP_CHOWN"}, wantNumber: 14},
		{name: "not in the bounding set", add: list{"SYS_BOOT"}, not: list{"CAP_SYS_BOOT"}, wantNumber: 14},
		{name: "drop and add the same", add: list{"SYS_ADMIN"}, drop: list{"SYS_ADMIN"}, not: list{"CAP_SYS_ADMIN"}, wantNumber: 14},
		{name: "ambient only", ambient: list{"NET_ADMIN"}, want: list{"CAP_NET_ADMIN"}, wantNumber: 15, wantAmbient: list{"CAP_NET_ADMIN"}},
		{name: "ambient of the defaults", ambient: list{"KILL"}, wantNumber: 14, wantAmbient: list{"CAP_KILL"}},
		{name: "drop ALL, ambient one", drop: list{"ALL"}, ambient: list{"CAP_KILL"}, want: list{"CAP_KILL"}, wantNumber: 1, wantAmbient: list{"CAP_KILL"}},
		{name: "ambient and dropped", drop: list{"KILL"}, ambient: list{"KILL"}, not: list{"CAP_KILL"}, wantNumber: 13},
		{name: "ambient and added", add: list{"NET_ADMIN"}, ambient: list{"NET_ADMIN"}, wantNumber: 15, wantAmbient: list{"CAP_NET_ADMIN"}},
		{name: "ambient not in the bounding set", ambient: list{"SYS_BOOT"}, wantNumber: 14},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := readInput(t, "testdata/minimal.in.json")
			sec := &in.Container.Security
			sec.AddCaps, sec.DropCaps, sec.AmbientCaps = tt.add, tt.drop, tt.ambient
			r, err := Build(in)
			if err != nil {
				t.Fatal(err)
			}
			got := r.Spec.Process.Capabilities
			for _, c := range tt.want {
				if !slices.Contains(got.Effective, c) {
					t.Errorf("%v lacks %s", got.Effective, c)
				}
			}
			for _, c := range tt.not {
				if slices.Contains(got.Bounding, c) {
					t.Errorf("%v holds %s", got.Bounding, c)
				}
			}
			if len(got.Permitted) != tt.wantNumber || !slices.Equal(got.Inheritable, tt.wantAmbient) || !slices.Equal(got.Ambient, tt.wantAmbient) {
				t.Errorf("%d permitted, inheritable %v, ambient %v, want %d and %v", len(got.Permitted), got.Inheritable, got.Ambient, tt.wantNumber, tt.wantAmbient)
			}
		})
	}
}
