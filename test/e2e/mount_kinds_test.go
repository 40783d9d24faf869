package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// hostPod is a pod on the node's network: quick to make.
func (n *Node) hostPod(name string) (string, *cri.PodSandboxConfig) {
	n.T.Helper()
	p := n.PodConfig(name)
	p.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	return n.RunPod(p), p
}

// volume makes a folder on the node with a file "f" that says name.
func (n *Node) volume(name string) string {
	n.T.Helper()
	dir := n.path("volumes", name)
	n.WriteFile(filepath.Join(dir, "f"), name+"\n")
	return dir
}

func symlink(t *testing.T, target, at string) string {
	t.Helper()
	if err := os.Symlink(target, at); err != nil {
		t.Fatal(err)
	}
	return at
}

// expect runs scripts in a container and compares what they print.
func (n *Node) expect(id string, scripts map[string]string) {
	n.T.Helper()
	for script, want := range scripts {
		if got := n.Sh(id, script); got != want {
			n.T.Errorf("in the container, %s = %q, want %q", script, got, want)
		}
	}
}

// Sources: links are followed, a missing one is made; targets: links in the image
// stay in it, what is mounted in another mount comes after it, the last of two wins.
func TestMountSourcesAndTargets(t *testing.T) {
	n := NewNode(t, NodeOptions{NoNetwork: true})
	n.Registry.Push("e2e/linked:1", Image(t, v1.Config{Env: []string{"PATH=/bin"}}, BusyboxLayer(t), Layer(t,
		File{Path: "inside", Sym: "/www"},
		File{Path: "escape", Sym: "../../../../../../../../" + n.Dir},
	)))
	linked := n.Pull("registry.k8s.io/e2e/linked:1")
	a, b := n.volume("a"), n.volume("b")
	missing, logFile := n.path("volumes", "not", "there"), n.path("volumes", "termination")
	n.WriteFile(logFile, "")
	pod, p := n.hostPod("sources")
	c := n.ContainerConfig("main", "sleep", "1000")
	c.Image.Image = linked
	c.Mounts = []*cri.Mount{
		{ContainerPath: "/nest/deep/er", HostPath: b},
		{ContainerPath: "/nest", HostPath: symlink(t, "a", n.path("volumes", "link"))},
		{ContainerPath: "/nest/file", HostPath: symlink(t, filepath.Join(b, "f"), n.path("volumes", "file-link"))},
		{ContainerPath: "/missing", HostPath: missing},
		{ContainerPath: "/inside/at", HostPath: b},
		{ContainerPath: "/escape/at", HostPath: b},
		{ContainerPath: "/twice", HostPath: a},
		{ContainerPath: "/twice/", HostPath: b},
		{ContainerPath: "/dev/termination-log", HostPath: logFile},
	}
	id := n.Run(pod, p, c)
	n.expect(id, map[string]string{
		"cat /nest/f /nest/deep/er/f /nest/file":        "a\nb\nb\n",
		"cat /www/at/f /inside/at/f":                    "b\nb\n",
		"cat /twice/f; grep -c ' /twice ' /proc/mounts": "b\n1\n",
		"stat -c '%a %F' /missing; echo x >/missing/x":  "755 directory\n",
		"echo -n last words >/dev/termination-log":      "",
	})
	if b, err := os.ReadFile(logFile); string(b) != "last words" {
		t.Errorf("termination log on the node = %q, %v", b, err)
	}
	if fi, err := os.Stat(missing); err != nil || fi.Mode().Perm() != 0o755 {
		t.Errorf("the missing source on the node: %v, %v, want a folder of mode 0755", fi, err)
	}
	if _, err := os.Stat(n.path("at")); err == nil {
		t.Error("a link in the image led to the node")
	}
	st := n.Status(id)
	for i, m := range st.Mounts {
		if m.ContainerPath != c.Mounts[i].ContainerPath || m.HostPath != c.Mounts[i].HostPath {
			t.Errorf("status of mount %d = %v, want as asked for: %v", i, m, c.Mounts[i])
		}
	}

	for name, tt := range map[string]struct {
		m     *cri.Mount
		texts []string
	}{
		"dangling link": {
			&cri.Mount{ContainerPath: "/v", HostPath: symlink(t, "/no/such", n.path("volumes", "dangling"))},
			[]string{"config.mounts[0].host_path: ", "symbolic link", "/no/such"},
		},
		"below a file": {&cri.Mount{ContainerPath: "/v", HostPath: logFile + "/x"}, []string{"config.mounts[0].host_path: ", "not a directory"}},
		"loop": {
			&cri.Mount{ContainerPath: "/v", HostPath: symlink(t, "loop", n.path("volumes", "loop"))},
			[]string{"config.mounts[0].host_path: ", "too many levels of symbolic links"},
		},
		"unknown option": {
			&cri.Mount{ContainerPath: "/v", HostPath: a, MountOptions: []string{"noexec", "nocookies"}},
			[]string{"config.mounts[0].mount_options[1]: ", `"nocookies"`},
		},
	} {
		bad := n.ContainerConfig("bad", "true")
		bad.Image.Image, bad.Mounts = linked, []*cri.Mount{tt.m}
		wantCode(t, name, n.tryCreate(pod, p, bad), codes.InvalidArgument, tt.texts...)
	}
}

func TestStrictMounts(t *testing.T) {
	n := NewNode(t, NodeOptions{NoNetwork: true, Config: map[string]string{"strict_mounts": "true"}})
	n.PullBusybox()
	pod, p := n.hostPod("strict")
	c := n.ContainerConfig("main", "sleep", "1000")
	c.Mounts = []*cri.Mount{{ContainerPath: "/v", HostPath: n.path("absent")}}
	wantCode(t, "a missing source", n.tryCreate(pod, p, c), codes.InvalidArgument, "config.mounts[0].host_path: ", n.path("absent"), "does not exist")
	if _, err := os.Lstat(n.path("absent")); err == nil {
		t.Error("the missing source was made")
	}
	c.Mounts[0].HostPath = n.volume("there")
	n.expect(n.Run(pod, p, c), map[string]string{"cat /v/f": "there\n"})
	// A file cannot be mounted on a folder.
	file := filepath.Join(n.volume("file"), "f")
	bad := n.ContainerConfig("bad", "true")
	bad.Mounts = []*cri.Mount{{ContainerPath: "/www", HostPath: file}}
	if err := n.tryCreate(pod, p, bad); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a file on a folder = %v, want an error that names %s", err, file)
	}
}

// A mount takes the place of what every container has, and one of /dev or /sys of
// all that is below.
func TestMountsOverDefaults(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("defaults")
	pod := n.RunPod(p)
	file, dir := filepath.Join(n.volume("file"), "f"), n.volume("dir")
	c := n.ContainerConfig("files", "sleep", "1000")
	for _, path := range []string{"/etc/hosts", "/etc/resolv.conf", "/etc/hostname"} {
		c.Mounts = append(c.Mounts, &cri.Mount{ContainerPath: path, HostPath: file})
	}
	for _, path := range []string{"/dev/shm", "/dev/mqueue", "/sys"} {
		c.Mounts = append(c.Mounts, &cri.Mount{ContainerPath: path, HostPath: dir})
	}
	n.expect(n.Run(pod, p, c), map[string]string{
		"cat /etc/hosts /etc/resolv.conf /etc/hostname":                    "file\nfile\nfile\n",
		"cat /dev/shm/f /dev/mqueue/f /sys/f":                              "dir\ndir\ndir\n",
		"grep -cE ' (/dev/shm|/dev/mqueue|/sys|/etc/hosts) ' /proc/mounts": "4\n",
		"grep -c ' /sys/' /proc/mounts || true":                            "0\n",
		"test -c /dev/null && test -e /dev/pts/ptmx && echo fine":          "fine\n",
	})

	dev := n.volume("dev")
	if err := syscall.Mknod(filepath.Join(dev, "null"), syscall.S_IFCHR|0o666, 1<<8|3); err != nil {
		t.Fatal(err)
	}
	c = n.ContainerConfig("dev", "sleep", "1000")
	c.Mounts = []*cri.Mount{{ContainerPath: "/dev", HostPath: dev}}
	n.expect(n.Run(pod, p, c), map[string]string{
		"ls /dev":                               "f\nnull\n",
		"grep -c ' /dev/' /proc/mounts || true": "0\n",
	})
	if names, _ := filepath.Glob(dev + "/*"); len(names) != 2 {
		t.Errorf("crid has made devices in the volume: %v", names)
	}

	c = n.ContainerConfig("proc", "sleep", "1000")
	c.Mounts = []*cri.Mount{{ContainerPath: "/proc", HostPath: dir}}
	if err := n.tryCreate(pod, p, c); err == nil || !strings.Contains(err.Error(), "/proc") {
		t.Errorf("a folder over /proc = %v, want an error that names it", err)
	}
}

func TestMountOptions(t *testing.T) {
	n := NewNode(t, NodeOptions{NoNetwork: true})
	n.PullBusybox()
	r, err := n.Runtime.Status(n.Ctx(), &cri.StatusRequest{})
	if err != nil || !r.Features.GetMountOptions() {
		t.Errorf("features = %v, %v, want mount_options", r.GetFeatures(), err)
	}
	dir := n.volume("options")
	n.WriteFile(filepath.Join(dir, "run"), "#!/bin/sh\necho ran\n")
	if err := os.Chmod(filepath.Join(dir, "run"), 0o755); err != nil {
		t.Fatal(err)
	}
	symlink(t, "f", filepath.Join(dir, "link"))
	if err := syscall.Mknod(filepath.Join(dir, "null"), syscall.S_IFCHR|0o666, 1<<8|3); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "below"), 0o755); err != nil {
		t.Fatal(err)
	}
	mountTmpfs(t, filepath.Join(dir, "below"))

	pod, p := n.hostPod("options")
	c := n.ContainerConfig("main", "sleep", "1000")
	options := []string{
		"noexec", "nosuid", "nodev", "noatime", "nodiratime", "strictatime", "relatime", "nosymfollow",
	}
	for _, o := range options {
		c.Mounts = append(c.Mounts, &cri.Mount{ContainerPath: "/" + o, HostPath: dir, MountOptions: []string{o}})
	}
	c.Mounts = append(c.Mounts,
		&cri.Mount{ContainerPath: "/undone", HostPath: dir, MountOptions: []string{"noexec", "exec"}},
		&cri.Mount{ContainerPath: "/ro", HostPath: dir, Readonly: true},
		&cri.Mount{ContainerPath: "/rro", HostPath: dir, Readonly: true, RecursiveReadOnly: true},
	)
	id := n.Run(pod, p, c)
	flags := map[string]string{} // of each mount in the container
	for line := range strings.Lines(n.Sh(id, "cat /proc/self/mountinfo")) {
		if f := strings.Fields(line); len(f) > 5 {
			flags[f[4]] = "," + f[5] + ","
		}
	}
	for _, o := range options {
		// The kernel does not list strictatime: it is the absence of the others.
		if listed := strings.Contains(flags["/"+o], ","+o+","); listed == (o == "strictatime") {
			t.Errorf("mount with %s has the flags %q", o, flags["/"+o])
		}
	}
	if f := flags["/strictatime"]; strings.Contains(f, "relatime") || strings.Contains(f, "noatime") {
		t.Errorf("mount with strictatime has the flags %q", f)
	}
	n.expect(id, map[string]string{
		"/noexec/run 2>/dev/null || echo refused":           "refused\n",
		"/undone/run && /nodev/run":                         "ran\nran\n",
		"echo x 2>/dev/null >/nodev/null || echo refused":   "refused\n",
		"cat /nosymfollow/link 2>/dev/null || echo refused": "refused\n",
		"touch /ro/x 2>/dev/null || echo refused":           "refused\n",
		"touch /ro/below/x && echo written":                 "written\n",
		"touch /rro/x 2>/dev/null || echo refused":          "refused\n",
		"touch /rro/below/x 2>/dev/null || echo refused":    "refused\n",
		"cat /rro/below/f":                                  "here\n",
	})
	for i, m := range n.Status(id).Mounts {
		asked := c.Mounts[i]
		if strings.Join(m.MountOptions, ",") != strings.Join(asked.MountOptions, ",") || m.Readonly != asked.Readonly || m.RecursiveReadOnly != asked.RecursiveReadOnly {
			t.Errorf("status of mount %d = %v, want %v", i, m, asked)
		}
	}
}

// Propagation that the source's own mount does not have is refused, with what to do.
func TestMountPropagationErrors(t *testing.T) {
	n := NewNode(t, NodeOptions{NoNetwork: true})
	n.PullBusybox()
	dir := n.path("volumes", "v")
	if err := os.MkdirAll(filepath.Join(dir, "below"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount(dir, dir, "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	pod, p := n.hostPod("propagation")
	try := func(flags uintptr, want map[cri.MountPropagation]string) {
		t.Helper()
		if err := syscall.Mount("", dir, "", flags, ""); err != nil {
			t.Fatal(err)
		}
		for propagation, text := range want {
			c := n.ContainerConfig("main", "true")
			c.Mounts = []*cri.Mount{{ContainerPath: "/v", HostPath: dir + "/below", Propagation: propagation}}
			err := n.tryCreate(pod, p, c)
			if text == "" {
				if err != nil {
					t.Errorf("%v on a mount made %#x = %v, want nil", propagation, flags, err)
					continue
				}
				n.removeContainers()
				continue
			}
			wantCode(t, propagation.String(), err, codes.InvalidArgument, "config.mounts[0].propagation: "+propagation.String(), text, "mount --make-rshared "+dir)
		}
	}
	const private, toContainer, both = cri.MountPropagation_PROPAGATION_PRIVATE, cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, cri.MountPropagation_PROPAGATION_BIDIRECTIONAL
	try(syscall.MS_PRIVATE, map[cri.MountPropagation]string{private: "", toContainer: "is on " + dir + ", which is private", both: "which is private"})
	try(syscall.MS_SHARED, map[cri.MountPropagation]string{private: "", toContainer: "", both: ""})
	// A slave of what it has been a peer of.
	peer := n.path("volumes", "peer")
	if err := os.Mkdir(peer, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount(dir, peer, "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(peer, syscall.MNT_DETACH) })
	try(syscall.MS_SLAVE, map[cri.MountPropagation]string{private: "", toContainer: "", both: "which is slave"})
}

// removeContainers removes all containers.
func (n *Node) removeContainers() {
	n.T.Helper()
	r, err := n.Runtime.ListContainers(n.Ctx(), &cri.ListContainersRequest{})
	if err != nil {
		n.T.Fatal(err)
	}
	for _, c := range r.Containers {
		if _, err := n.Runtime.RemoveContainer(n.Ctx(), &cri.RemoveContainerRequest{ContainerId: c.Id}); err != nil {
			n.T.Fatal(err)
		}
	}
}
