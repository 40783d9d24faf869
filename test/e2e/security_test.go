//lint:file-ignore SA1019 clients still send the profile fields that SecurityProfile replaced

package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fails reports that a script fails in the container, and how it ended otherwise.
func (n *Node) fails(id, script string) bool {
	n.T.Helper()
	r, err := n.Runtime.ExecSync(n.Ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", script}, Timeout: 60})
	if err != nil {
		n.T.Fatalf("ExecSync(%q) = %v", script, err)
	}
	return r.ExitCode != 0
}

// mountOptions are those of the uppermost mount at path in the container.
func (n *Node) mountOptions(id, path string) string {
	n.T.Helper()
	options := ""
	for line := range strings.Lines(n.Exec(id, "cat", "/proc/mounts")) {
		if f := strings.Fields(line); f[1] == path {
			options = f[3]
		}
	}
	return options
}

func TestMaskedAndReadonlyPaths(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("masked")
	pod := n.RunPod(p)
	c := n.ContainerConfig("main", "sleep", "1000")
	sc := c.Linux.SecurityContext
	sc.MaskedPaths = []string{"/www/index.html", "/root", "/tmp", "/proc/timer_list", "/proc/kcore", "/sys/firmware", "/no/such/path"}
	sc.ReadonlyPaths = []string{"/www", "/proc/sys", "/etc/passwd", "/no/such/path"}
	// Even one who may do anything to files.
	sc.Capabilities = &cri.Capability{AddCapabilities: []string{"ALL"}}
	id := n.Run(pod, p, c)

	for _, file := range []string{"/www/index.html", "/proc/kcore"} {
		if n.fails(id, "test -e "+file) {
			continue // this kernel has none
		}
		if got := n.Sh(id, "cat "+file+"; stat -c ' %F %t:%T' "+file); got != " character special file 1:3\n" {
			t.Errorf("masked %s: %q, want nothing in it, and /dev/null's number", file, got)
		}
	}
	for _, dir := range []string{"/root", "/tmp", "/sys/firmware"} {
		if n.fails(id, "test -d "+dir) {
			continue
		}
		if got := n.Sh(id, "ls -A "+dir+"; true"); got != "" { // AppArmor may not even let it look
			t.Errorf("masked %s holds %q, want nothing", dir, got)
		}
		if !n.fails(id, "touch "+dir+"/x") || !strings.HasPrefix(n.mountOptions(id, dir), "ro,") {
			t.Errorf("masked %s can be written to, mounted %q", dir, n.mountOptions(id, dir))
		}
	}
	n.Sh(id, "test -r /www && test -r /etc/passwd && test -r /proc/sys/kernel/ostype")
	for _, script := range []string{"touch /www/x", "echo x >> /etc/passwd", "echo 1 > /proc/sys/vm/drop_caches"} {
		if !n.fails(id, script) {
			t.Errorf("%q works, on a path that is read-only", script)
		}
	}

	// None asked for is none.
	bare := n.Run(pod, p, n.ContainerConfig("bare", "sleep", "1000"))
	n.Sh(bare, "grep -q hello /www/index.html && touch /www/x /tmp/x && echo root >> /etc/passwd")
}

func TestReadonlyRootfs(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	n.WriteFile(n.path("etc-hosts"), "127.0.0.1 localhost\n")
	p := n.PodConfig("readonly")
	pod := n.RunPod(p)
	c := n.ContainerConfig("main", "sleep", "1000")
	c.Linux.SecurityContext.ReadonlyRootfs = true
	c.WorkingDir = "/made/anyway"
	c.Mounts = []*cri.Mount{{HostPath: n.path("etc-hosts"), ContainerPath: "/etc/hosts"}, {HostPath: n.path("data"), ContainerPath: "/tmp"}}
	id := n.Run(pod, p, c)
	n.Sh(id, "touch /dev/shm/x /tmp/x && echo '10.0.0.1 x' >> /etc/hosts && pwd | grep -q /made/anyway")
	for _, script := range []string{"touch /x", "touch /made/anyway/x", "echo x >> /etc/resolv.conf", "echo x >> /etc/hostname", "echo x >> /etc/passwd"} {
		if !n.fails(id, script) {
			t.Errorf("%q works with a read-only root file system", script)
		}
	}
	writable := n.Run(pod, p, n.ContainerConfig("writable", "sleep", "1000"))
	n.Sh(writable, "touch /x && echo >> /etc/hosts && echo >> /etc/resolv.conf")
}

func TestPrivileged(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("privileged")
	p.Linux.SecurityContext.Privileged = true
	pod := n.RunPod(p)
	privileged, plain := n.ContainerConfig("privileged", "sleep", "1000"), n.ContainerConfig("plain", "sleep", "1000")
	for _, c := range []*cri.ContainerConfig{privileged, plain} {
		sc := c.Linux.SecurityContext
		sc.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
		sc.MaskedPaths, sc.ReadonlyPaths = []string{"/www/index.html"}, []string{"/proc/sys"}
	}
	privileged.Linux.SecurityContext.Privileged = true

	id := n.Run(pod, p, privileged)
	all := fmt.Sprintf("%016x", boundingSet(t))
	n.wantIdentity(t, id, map[string]string{"CapEff": all, "CapPrm": all, "CapBnd": all, "CapInh": "0000000000000000", "Seccomp": "0", "NoNewPrivs": "0"})
	n.Sh(id, "grep -q hello /www/index.html && test -w /proc/sys/vm/drop_caches")
	if o := n.mountOptions(id, "/sys"); !strings.HasPrefix(o, "rw") {
		t.Errorf("/sys of the privileged container is mounted %q, want rw", o)
	}
	// With cgroup v1 each controller is a mount of its own.
	const group = "d=/sys/fs/cgroup; test -d $d/memory && d=$d/memory; mkdir $d/crid-e2e-test && rmdir $d/crid-e2e-test"
	n.Sh(id, group)
	if missing := n.Sh(id, "for d in "+strings.Join(nodeDevices(t), " ")+"; do test -c $d -o -b $d || echo $d; done"); missing != "" {
		t.Errorf("the privileged container has no %s", missing)
	}

	id = n.Run(pod, p, plain)
	n.wantIdentity(t, id, map[string]string{"Seccomp": "2"})
	if o := n.mountOptions(id, "/sys"); !strings.HasPrefix(o, "ro") || !n.fails(id, group) {
		t.Errorf("a plain container can make cgroups, or its /sys is writable: %q", o)
	}
}

// nodeDevices are the device nodes directly in this machine's /dev.
func nodeDevices(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/dev")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		if e.Type()&os.ModeDevice != 0 && e.Name() != "console" {
			all = append(all, "/dev/"+e.Name())
		}
	}
	return all
}

// Seccomp profiles are seen by their effect: user namespaces are for whoever
// asks, but for the default profile; a profile of the node's own forbids mkdir.
func TestSeccomp(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	const noMkdir = `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
		{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
		{"names": ["symlink", "symlinkat"], "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_SYS_ADMIN"]}}]}`
	own := n.path("no mkdir.json")
	n.WriteFile(own, noMkdir)
	p := n.PodConfig("seccomp")
	pod := n.RunPod(p)
	runtimeDefault := &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
	localhost := &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: own}
	const unshare, mkdir, link = "unshare -U true", "mkdir /tmp/d.$$", "ln -s x /tmp/l.$$"
	for i, test := range []struct {
		name        string
		profile     *cri.SecurityProfile
		old         string
		admin       bool
		mode        string
		works, bars string
	}{
		{name: "none", mode: "0", works: unshare},
		{name: "unconfined", profile: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}, mode: "0", works: unshare},
		{name: "old unconfined", old: "unconfined", mode: "0", works: unshare},
		{name: "default", profile: runtimeDefault, mode: "2", works: mkdir, bars: unshare},
		{name: "empty message", profile: &cri.SecurityProfile{}, mode: "2", bars: unshare},
		{name: "old default", old: "runtime/default", mode: "2", bars: unshare},
		{name: "default with a capability", profile: runtimeDefault, admin: true, mode: "2", works: unshare},
		{name: "own", profile: localhost, mode: "2", works: unshare, bars: mkdir + " || " + link},
		{name: "own with a capability", profile: localhost, admin: true, mode: "2", works: link, bars: mkdir},
		{name: "old own", old: "localhost/" + own, mode: "2", bars: mkdir},
		{name: "new before old", profile: runtimeDefault, old: "unconfined", mode: "2", bars: unshare},
	} {
		t.Run(test.name, func(t *testing.T) {
			// Twice: the second container gets what was kept of the first.
			for round := range 2 {
				c := n.ContainerConfig(fmt.Sprint("c", i, "-", round), "sleep", "1000")
				c.Linux.SecurityContext.Seccomp = test.profile
				c.Linux.SecurityContext.SeccompProfilePath = test.old
				if test.admin {
					c.Linux.SecurityContext.Capabilities = &cri.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
				}
				id := n.Run(pod, p, c)
				n.wantIdentity(t, id, map[string]string{"Seccomp": test.mode})
				if test.works != "" && n.fails(id, test.works) {
					t.Errorf("%q fails", test.works)
				}
				if test.bars != "" && !n.fails(id, test.bars) {
					t.Errorf("%q works", test.bars)
				}
			}
		})
	}

	// A new monitor has nothing kept, and executes under the old filter all the same.
	c := n.ContainerConfig("adopted", "sleep", "1000")
	c.Linux.SecurityContext.Seccomp = runtimeDefault
	adopted, monitor := n.Run(pod, p, c), n.MonitorPID()
	if err := unix.Kill(monitor, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.Eventually("a new monitor", func() bool { m := n.MonitorPID(); return m != monitor && m != 0 && unix.Kill(m, 0) == nil })
	for range 2 {
		n.wantIdentity(t, adopted, map[string]string{"Seccomp": "2"})
		if !n.fails(adopted, unshare) {
			t.Errorf("%q works in a container that was adopted", unshare)
		}
	}

	bad := n.path("bad.json")
	for name, content := range map[string]string{
		"a missing file": "", "no JSON": "{", "an unknown action": `{"defaultAction": "DENY"}`, "an empty object": "{}",
	} {
		_ = os.Remove(bad)
		if content != "" {
			n.WriteFile(bad, content)
		}
		c := n.ContainerConfig("bad", "true")
		c.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: bad}
		_, err := n.Runtime.CreateContainer(n.Ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: p})
		wantCode(t, "CreateContainer with "+name, err, codes.InvalidArgument, "seccomp.localhost_ref", bad)
	}
	c = n.ContainerConfig("bad", "true")
	c.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "relative.json"}
	_, err := n.Runtime.CreateContainer(n.Ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: p})
	wantCode(t, "CreateContainer with a relative profile", err, codes.InvalidArgument, "seccomp.localhost_ref", "absolute")
}

// Each container has a session keyring, which its execs share: with one for each
// exec kernel.keys would soon be reached, with the monitor's a container could
// read what the node keeps there.
func TestSessionKeyrings(t *testing.T) {
	if _, err := os.Stat("/proc/keys"); err != nil {
		t.Skip("this kernel has no keyrings")
	}
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("keys")
	pod := n.RunPod(p)
	rings := func(id string) int {
		b, err := os.ReadFile("/proc/keys")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(b), " _ses."+id+": ")
	}
	ids := []string{n.Run(pod, p, n.ContainerConfig("a", "sleep", "1000")), n.Run(pod, p, n.ContainerConfig("b", "sleep", "1000"))}
	for _, id := range ids {
		for range 3 {
			n.Exec(id, "true")
		}
		if got := rings(id); got != 1 {
			t.Errorf("container %s has %d session keyrings, want 1", id, got)
		}
	}
	n.RemovePod(pod)
	for _, id := range ids {
		n.Eventually("the kernel forgets the keyring", func() bool { return rings(id) == 0 })
	}
}

// What the monitor has open must not be open in a container (CVE-2024-21626).
func TestNoDescriptorLeaks(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("fds")
	pod := n.RunPod(p)
	for i, profile := range []cri.SecurityProfile_ProfileType{cri.SecurityProfile_Unconfined, cri.SecurityProfile_RuntimeDefault, cri.SecurityProfile_RuntimeDefault} {
		for _, tty := range []bool{false, true} {
			c := n.ContainerConfig(fmt.Sprint("c", i, tty), "sleep", "1000")
			c.Tty = tty
			c.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: profile}
			id := n.Run(pod, p, c)
			// A shell needs none of its own for this; `ls` alone would show its folder's.
			for _, script := range []string{"ls /proc/1/fd", "ls /proc/$$/fd; true"} {
				if got := strings.Join(strings.Fields(n.Sh(id, script)), " "); got != "0 1 2" {
					t.Errorf("%q (%v, tty %v) = %q, want 0 1 2: %s", script, profile, tty, got, n.Sh(id, "ls -l /proc/1/fd"))
				}
			}
		}
	}
}

// The program that becomes a container's first process is the monitor's. A
// container that can reach it by /proc must not be able to change it
// (CVE-2019-5736).
func TestMonitorCannotBeOverwritten(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	sum := func() string {
		b, err := os.ReadFile(n.Programs.Monitor)
		if err != nil {
			t.Fatal(err)
		}
		h := sha256.Sum256(b)
		return hex.EncodeToString(h[:])
	}
	before := sum()
	p := n.PodConfig("exe")
	p.Linux.SecurityContext.Privileged = true
	p.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	pod := n.RunPod(p)
	attacker, victim := n.ContainerConfig("attacker", "sleep", "1000"), n.ContainerConfig("victim", "sleep", "1000")
	attacker.Linux.SecurityContext.Privileged = true // worse than real: one that may read any process
	for _, c := range []*cri.ContainerConfig{attacker, victim} {
		c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	}
	id := n.Run(pod, p, attacker)
	created := n.CreateContainer(pod, p, victim) // its process is still the monitor's program
	pid := ""
	for _, q := range strings.Fields(n.Sh(id, "cd /proc; for p in [0-9]*; do readlink $p/exe | grep -q crid-monitor && echo $p; done; true")) {
		if strings.Contains(n.Sh(id, "tr '\\0' ' ' < /proc/"+q+"/cmdline"), "init") {
			pid = q
		}
	}
	if pid == "" {
		t.Fatalf("no process of the created container in sight:\n%s", n.Exec(id, "ps"))
	}
	exe := "/proc/" + pid + "/exe"
	if got := n.Sh(id, "readlink "+exe); !strings.HasPrefix(got, "/memfd:crid-monitor") {
		t.Errorf("%s is %q, want a copy in memory", exe, got)
	}
	if got := n.Sh(id, "sha256sum < "+exe+" | cut -d' ' -f1"); strings.TrimSpace(got) != before {
		t.Errorf("%s has SHA-256 %s, the monitor's program %s", exe, got, before)
	}
	for _, script := range []string{"echo x > " + exe, "echo x >> " + exe, "dd if=/dev/zero of=" + exe + " bs=1 count=1 conv=notrunc"} {
		if !n.fails(id, script) {
			t.Errorf("%q works", script)
		}
	}
	// By a descriptor that outlives the process: when nobody executes the file any
	// more, only the seals protect it. The monitor itself runs the same file here,
	// so it is asked for its seals.
	f, err := os.Open(filepath.Join("/proc", fmt.Sprint(n.MonitorPID()), "exe"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if want := unix.F_SEAL_WRITE | unix.F_SEAL_GROW | unix.F_SEAL_SHRINK | unix.F_SEAL_SEAL; err != nil || seals&want != want {
		t.Errorf("seals of the monitor's program = %#x, %v, want %#x in it", seals, err, want)
	}
	n.StartContainer(created)
	if after := sum(); after != before {
		t.Errorf("the monitor's program has changed: SHA-256 %s, was %s", after, before)
	}
}

// A container with its own /dev must not choose what masked paths are covered
// with (CVE-2025-31133).
func TestMaskWithOwnDevNull(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	base := BusyboxLayer(t)
	n.Registry.Push("e2e/dev:1", Image(t, v1.Config{Env: []string{"PATH=/bin"}}, base,
		Layer(t, File{Path: "dev", Mode: 0o755, Dir: true}, File{Path: "dev/null", Sym: "/proc/sys/kernel/core_pattern"})))
	n.Pull("registry.k8s.io/e2e/dev:1")
	p := n.PodConfig("devnull")
	pod := n.RunPod(p)
	dev := n.path("dev")
	for i, null := range []func() error{
		func() error { return os.Symlink("/proc/sys/kernel/core_pattern", dev+"/null") },
		func() error { return os.WriteFile(dev+"/null", []byte("mine"), 0o666) },
	} {
		if err := os.MkdirAll(dev, 0o755); err != nil {
			t.Fatal(err)
		}
		_ = os.Remove(dev + "/null")
		if err := null(); err != nil {
			t.Fatal(err)
		}
		c := n.ContainerConfig(fmt.Sprint("volume", i), "sleep", "1000")
		c.Linux.SecurityContext.MaskedPaths = []string{"/www/index.html"}
		c.Mounts = []*cri.Mount{{HostPath: dev, ContainerPath: "/dev"}}
		r, err := n.Runtime.CreateContainer(n.Ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: p})
		if err != nil {
			wantCode(t, "CreateContainer", err, codes.Internal, "mask paths", "/dev/null")
			continue
		}
		n.StartContainer(r.ContainerId)
		if got := n.Sh(r.ContainerId, "cat /www/index.html; stat -c ' %t:%T' /www/index.html"); got != " 1:3\n" {
			t.Errorf("masked file with a /dev/null of the container's own: %q", got)
		}
	}
	// The image's own /dev is covered.
	c := n.ContainerConfig("image", "sleep", "1000")
	c.Image.Image = "registry.k8s.io/e2e/dev:1"
	c.Linux.SecurityContext.MaskedPaths = []string{"/www/index.html"}
	id := n.Run(pod, p, c)
	if got := n.Sh(id, "cat /www/index.html; stat -c ' %t:%T' /www/index.html"); got != " 1:3\n" {
		t.Errorf("masked file with a /dev/null of the image's own: %q", got)
	}
}
