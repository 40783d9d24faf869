package server

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/monitor"
)

// imageLayers are two layers with links that lead everywhere.
func imageLayers(t *testing.T, n *node) []string {
	t.Helper()
	base := filepath.Join(n.state, "image")
	lower := layers(t, base, 2)
	for _, d := range []string{"sub/deep", "empty"} {
		if err := os.MkdirAll(filepath.Join(lower[1], d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	writeExecutable(t, filepath.Join(lower[1], "sub/deep/run"), "#!/bin/sh\necho it runs\n", 0o755)
	for name, target := range map[string]string{
		"inside": "/sub/deep", "above": "../../../../sub", "outside": n.state, "loop": "loop", "proc": "/proc/self/root",
	} {
		if err := os.Symlink(target, filepath.Join(lower[0], name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(lower[0], "fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	return lower
}

func (n *node) imageRequest(id string, lower []string, sub string, args ...string) monitor.CreateRequest {
	n.t.Helper()
	s := n.spec(args...)
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/image", Type: "bind", Source: "image:0", Options: []string{"rbind", "ro", "nosuid", "nodev"}})
	r := n.request(id, s)
	r.Images = []monitor.ImageMount{{Source: "image:0", Name: "config.mounts[0]", Lower: lower, SubPath: sub}}
	return r
}

// noImageMounts fails the test when an image is mounted in the monitor.
func (n *node) noImageMounts() {
	n.t.Helper()
	mounts, err := sys.Mounts()
	if err != nil {
		n.t.Fatal(err)
	}
	for _, m := range mounts {
		if strings.HasPrefix(m.Point, n.state) && strings.Contains(m.Point, imageSign) {
			n.t.Errorf("still mounted: %s", m.Point)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(n.state, "rootfs", "*", "*"+imageSign+"*")); len(left) > 0 {
		n.t.Errorf("mount points are left: %v", left)
	}
}

func TestImageMount(t *testing.T) {
	n := newNode(t)
	lower := imageLayers(t, n)
	for i, tt := range []struct{ sub, script, want string }{
		{"", "cat /image/top /image/file1; /image/sub/deep/run; touch /image/x || echo read-only", "0xit runs\nread-only\n"},
		{"sub", "ls /image; /image/deep/run", "deep\nit runs\n"},
		{"inside", "/image/run", "it runs\n"},
		{"above/deep/", "/image/run", "it runs\n"},
		{"/sub/./deep", "/image/run", "it runs\n"},
		{"sub/deep/run", "/image; echo x >/image || echo read-only", "it runs\nread-only\n"},
		{"empty", "ls /image | grep -c .", "0\n"},
	} {
		id := "image" + string(rune('a'+i))
		n.create(n.imageRequest(id, lower, tt.sub, "sh", "-c", tt.script+"; sleep 1000"))
		n.noImageMounts()
		n.start(id)
		out, errOut, _, err := n.exec(id, "sh", "-c", tt.script)
		if err != nil || out != tt.want {
			t.Errorf("sub path %q: %q (%s), %v, want %q", tt.sub, out, errOut, err, tt.want)
		}
		var options string
		for _, m := range n.mountsIn(id) {
			if m.Point == "/image" {
				options = m.Options
			}
		}
		for _, o := range []string{"ro", "nosuid", "nodev"} {
			if !strings.Contains(","+options+",", ","+o+",") {
				t.Errorf("sub path %q: mount options %s, want %s", tt.sub, options, o)
			}
		}
	}
}

// mountsIn is the mount table of a running container.
func (n *node) mountsIn(id string) []sys.MountInfo {
	n.t.Helper()
	c, err := n.server.table.container(id)
	if err != nil {
		n.t.Fatal(err)
	}
	mounts, err := sys.MountsOf(c.pid)
	if err != nil {
		n.t.Fatal(err)
	}
	return mounts
}

func TestImageMountErrors(t *testing.T) {
	n := newNode(t)
	lower := imageLayers(t, n)
	for _, tt := range []struct {
		name string
		edit func(*monitor.CreateRequest)
		kind errkind.Kind
		want string
	}{
		{"absent", func(r *monitor.CreateRequest) { r.Images[0].SubPath = "absent" }, errkind.Invalid, `"absent" of the image: there is no such`},
		{"below a file", func(r *monitor.CreateRequest) { r.Images[0].SubPath = "top/x" }, errkind.Invalid, "there is no such"},
		{"outside", func(r *monitor.CreateRequest) { r.Images[0].SubPath = "outside" }, errkind.Invalid, "there is no such"},
		{"magic", func(r *monitor.CreateRequest) { r.Images[0].SubPath = "proc" }, errkind.Invalid, "symbolic links"},
		{"loop", func(r *monitor.CreateRequest) { r.Images[0].SubPath = "loop" }, errkind.Invalid, "symbolic links"},
		{"fifo", func(r *monitor.CreateRequest) { r.Images[0].SubPath = "fifo" }, errkind.Invalid, "neither a folder nor a regular file"},
		{"no layer", func(r *monitor.CreateRequest) { r.Images[0].Lower = nil }, errkind.Invalid, "no lower layer"},
		{"lost layer", func(r *monitor.CreateRequest) { r.Images[0].Lower = append(lower[:1:1], n.state+"/absent") }, errkind.Other, "absent"},
		{"unused", func(r *monitor.CreateRequest) { r.Images[0].Source = "image:7" }, errkind.Invalid, "no mount of image:7"},
	} {
		r := n.imageRequest("bad", lower, "", "true")
		tt.edit(&r)
		_, _, err := n.client.Create(context.Background(), r)
		if errkind.Of(err) != tt.kind || !strings.HasPrefix(err.Error(), "ImageVolumeMountFailed: config.mounts[0]: ") || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: Create = %v (%v), want %v with %q", tt.name, err, errkind.Of(err), tt.kind, tt.want)
		}
		n.noImageMounts()
	}
	// A create that fails later.
	r := n.imageRequest("bad", lower, "", "true")
	var spec specs.Spec
	if err := json.Unmarshal(r.Spec, &spec); err != nil {
		t.Fatal(err)
	}
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/x", Type: "bind", Source: n.state + "/absent", Options: []string{"rbind"}})
	r.Spec, _ = json.Marshal(spec)
	if _, _, err := n.client.Create(context.Background(), r); err == nil {
		t.Error("Create with a missing source = nil")
	}
	n.noImageMounts()
}

// What a monitor that was killed while it made a container has left goes with
// the Delete of that container.
func TestImageMountOfDeadMonitor(t *testing.T) {
	n := newNode(t)
	dir := n.server.rootfs("dead") + imageSign + "0"
	if err := mountRootfs(dir, monitor.Rootfs{Lower: imageLayers(t, n)}, ""); err != nil {
		t.Fatal(err)
	}
	other := n.server.rootfs("dead2") + imageSign + "0"
	if err := os.MkdirAll(other, 0o755); err != nil {
		t.Fatal(err)
	}
	n.delete("dead")
	if _, err := os.Stat(other); err != nil {
		t.Errorf("the mount point of another container: %v", err)
	}
	n.delete("dead2")
	n.noImageMounts()
}

// TestOpenWhileOthersRename: a link upwards is found, though the kernel says that it
// cannot be sure while anybody on the node renames or mounts.
func TestOpenWhileOthersRename(t *testing.T) {
	dir, busy := t.TempDir(), t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "sub/deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../sub/deep", filepath.Join(dir, "sub/up")); err != nil {
		t.Fatal(err)
	}
	a, b := filepath.Join(busy, "a"), filepath.Join(busy, "b")
	if err := os.Mkdir(a, 0o700); err != nil {
		t.Fatal(err)
	}
	var ended atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for !ended.Load() {
			_ = os.Rename(a, b)
			_ = os.Rename(b, a)
		}
	})
	defer wg.Wait()
	defer ended.Store(true)
	for range 5000 {
		if path, err := inImage(dir, "sub/up"); err != nil || path != filepath.Join(dir, "sub/deep") {
			t.Fatalf("sub path of an image: %s, %v", path, err)
		}
		if err := ownWorkingDir(dir, "/sub/up", os.Getuid(), os.Getgid()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSubPathBelowLink: the state folder may be named by a link, as /var/run is one.
func TestSubPathBelowLink(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "real/image/sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	path, err := inImage(filepath.Join(dir, "link/image"), "sub")
	if want := filepath.Join(dir, "real/image/sub"); err != nil || path != want {
		t.Errorf("sub path: %q, %v, want %s", path, err, want)
	}
}
