package e2e

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// procStatus is /proc/PID/status as the container's processes see it.
func (n *Node) procStatus(id, pid string) map[string]string {
	n.T.Helper()
	fields := map[string]string{}
	for line := range strings.Lines(n.Exec(id, "cat", "/proc/"+pid+"/status")) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		fields[name] = strings.Join(strings.Fields(value), " ")
	}
	return fields
}

// identity is what of /proc/PID/status says who a process is and what it may do.
var identity = []string{"Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"}

// wantIdentity compares the container's first process with want, and what an exec
// gets with the first process.
func (n *Node) wantIdentity(t *testing.T, id string, want map[string]string) {
	t.Helper()
	first, exec := n.procStatus(id, "1"), n.procStatus(id, "self")
	for _, field := range identity {
		if w, ok := want[field]; ok && first[field] != w {
			t.Errorf("%s of the first process = %q, want %q", field, first[field], w)
		}
		if exec[field] != first[field] {
			t.Errorf("%s of an exec = %q, of the first process %q", field, exec[field], first[field])
		}
	}
	for field := range want {
		if !slices.Contains(identity, field) {
			t.Errorf("nobody looks at %s", field)
		}
	}
}

// ids is one number four times: real, effective, saved and of the file system.
func ids(n int) string { return strings.TrimSpace(strings.Repeat(fmt.Sprint(n, " "), 4)) }

// pushUsers serves an image with users, for each USER one with that as its tag.
func (n *Node) pushUsers(users map[string]string, more ...File) {
	n.T.Helper()
	base := BusyboxLayer(n.T)
	accounts := Layer(n.T, append([]File{
		{Path: "etc/passwd", Mode: 0o644, Data: []byte("root::0:0:root:/root:/bin/sh\nwww:x:33:34:www:/www:/bin/sh\napp:x:1000:1000::/home/app:\n")},
		{Path: "etc/group", Mode: 0o644, Data: []byte("root:x:0:\nwww:x:34:\nextra:x:500:www,other\nmore:x:501:other,www\napp:x:1000:\n")},
	}, more...)...)
	for tag, user := range users {
		n.Registry.Push("e2e/users:"+tag, Image(n.T, v1.Config{User: user, Env: []string{"PATH=/bin"}}, base, accounts))
		n.Pull("registry.k8s.io/e2e/users:" + tag)
	}
}

func TestUsersAndGroups(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.pushUsers(map[string]string{
		"none": "", "name": "www", "number": "33", "name-group": "www:extra", "number-group": "33:77", "unlisted": "4242",
		"group-only": ":501",
	})
	p := n.PodConfig("users")
	pod := n.RunPod(p)
	number := func(v int64) *cri.Int64Value { return &cri.Int64Value{Value: v} }
	type context = cri.LinuxContainerSecurityContext
	strict := cri.SupplementalGroupsPolicy_Strict
	for i, test := range []struct {
		name, image string
		sc          *context
		uid, gid    int
		groups      string // as the kernel has them, in order of number
		home        string
	}{
		{"image says nothing", "none", &context{}, 0, 0, "0", "/root"},
		{"image name", "name", &context{}, 33, 34, "34 500 501", "/www"},
		{"image number", "number", &context{}, 33, 34, "34 500 501", "/www"},
		{"image name and group", "name-group", &context{}, 33, 500, "500 501", "/www"},
		{"image numbers", "number-group", &context{}, 33, 77, "77 500 501", "/www"},
		{"image number that nobody has", "unlisted", &context{}, 4242, 0, "0", "/"},
		{"image group only", "group-only", &context{}, 0, 501, "501", "/root"},
		{"user", "none", &context{RunAsUser: number(1000)}, 1000, 1000, "1000", "/home/app"},
		{"user over the image's user and group", "name-group", &context{RunAsUser: number(4711)}, 4711, 0, "0", "/"},
		{"user 0 over the image's", "name", &context{RunAsUser: number(0)}, 0, 0, "0", "/root"},
		{"user and group", "none", &context{RunAsUser: number(33), RunAsGroup: number(9)}, 33, 9, "9 500 501", "/www"},
		{"username", "none", &context{RunAsUsername: "www"}, 33, 34, "34 500 501", "/www"},
		{"username and group 0", "number", &context{RunAsUsername: "app", RunAsGroup: number(0)}, 1000, 0, "0", "/home/app"},
		{"merge", "none", &context{RunAsUser: number(33), SupplementalGroups: []int64{1234, 500}}, 33, 34, "34 500 501 1234", "/www"},
		{"strict", "none", &context{RunAsUser: number(33), SupplementalGroups: []int64{1234, 500}, SupplementalGroupsPolicy: strict}, 33, 34, "34 500 1234", "/www"},
		{"strict without a list", "name", &context{SupplementalGroupsPolicy: strict}, 33, 34, "34", "/www"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := n.ContainerConfig(fmt.Sprint("c", i), "sleep", "1000")
			c.Image.Image = "registry.k8s.io/e2e/users:" + test.image
			test.sc.NamespaceOptions = c.Linux.SecurityContext.NamespaceOptions
			c.Linux.SecurityContext = test.sc
			id := n.Run(pod, p, c)
			n.wantIdentity(t, id, map[string]string{"Uid": ids(test.uid), "Gid": ids(test.gid), "Groups": test.groups, "CapInh": "0000000000000000"})
			if got := strings.TrimSpace(n.Sh(id, "echo $HOME")); got != test.home {
				t.Errorf("HOME = %q, want %q", got, test.home)
			}
			u := n.Status(id).GetUser().GetLinux()
			slices.Sort(u.SupplementalGroups)
			if u.GetUid() != int64(test.uid) || u.GetGid() != int64(test.gid) || strings.Trim(fmt.Sprint(u.GetSupplementalGroups()), "[]") != test.groups {
				t.Errorf("reported user = %v, want %d:%d with %s", u, test.uid, test.gid, test.groups)
			}
		})
	}
}

func TestUsersRefused(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.pushUsers(map[string]string{"none": "", "unknown": "ghost", "unknown-group": "www:ghosts", "too-large": "4294967296"})
	// A file of the node's that must not be taken for the image's.
	n.WriteFile(n.path("passwd"), "evil:x:0:0::/:\n")
	base := BusyboxLayer(t)
	push := func(tag string, f File) {
		n.Registry.Push("e2e/users:"+tag, Image(t, v1.Config{User: "evil"}, base, Layer(t, f)))
		n.Pull("registry.k8s.io/e2e/users:" + tag)
	}
	push("absolute-link", File{Path: "etc/passwd", Sym: n.path("passwd")})
	push("relative-link", File{Path: "etc/passwd", Sym: strings.Repeat("../", 20) + n.path("passwd")})
	push("circle", File{Path: "etc/passwd", Sym: "passwd"})
	push("huge", File{Path: "etc/passwd", Mode: 0o644, Data: bytes.Repeat([]byte("a:x:1:1::/:\n"), 1<<20)})
	p := n.PodConfig("refused")
	pod := n.RunPod(p)
	number := func(v int64) *cri.Int64Value { return &cri.Int64Value{Value: v} }
	type context = cri.LinuxContainerSecurityContext
	for _, test := range []struct {
		image string
		sc    *context
		want  string
	}{
		{"unknown", &context{}, `user of the image: no user "ghost"`},
		{"unknown-group", &context{}, `group of the image: no group "ghosts"`},
		{"too-large", &context{}, "user of the image: 4294967296"},
		{"absolute-link", &context{}, `"evil"`},
		{"relative-link", &context{}, `"evil"`},
		{"circle", &context{}, `"evil"`},
		{"huge", &context{}, "passwd has more than"},
		{"none", &context{RunAsUsername: "ghost"}, `run_as_username: no user "ghost"`},
		{"none", &context{RunAsGroup: number(5)}, "run_as_group: "},
		{"none", &context{RunAsUser: number(5), RunAsUsername: "www"}, "run_as_username: "},
		{"none", &context{RunAsUser: number(-1)}, "run_as_user: "},
		{"none", &context{SupplementalGroups: []int64{1 << 32}}, "supplemental_groups[0]: "},
		{"none", &context{SupplementalGroupsPolicy: 7}, "supplemental_groups_policy: "},
		{"none", &context{Capabilities: &cri.Capability{AddCapabilities: []string{"FLY"}}}, `add_capabilities: unknown capability "CAP_FLY"`},
		{"none", &context{Capabilities: &cri.Capability{DropCapabilities: []string{"FLY"}}}, `drop_capabilities: unknown capability "CAP_FLY"`},
		{"none", &context{Privileged: true}, "privileged: the pod sandbox is not privileged"},
	} {
		c := n.ContainerConfig("main", "sleep", "1000")
		c.Image.Image = "registry.k8s.io/e2e/users:" + test.image
		c.Linux.SecurityContext = test.sc
		_, err := n.Runtime.CreateContainer(n.Ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: p})
		wantCode(t, fmt.Sprintf("CreateContainer of %s with %v", test.image, test.sc), err, codes.InvalidArgument, test.want)
	}
}

// boundingSet is what this process, and so crid, may give.
func boundingSet(t *testing.T) uint64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "CapBnd:\t")
	var mask uint64
	if _, err := fmt.Sscanf(rest, "%x", &mask); err != nil {
		t.Fatal(err)
	}
	return mask
}

func TestCapabilitySets(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("caps")
	pod := n.RunPod(p)
	const (
		chown, kill, bind, netAdmin, sysAdmin = 1 << 0, 1 << 5, 1 << 10, 1 << 12, 1 << 21

		defaults = 0xa80425fb // the fourteen of Docker and containerd
	)
	all := boundingSet(t)
	type names = []string
	for i, test := range []struct {
		name               string
		user               int64
		add, drop, ambient names
		bounding           uint64
		effective, raised  uint64
	}{
		{name: "default", bounding: defaults, effective: defaults},
		{name: "default of another user", user: 33, bounding: defaults},
		{name: "with and without CAP_", add: names{"NET_ADMIN", "CAP_SYS_ADMIN"}, bounding: defaults | netAdmin | sysAdmin, effective: defaults | netAdmin | sysAdmin},
		{name: "lower case", add: names{"net_admin"}, drop: names{"cap_chown"}, bounding: defaults&^chown | netAdmin, effective: defaults&^chown | netAdmin},
		{name: "drop ALL", drop: names{"ALL"}},
		{name: "drop ALL, add one", add: names{"KILL"}, drop: names{"ALL"}, bounding: kill, effective: kill},
		{name: "add ALL", add: names{"ALL"}, bounding: all, effective: all},
		{name: "add ALL, drop one", add: names{"ALL"}, drop: names{"SYS_ADMIN"}, bounding: all &^ sysAdmin, effective: all &^ sysAdmin},
		{name: "add to another user", user: 33, add: names{"NET_ADMIN"}, bounding: defaults | netAdmin},
		{name: "ambient", user: 33, ambient: names{"NET_ADMIN"}, bounding: defaults | netAdmin, effective: netAdmin, raised: netAdmin},
		{name: "ambient after drop ALL", user: 33, drop: names{"ALL"}, ambient: names{"NET_BIND_SERVICE"}, bounding: bind, effective: bind, raised: bind},
		{name: "ambient of root", ambient: names{"KILL"}, bounding: defaults, effective: defaults, raised: kill},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := n.ContainerConfig(fmt.Sprint("c", i), "sleep", "1000")
			sc := c.Linux.SecurityContext
			sc.RunAsUser = &cri.Int64Value{Value: test.user}
			sc.Capabilities = &cri.Capability{AddCapabilities: test.add, DropCapabilities: test.drop, AddAmbientCapabilities: test.ambient}
			mask := func(v uint64) string { return fmt.Sprintf("%016x", v&all) }
			// A program that another user than root executes has what is ambient.
			n.wantIdentity(t, n.Run(pod, p, c), map[string]string{
				"CapBnd": mask(test.bounding), "CapEff": mask(test.effective), "CapPrm": mask(test.effective),
				"CapInh": mask(test.raised), "CapAmb": mask(test.raised),
			})
		})
	}
}

// Environment and working folder: defaults, the image's and the request's.
func TestEnvironmentAndWorkingDir(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	base := BusyboxLayer(t)
	accounts := Layer(t,
		File{Path: "etc/passwd", Mode: 0o644, Data: []byte("app:x:1000:1001::/home/app:\n")},
		File{Path: "data", Mode: 0o755, Dir: true}, File{Path: "link", Sym: "/data"})
	for tag, cfg := range map[string]v1.Config{
		"bare": {},
		"full": {User: "app", WorkingDir: "/work/deep", Env: []string{"PATH=/bin:/own", "A=image", "EMPTY=", "HOSTNAME=image", "HOME=/elsewhere", "B=image"}},
	} {
		n.Registry.Push("e2e/env:"+tag, Image(t, cfg, base, accounts))
		n.Pull("registry.k8s.io/e2e/env:" + tag)
	}
	p := n.PodConfig("env")
	pod := n.RunPod(p)
	const usual = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, test := range []struct {
		name, image, user, cwd string
		envs                   []*cri.KeyValue
		wantEnv                []string
		wantCwd, owner         string // owner of the working folder and of the one above
	}{
		{"defaults", "bare", "", "", nil, []string{"HOSTNAME=env", usual, "HOME=/"}, "/", "0:0 0:0"},
		{"user's home", "bare", "app", "", nil, []string{"HOSTNAME=env", usual, "HOME=/home/app"}, "/", "0:0 0:0"},
		{
			"image", "full", "", "", nil,
			[]string{"HOSTNAME=image", "PATH=/bin:/own", "A=image", "EMPTY=", "HOME=/elsewhere", "B=image"},
			"/work/deep", "1000:1001 1000:1001",
		},
		{
			"request over image", "full", "", "/data/new",
			[]*cri.KeyValue{{Key: "A", Value: []byte("own\nlines")}, {Key: "B"}, {Key: "C", Value: []byte("c=d")}},
			[]string{"HOSTNAME=image", "PATH=/bin:/own", "A=own\nlines", "EMPTY=", "HOME=/elsewhere", "B=", "C=c=d"},
			"/data/new", "1000:1001 0:0",
		},
		{"through a link", "bare", "app", "/link/new", nil, []string{"HOSTNAME=env", usual, "HOME=/home/app"}, "/data/new", "1000:1001 0:0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := n.ContainerConfig(strings.ReplaceAll(test.name, " ", "-"), "/bin/sleep", "1000")
			c.Image.Image, c.WorkingDir, c.Envs = "registry.k8s.io/e2e/env:"+test.image, test.cwd, test.envs
			c.Linux.SecurityContext.RunAsUsername = test.user
			id := n.Run(pod, p, c)
			for _, pid := range []string{"1", "self"} {
				env := strings.TrimSuffix(n.Exec(id, "/bin/cat", "/proc/"+pid+"/environ"), "\x00")
				if got := strings.Split(env, "\x00"); !slices.Equal(got, test.wantEnv) {
					t.Errorf("environment of %s = %q, want %q", pid, got, test.wantEnv)
				}
			}
			if got := strings.TrimSpace(n.Exec(id, "/bin/pwd", "-P")); got != test.wantCwd {
				t.Errorf("working folder = %q, want %q", got, test.wantCwd)
			}
			if got := strings.Join(strings.Fields(n.Exec(id, "/bin/stat", "-c", "%u:%g", ".", "..")), " "); got != test.owner {
				t.Errorf("owners of the working folder and the one above = %q, want %q", got, test.owner)
			}
		})
	}
	for field, change := range map[string]func(*cri.ContainerConfig){
		"config.working_dir": func(c *cri.ContainerConfig) { c.WorkingDir = "data" },
		"config.envs[0].key": func(c *cri.ContainerConfig) { c.Envs = []*cri.KeyValue{{Key: "A=B"}} },
		"config.command":     func(c *cri.ContainerConfig) { c.Command = nil },
	} {
		c := n.ContainerConfig("refused", "true")
		c.Image.Image = "registry.k8s.io/e2e/env:bare"
		change(c)
		_, err := n.Runtime.CreateContainer(n.Ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: p})
		wantCode(t, "CreateContainer with a wrong "+field, err, codes.InvalidArgument, field)
	}
}

// A program that belongs to root and says so raises whoever executes it, unless
// that is forbidden.
func TestNoNewPrivileges(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	n.pushUsers(map[string]string{"suid": "www"}, File{Path: "bin/suid/su", Mode: 0o4755, Data: busybox})
	p := n.PodConfig("nnp")
	pod := n.RunPod(p)
	for forbidden, want := range map[bool]map[string]string{
		false: {"Uid": ids(33), "NoNewPrivs": "0"},
		true:  {"Uid": ids(33), "NoNewPrivs": "1"},
	} {
		for _, seccomp := range []cri.SecurityProfile_ProfileType{cri.SecurityProfile_Unconfined, cri.SecurityProfile_RuntimeDefault} {
			t.Run(fmt.Sprintf("%v with %v", forbidden, seccomp), func(t *testing.T) {
				c := n.ContainerConfig(fmt.Sprint(forbidden, seccomp), "sleep", "1000")
				c.Image.Image = "registry.k8s.io/e2e/users:suid"
				c.Linux.SecurityContext.NoNewPrivs = forbidden
				c.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: seccomp}
				id := n.Run(pod, p, c)
				want := maps.Clone(want)
				want["Seccomp"] = map[cri.SecurityProfile_ProfileType]string{cri.SecurityProfile_Unconfined: "0", cri.SecurityProfile_RuntimeDefault: "2"}[seccomp]
				n.wantIdentity(t, id, want)
				r, err := n.Runtime.ExecSync(n.Ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"/bin/suid/su", "-c", "id -u", "root"}, Timeout: 60})
				if err != nil {
					t.Fatal(err)
				}
				raised := r.ExitCode == 0 && strings.TrimSpace(string(r.Stdout)) == "0"
				if raised == forbidden {
					t.Errorf("setuid su: exit code %d, %q, %q; with no_new_privs %v", r.ExitCode, r.Stdout, r.Stderr, forbidden)
				}
			})
		}
	}
}
