package kubelet

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// sh runs a script in a container by kubelet's port and returns what it printed,
// without the last newline.
func (k *kubelet) sh(name, container, script string) string {
	k.t.Helper()
	return strings.TrimSuffix(k.exec(name, container, "sh", "-c", script), "\n")
}

// tmpfs mounts one until t ends. Its parent is shared, as it is on a node.
func (k *kubelet) tmpfs(dir string) {
	k.t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		k.t.Fatal(err)
	}
	if err := syscall.Mount("e2e", dir, "tmpfs", 0, "size=1m"); err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			k.t.Errorf("unmount %s: %v", dir, err)
		}
	})
}

func TestVolumes(t *testing.T) {
	k := newKubelet(t, options{})
	k.pushDataImage()
	k.WriteFile(k.path("host", "dir", "there"), "on the host\n")
	k.WriteFile(k.path("host", "file"), "a file\n")
	l, err := net.Listen("unix", k.path("host", "socket"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	k.tmpfs(k.path("host", "tree", "below"))
	k.tmpfs(k.path("host", "prop", "early"))
	k.WriteFile(k.path("host", "sub", "a", "b", "c"), "deep\n")
	k.WriteFile(k.path("host", "sub", "conf"), "key=value\n")
	k.WriteFile(k.path("host", "owned"), "root's\n")
	if err := os.Symlink("/etc", k.path("host", "sub", "out")); err != nil {
		t.Fatal(err)
	}
	// Nobody is asked when this registry has not got an image.
	k.WriteFile(k.path("certs.d", "registry.k8s.io", "hosts.toml"), fmt.Sprintf("server = %q\n", "http://"+k.Registry.Addr))

	k.parallel("HostPath", (*kubelet).hostPath)
	k.parallel("Propagation", (*kubelet).propagation)
	k.parallel("ReadOnly", (*kubelet).readOnly)
	k.parallel("EmptyDir", (*kubelet).emptyDir)
	k.parallel("SubPath", (*kubelet).subPath)
	k.parallel("SubPathEscape", (*kubelet).subPathEscape)
	k.parallel("UserNamespaces", (*kubelet).userNamespaces)
	k.parallel("ImageVolume", (*kubelet).imageVolume)
	k.parallel("ImageVolumeMissing", (*kubelet).imageVolumeMissing)
	k.parallel("ImageVolumePathMissing", (*kubelet).imageVolumePathMissing)
}

// hostPath: each type is there with its kind, and what the container writes is
// on the host.
func (k *kubelet) hostPath() {
	k.run("host-path", `
		containers:
		- name: main
			image: IMAGE
			command: [sleep, "1000"]
			volumeMounts:
			- {name: none, mountPath: /v/none}
			- {name: dir, mountPath: /v/dir}
			- {name: made, mountPath: /v/made}
			- {name: file, mountPath: /v/file}
			- {name: touched, mountPath: /v/touched}
			- {name: socket, mountPath: /v/socket}
			- {name: char, mountPath: /v/char}
			- {name: block, mountPath: /v/block}
		volumes:
		- {name: none, hostPath: {path: DIR/host/dir}}
		- {name: dir, hostPath: {path: DIR/host/dir, type: Directory}}
		- {name: made, hostPath: {path: DIR/host/made, type: DirectoryOrCreate}}
		- {name: file, hostPath: {path: DIR/host/file, type: File}}
		- {name: touched, hostPath: {path: DIR/host/touched, type: FileOrCreate}}
		- {name: socket, hostPath: {path: DIR/host/socket, type: Socket}}
		- {name: char, hostPath: {path: /dev/zero, type: CharDevice}}
		- {name: block, hostPath: {path: /dev/loop0, type: BlockDevice}}
	`)
	k.await("host-path", "is ready", ready)
	got := k.sh("host-path", "main", `cat /v/none/there /v/file; head -c 2 /v/char | od -An -tx1; stat -c %F /v/*
		echo from inside | tee /v/dir/new /v/made/new /v/touched >/dev/null`)
	want := "on the host\na file\n 00 00\nblock special file\ncharacter special file\ndirectory\nregular file\ndirectory\ndirectory\nsocket\nregular empty file"
	if got != want {
		k.t.Errorf("the container sees\n%s\nwant\n%s", got, want)
	}
	for _, p := range []string{"dir/new", "made/new", "touched"} {
		if b, err := os.ReadFile(k.path("host", p)); string(b) != "from inside\n" {
			k.t.Errorf("%s on the host: %q, %v", p, b, err)
		}
	}
}

// propagation: mounts that are made while the containers run, on the host and by
// the container with Bidirectional, are seen where they have to be, and so is
// their end.
func (k *kubelet) propagation() {
	k.run("propagation", `
		containers:
		- name: none
			image: IMAGE
			command: [sleep, "1000"]
			volumeMounts: [{name: prop, mountPath: /prop, mountPropagation: None}]
		- name: from-host
			image: IMAGE
			command: [sleep, "1000"]
			volumeMounts: [{name: prop, mountPath: /prop, mountPropagation: HostToContainer}]
		- name: both
			image: IMAGE
			command: [sleep, "1000"]
			securityContext: {privileged: true}
			volumeMounts: [{name: prop, mountPath: /prop, mountPropagation: Bidirectional}]
		volumes:
		- {name: prop, hostPath: {path: DIR/host/prop}}
	`)
	k.await("propagation", "is ready", ready)
	inside := k.path("host", "prop", "inside")
	if err := os.Mkdir(inside, 0o755); err != nil {
		k.t.Fatal(err)
	}
	k.tmpfs(k.path("host", "prop", "late"))
	k.sh("propagation", "both", "mount -t tmpfs -o size=1m inside /prop/inside && touch /prop/inside/made-inside")
	if _, err := os.Stat(filepath.Join(inside, "made-inside")); err != nil {
		k.t.Errorf("the host does not see the mount of Bidirectional: %v", err)
	}
	for c, want := range map[string]string{"none": "early", "from-host": "early inside late", "both": "early inside late"} {
		got := k.sh("propagation", c, `grep -o ' /prop/[a-z]* ' /proc/self/mounts | sort | sed 's, */prop/\([a-z]*\) *,\1,'`)
		if got = strings.Join(strings.Fields(got), " "); got != want {
			k.t.Errorf("%s sees the mounts %q, want %q", c, got, want)
		}
	}
	k.sh("propagation", "both", "umount /prop/inside")
	if got := k.sh("propagation", "from-host", "ls /prop/inside"); got != "" {
		k.t.Errorf("after umount by Bidirectional, HostToContainer sees %q", got)
	}
}

// readOnly: the volume is read-only, a mount below it is not unless that is asked
// for. A kubelet without an API server has no runtime classes and therefore never
// looks at what crid says of its handlers: it refuses recursiveReadOnly: Enabled
// and takes IfPossible for Disabled. What crid does when asked is shown below CRI.
func (k *kubelet) readOnly() {
	k.run("read-only", `
		containers:
		- name: main
			image: IMAGE
			command: [sleep, "1000"]
			volumeMounts:
			- {name: tree, mountPath: /top, readOnly: true}
			- {name: tree, mountPath: /possible, readOnly: true, recursiveReadOnly: IfPossible}
		volumes:
		- {name: tree, hostPath: {path: DIR/host/tree}}
	`)
	p := k.await("read-only", "is ready", ready)
	got := k.sh("read-only", "main", `for d in top possible; do
		touch /$d/x 2>/dev/null && echo $d is writable
		touch /$d/below/x 2>/dev/null && echo $d/below is writable
	done; true`)
	if got != "top/below is writable\npossible/below is writable" {
		k.t.Errorf("%s", got)
	}
	for _, m := range container(p, "main").VolumeMounts {
		if m.MountPath == "/possible" && (m.RecursiveReadOnly == nil || *m.RecursiveReadOnly != corev1.RecursiveReadOnlyDisabled) {
			k.t.Errorf("status of %s: %v", m.MountPath, m.RecursiveReadOnly)
		}
	}
}

// emptyDir: on disk and in memory, seen by two containers, there still after a
// container's restart, gone with the pod.
func (k *kubelet) emptyDir() {
	k.run("empty-dir", `
		containers:
		- name: writer
			image: IMAGE
			command: [sh, -c, "date >>/disk/starts; until test -e /memory/end; do sleep 0.1; done; rm /memory/end"]
			volumeMounts: [{name: disk, mountPath: /disk}, {name: memory, mountPath: /memory}]
		- name: reader
			image: IMAGE
			command: [sleep, "1000"]
			volumeMounts: [{name: disk, mountPath: /disk}, {name: memory, mountPath: /memory, readOnly: true}]
		volumes:
		- {name: disk, emptyDir: {}}
		- {name: memory, emptyDir: {medium: Memory, sizeLimit: 16Mi}}
	`)
	p := k.await("empty-dir", "is ready", ready)
	k.sh("empty-dir", "writer", "echo on disk >/disk/f; echo in memory >/memory/f")
	if got := k.sh("empty-dir", "reader", "cat /disk/f /memory/f; touch /memory/g 2>&1"+
		" | grep -o 'Read-only.*'"); got != "on disk\nin memory\nRead-only file system" {
		k.t.Errorf("the other container sees %q", got)
	}
	// Columns of df: blocks of 1024 bytes; of stat: the file system's type.
	for _, c := range []string{"writer", "reader"} {
		if got := k.sh("empty-dir", c, "df -k /memory | awk 'NR == 2 {print $2}'; stat -f -c %T /memory"); got != "16384\ntmpfs" {
			k.t.Errorf("%s: medium Memory with sizeLimit 16Mi is %q", c, got)
		}
	}
	k.sh("empty-dir", "writer", "touch /memory/end")
	k.awaitContainer("empty-dir", "writer", "has restarted", restarted(1))
	if got := k.sh("empty-dir", "writer", "cat /disk/f /memory/f; wc -l </disk/starts"); got != "on disk\nin memory\n2" {
		k.t.Errorf("after a restart the volumes hold %q", got)
	}
	dir := k.path("kubelet", "pods", p.Annotations["kubernetes.io/config.hash"])
	if _, err := os.Stat(filepath.Join(dir, "volumes", "kubernetes.io~empty-dir", "disk", "f")); err != nil {
		k.t.Error(err)
	}
	k.remove("empty-dir")
	k.eventually("its folder is gone", func() error {
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			return fmt.Errorf("%s: %w", dir, err)
		}
		return nil
	})
}

// subPath: folders, files, those that kubelet makes, and all of them once more
// in the container's next attempt.
func (k *kubelet) subPath() {
	k.run("sub-path", `
		containers:
		- name: main
			image: IMAGE
			command: [sh, -c, "until test -e /end; do sleep 0.1; done"]
			env:
			- {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
			volumeMounts:
			- {name: host, mountPath: /dir, subPath: a/b}
			- {name: host, mountPath: /etc/app.conf, subPath: conf, readOnly: true}
			- {name: host, mountPath: /own, subPathExpr: of/$(POD)}
			- {name: empty, mountPath: /one, subPath: one}
			- {name: empty, mountPath: /whole}
		volumes:
		- {name: host, hostPath: {path: DIR/host/sub}}
		- {name: empty, emptyDir: {medium: Memory}}
	`)
	k.await("sub-path", "is ready", ready)
	const look = "cat /dir/c /etc/app.conf /own/f /whole/one/f; touch /etc/app.conf 2>&1 | grep -o Read-only"
	const want = "deep\nkey=value\nown\none\nRead-only"
	k.sh("sub-path", "main", "echo own >/own/f; echo one >/one/f")
	if got := k.sh("sub-path", "main", look); got != want {
		k.t.Errorf("sub-paths hold %q, want %q", got, want)
	}
	if b, err := os.ReadFile(k.path("host", "sub", "of", "sub-path-"+nodeName, "f")); string(b) != "own\n" {
		k.t.Errorf("subPathExpr on the host: %q, %v", b, err)
	}
	k.sh("sub-path", "main", "touch /end")
	k.awaitContainer("sub-path", "main", "has restarted", restarted(1))
	if got := k.sh("sub-path", "main", look); got != want {
		k.t.Errorf("after a restart sub-paths hold %q, want %q", got, want)
	}
}

// subPathEscape: a sub-path that a symbolic link leads out of the volume does not
// come to crid.
func (k *kubelet) subPathEscape() {
	k.run("refused-sub-path", `
		containers:
		- name: refused
			image: IMAGE
			command: [sleep, "1000"]
			volumeMounts: [{name: host, mountPath: /leak, subPath: out/passwd}]
		volumes:
		- {name: host, hostPath: {path: DIR/host/sub}}
	`)
	k.refused("refused-sub-path", waits{"refused", "CreateContainerConfigError", []string{`subPath for volumeMount "host" of container "refused"`}})
	k.remove("refused-sub-path")
}
