package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// usernsNode is a node whose pods can have user namespaces; where they cannot,
// it looks that they are refused with the reason, and the test ends.
func usernsNode(t *testing.T) *Node {
	t.Helper()
	n := NewNode(t, NodeOptions{})
	r, err := n.Runtime.Status(n.Ctx(), &cri.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	f := r.RuntimeHandlers[0].Features
	if f.UserNamespaces != r.Features.UserNamespacesHostNetwork {
		t.Errorf("features of the handler %v, of the runtime %v: they differ", f, r.Features)
	}
	if f.UserNamespaces {
		return n
	}
	_, err = n.Runtime.RunPodSandbox(n.Ctx(), &cri.RunPodSandboxRequest{Config: usernsPod(n.PodConfig("refused"), 100000)})
	wantCode(t, "RunPodSandbox with a user namespace", err, codes.InvalidArgument)
	if !strings.Contains(err.Error(), "userns_options") || !strings.Contains(err.Error(), "no user namespaces for pods: ") {
		t.Errorf("the error gives no field and reason: %v", err)
	}
	t.Skipf("this node cannot: %v", err)
	return nil
}

const usernsLength = 65536

func idMapping(host uint32) []*cri.IDMapping {
	return []*cri.IDMapping{{HostId: host, Length: usernsLength}}
}

func usernsPod(p *cri.PodSandboxConfig, host uint32) *cri.PodSandboxConfig {
	p.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &cri.UserNamespace{
		Mode: cri.NamespaceMode_POD, Uids: idMapping(host), Gids: idMapping(host),
	}
	return p
}

// inPod is a container with the namespace options of its pod, as kubelet sends it.
func (n *Node) inPod(p *cri.PodSandboxConfig, name string, args ...string) *cri.ContainerConfig {
	c := n.ContainerConfig(name, args...)
	c.Linux.SecurityContext.NamespaceOptions = p.Linux.SecurityContext.NamespaceOptions
	return c
}

func owner(t *testing.T, path string) string {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

func wantText(t *testing.T, what, got, want string) {
	t.Helper()
	if strings.Join(strings.Fields(got), " ") != want {
		t.Errorf("%s = %q, want %q", what, strings.TrimSpace(got), want)
	}
}

// TestUserNamespace looks from inside of a pod with a user namespace, and at the
// node, at everything that depends on whose namespace it is.
func TestUserNamespace(t *testing.T) {
	n := usernsNode(t)
	const host = 1 << 18
	img := Image(t, v1.Config{Env: []string{"PATH=/bin"}}, BusyboxLayer(t), Layer(t,
		File{Path: "owned", Mode: 0o755, Dir: true, UID: 33}, File{Path: "owned/by-www", Mode: 0o600, UID: 33}, File{Path: "owned/by-root", Mode: 0o600},
	))
	n.Registry.Push("e2e/busybox:1", img)
	n.Pull(BusyboxRef)
	const layerRef = "registry.k8s.io/e2e/layer:1"
	n.Registry.Push("e2e/layer:1", Image(t, v1.Config{}, Layer(t, File{Path: "owned", Mode: 0o755, Dir: true}, File{Path: "owned/by-www", Mode: 0o600, UID: 33})))
	n.Pull(layerRef)
	volume := n.path("volume")
	n.WriteFile(filepath.Join(volume, "of-the-node"), "x")
	p := usernsPod(n.PodConfig("userns"), host)
	p.Linux.Sysctls = map[string]string{
		"net.ipv4.ip_unprivileged_port_start": "70", "kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "20", "net.ipv4.ping_group_range": "0 2147483647",
	}
	pod := n.RunPod(p)
	if got, want := n.PodStatus(pod).Linux.Namespaces.Options.UsernsOptions, p.Linux.SecurityContext.NamespaceOptions.UsernsOptions; got.String() != want.String() {
		t.Errorf("status says user namespace %v, want %v", got, want)
	}
	c := n.inPod(p, "main", "sh", "-c", "id -u; touch /made /volume/mapped /owned/new; chown 33:33 /made; echo x >>/owned/by-www; exec sleep 1000")
	c.Mounts = []*cri.Mount{
		{ContainerPath: "/volume", HostPath: volume, UidMappings: idMapping(host), GidMappings: idMapping(host)},
		{ContainerPath: "/plain", HostPath: volume, Readonly: true},
		{ContainerPath: "/image", Image: &cri.ImageSpec{Image: BusyboxRef}, Readonly: true, UidMappings: idMapping(host), GidMappings: idMapping(host)},
		{ContainerPath: "/layer", Image: &cri.ImageSpec{Image: layerRef}, Readonly: true},
	}
	c.Linux.SecurityContext.Capabilities = &cri.Capability{AddCapabilities: []string{"NET_ADMIN", "SYS_ADMIN"}}
	// The default profile lets nobody mount.
	c.Linux.SecurityContext.Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}
	id := n.Run(pod, p, c)
	n.Eventually("container is up", func() bool { return strings.Contains(n.Exec(id, "ps"), "sleep 1000") })
	if mounts := n.Status(id).Mounts; mounts[0].UidMappings[0].HostId != host || mounts[1].UidMappings != nil {
		t.Errorf("status has mounts %v", mounts)
	}

	for _, test := range []struct{ what, script, want string }{
		{"the map of users", "cat /proc/self/uid_map", fmt.Sprintf("0 %d %d", host, usernsLength)},
		{"the map of groups", "cat /proc/self/gid_map", fmt.Sprintf("0 %d %d", host, usernsLength)},
		{"the exec's user", "id -u", "0"},
		{
			"owners in the root file system", "stat -c %u:%g / /bin /bin/busybox /owned /owned/by-www /owned/by-root /made",
			"0:0 0:0 0:0 33:0 33:0 0:0 33:33",
		},
		{"owners of the mapped volume", "stat -c %u /volume/of-the-node /volume/mapped", "0 0"},
		{"owners of the plain volume", "stat -c %u /plain/of-the-node", "65534"},
		{"owners of an image volume", "stat -c %u:%g /image /image/bin/busybox /image/owned/by-www /layer/owned/by-www", "0:0 0:0 33:0 33:0"},
		{"owners of the pod's files", "stat -c %u:%a /etc/hosts /etc/resolv.conf /etc/hostname /dev/shm", "0:644 0:644 0:644 0:1777"},
		{"writing them", "echo x >/dev/shm/x && echo '# x' >>/etc/hosts && tail -n 1 /etc/hosts", "# x"},
		{"the host name", "hostname", "userns"},
		{"setting the host name", "hostname mine && hostname", "mine"},
		{"loopback", "ip address show lo | grep -c 127.0.0.1", "1"},
		{"setting up the network", "ip link set lo down && ip link set lo up && echo ok", "ok"},
		{"a sysctl of the network", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start", "70"},
		{"sysctls of IPC", "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/fs/mqueue/msg_max", "1 20"},
		{"groups that may ping", "cat /proc/sys/net/ipv4/ping_group_range", fmt.Sprintf("0 %d", usernsLength-1)},
		{"devices", "echo x >/dev/null && head -c 4 /dev/zero | wc -c", "4"},
		{"message queues", "mount | grep -c 'mqueue on /dev/mqueue'", "1"},
		{"mounting", "mount -t tmpfs none /tmp && echo ok", "ok"},
		{"the node's processes", "ls -d /proc/[0-9]* | wc -l | awk '{print ($1 < 10)}'", "1"},
		{"the cgroup", "test -d /sys/fs/cgroup && echo ok", "ok"},
	} {
		wantText(t, test.what, n.Sh(id, test.script), test.want)
	}

	pid := n.containerPID(id)
	wantText(t, "the process's user on the node", uidOf(t, pid), fmt.Sprint(host))
	wantText(t, "owner on the node of a file in the volume", owner(t, filepath.Join(volume, "mapped")), "0:0")
	upper := n.path("root", "rootfs", id, "upper")
	wantText(t, "owner on the node of a new file", owner(t, filepath.Join(upper, "made")), fmt.Sprintf("%d:%d", host+33, host+33))
	wantText(t, "owner on the node of a copied file", owner(t, filepath.Join(upper, "owned", "by-www")), fmt.Sprintf("%d:%d", host+33, host))

	// A user of the container that is not root: its standard files are its own.
	u := n.inPod(p, "www", "sh", "-c", "id -u; echo again >/dev/stdout; nc -l -p 80 & sleep 0.2; netstat -ltn | grep -c :80; kill $!")
	u.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 33}
	n.WaitExit(n.Run(pod, p, u))
	wantText(t, "what a user wrote", strings.Join(logLines(n.ContainerLog(p, u)), " "), "33 again 1")

	// Another pod with other IDs, of the same layers.
	before := ownersBelow(t, n.path("root", "layers"))
	other := usernsPod(n.PodConfig("other"), 3*host)
	otherPod := n.RunPod(other)
	otherID := n.Run(otherPod, other, n.inPod(other, "main", "sh", "-c", "chown 5 /owned/by-root; exec sleep 1000"))
	wantText(t, "owners in the other pod", n.Sh(otherID, "stat -c %u /bin/busybox /owned/by-www; cat /proc/self/uid_map"), fmt.Sprintf("0 33 0 %d %d", 3*host, usernsLength))
	if after := ownersBelow(t, n.path("root", "layers")); after != before {
		t.Errorf("owners of layers on disk changed from\n%s\nto\n%s", before, after)
	}

	n.Restart()
	wantText(t, "exec after a restart of crid", n.Sh(id, "id -u"), "0")
	wantText(t, "another container after a restart", n.Sh(n.Run(pod, p, n.inPod(p, "late", "sleep", "1000")), "cat /proc/self/uid_map"), fmt.Sprintf("0 %d %d", host, usernsLength))
}

// ownersBelow are the owners of everything in a folder.
func ownersBelow(t *testing.T, dir string) string {
	t.Helper()
	counts := map[string]int{}
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err == nil {
			counts[owner(t, path)]++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(counts)
}

// uidOf is the effective user of a process, as the node knows it.
func uidOf(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 2 && f[0] == "Uid:" {
			return f[2]
		}
	}
	t.Fatalf("no user in:\n%s", b)
	return ""
}

// logLines are what was written, without the log's own fields.
func logLines(log string) []string {
	var out []string
	for line := range strings.Lines(log) {
		if f := strings.SplitN(strings.TrimSpace(line), " ", 4); len(f) == 4 {
			out = append(out, f[3])
		}
	}
	return out
}

// TestUserNamespaceModes goes through the other namespaces' modes, a terminal and
// privileged containers.
func TestUserNamespaceModes(t *testing.T) {
	n := usernsNode(t)
	n.PullBusybox()
	const host = 1 << 19
	const uidMap = "0 524288 65536"

	t.Run("pod PID", func(t *testing.T) {
		p := usernsPod(n.PodConfig("pid"), host)
		p.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
		pod := n.RunPod(p)
		n.Run(pod, p, n.inPod(p, "one", "sleep", "1111"))
		two := n.Run(pod, p, n.inPod(p, "two", "sleep", "2222"))
		if ps := n.Exec(two, "ps"); !strings.Contains(ps, "sleep 1111") || !strings.Contains(ps, "crid-pid1") {
			t.Errorf("processes of the pod:\n%s", ps)
		}
		wantText(t, "user of the init", n.Sh(two, "grep Uid: /proc/1/status"), "Uid: 0 0 0 0")
		wantText(t, "the init's root", n.Sh(two, "ls /proc/1/root 2>/dev/null || echo refused"), "refused")
		monitor := n.MonitorPID()
		if err := syscall.Kill(monitor, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		n.Eventually("a new monitor", func() bool { m := n.MonitorPID(); return m != monitor && m != 0 && syscall.Kill(m, 0) == nil })
		wantText(t, "exec with a new monitor", n.Sh(two, "cat /proc/self/uid_map"), uidMap)
		n.RemovePod(pod)
	})

	t.Run("target PID", func(t *testing.T) {
		p := usernsPod(n.PodConfig("target"), host)
		pod := n.RunPod(p)
		one := n.Run(pod, p, n.inPod(p, "one", "sleep", "1111"))
		c := n.ContainerConfig("debug", "sleep", "2222")
		c.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET, TargetId: one}
		if ps := n.Exec(n.Run(pod, p, c), "ps"); !strings.Contains(ps, "sleep 1111") {
			t.Errorf("processes of the target:\n%s", ps)
		}
		n.RemovePod(pod)
	})

	t.Run("host network", func(t *testing.T) {
		p := usernsPod(n.PodConfig("hostnet"), host)
		p.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
		pod := n.RunPod(p)
		id := n.Run(pod, p, n.inPod(p, "main", "sleep", "1000"))
		wantText(t, "map", n.Exec(id, "cat", "/proc/self/uid_map"), uidMap)
		here, err := os.Readlink("/proc/self/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		wantText(t, "network namespace", n.Sh(id, "readlink /proc/self/ns/net"), here)
		wantText(t, "the node's links in /sys", n.Sh(id, "ls /sys/class/net | grep -cx lo"), "1")
		wantText(t, "writing to /sys", n.Sh(id, "touch /sys/fs/cgroup/x /sys/kernel/x 2>/dev/null || echo refused"), "refused")
		n.RemovePod(pod)
	})

	t.Run("privileged", func(t *testing.T) {
		p := usernsPod(n.PodConfig("privileged"), host)
		p.Linux.SecurityContext.Privileged = true
		pod := n.RunPod(p)
		c := n.inPod(p, "main", "sleep", "1000")
		c.Linux.SecurityContext.Privileged = true
		id := n.Run(pod, p, c)
		wantText(t, "map", n.Exec(id, "cat", "/proc/self/uid_map"), uidMap)
		wantText(t, "a device of the node", n.Sh(id, "test -c /dev/null -a -c /dev/full && echo ok"), "ok")
		wantText(t, "a file of the node", n.Sh(id, "mknod /tmp/disk b 254 0 2>/dev/null || echo refused"), "refused")
		n.RemovePod(pod)
	})

	t.Run("terminal and device", func(t *testing.T) {
		p := usernsPod(n.PodConfig("tty"), host)
		pod := n.RunPod(p)
		c := n.inPod(p, "main", "sh", "-c", "tty; stat -c %u $(tty); ls -n /dev/other | cut -c 1; exec sleep 1000")
		c.Tty = true
		c.Devices = []*cri.Device{{HostPath: "/dev/zero", ContainerPath: "/dev/other", Permissions: "rw"}}
		id := n.Run(pod, p, c)
		wantText(t, "the device", n.Sh(id, "head -c 3 /dev/other | wc -c"), "3")
		n.Eventually("it has written", func() bool { return len(logLines(n.ContainerLog(p, c))) >= 3 })
		wantText(t, "the terminal", strings.Join(logLines(n.ContainerLog(p, c)), " "), "/dev/pts/0 0 c")
		n.RemovePod(pod)
	})

	t.Run("few IDs", func(t *testing.T) {
		p := n.PodConfig("few")
		one := []*cri.IDMapping{{HostId: host, Length: 1}}
		p.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: one, Gids: one}
		pod := n.RunPod(p)
		c := n.inPod(p, "main", "sleep", "1000")
		wantText(t, "map", n.Exec(n.Run(pod, p, c), "cat", "/proc/self/uid_map"), "0 524288 1")
		c = n.inPod(p, "www", "sleep", "1000")
		c.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 33}
		_, err := n.Runtime.CreateContainer(n.Ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: p})
		wantCode(t, "CreateContainer with a user that is not mapped", err, codes.InvalidArgument)
		n.RemovePod(pod)
	})

	t.Run("refused", func(t *testing.T) {
		for what, change := range map[string]func(*cri.NamespaceOption){
			"PID": func(o *cri.NamespaceOption) { o.Pid = cri.NamespaceMode_NODE },
			"IPC": func(o *cri.NamespaceOption) { o.Ipc = cri.NamespaceMode_NODE },
		} {
			p := usernsPod(n.PodConfig("refused"), host)
			change(p.Linux.SecurityContext.NamespaceOptions)
			_, err := n.Runtime.RunPodSandbox(n.Ctx(), &cri.RunPodSandboxRequest{Config: p})
			wantCode(t, "RunPodSandbox with the node's "+what+" namespace", err, codes.InvalidArgument)
		}
		p := usernsPod(n.PodConfig("refused"), host)
		pod := n.RunPod(p)
		for what, change := range map[string]func(*cri.ContainerConfig){
			"another map": func(c *cri.ContainerConfig) {
				c.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{
					Pid: cri.NamespaceMode_CONTAINER, UsernsOptions: &cri.UserNamespace{Uids: idMapping(5), Gids: idMapping(5)},
				}
			},
			"the node's user namespace": func(c *cri.ContainerConfig) {
				c.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{
					Pid: cri.NamespaceMode_CONTAINER, UsernsOptions: &cri.UserNamespace{Mode: cri.NamespaceMode_NODE},
				}
			},
			"a mount with another map": func(c *cri.ContainerConfig) {
				c.Mounts = []*cri.Mount{{ContainerPath: "/v", HostPath: n.path("v"), UidMappings: idMapping(5), GidMappings: idMapping(5)}}
			},
			"a file system without ID maps": func(c *cri.ContainerConfig) {
				c.Mounts = []*cri.Mount{{ContainerPath: "/v", HostPath: "/proc", UidMappings: idMapping(host), GidMappings: idMapping(host)}}
			},
		} {
			c := n.inPod(p, "main", "sleep", "1000")
			change(c)
			_, err := n.Runtime.CreateContainer(n.Ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: p})
			if err == nil {
				t.Errorf("CreateContainer with %s succeeds", what)
			} else {
				t.Logf("%s: %v", what, err)
			}
		}
		n.RemovePod(pod)
	})
}
