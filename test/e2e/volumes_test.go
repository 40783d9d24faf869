package e2e

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const toolsRef = "registry.k8s.io/e2e/tools:1"

// pullTools is an image of two layers that does not run: something to mount.
func (n *Node) pullTools() string {
	n.T.Helper()
	n.Registry.Push("e2e/tools:1", Image(n.T, v1.Config{},
		Layer(n.T,
			File{Path: "bin", Mode: 0o755, Dir: true},
			File{Path: "bin/hello", Mode: 0o755, Data: []byte("#!/bin/sh\necho hello from an image\n")},
			File{Path: "etc", Mode: 0o755, Dir: true},
			File{Path: "etc/old", Mode: 0o644, Data: []byte("old\n")}),
		Layer(n.T,
			File{Path: "etc/.wh.old", Mode: 0o644},
			File{Path: "etc/new", Mode: 0o644, Data: []byte("new\n")},
			File{Path: "link", Sym: "/etc"},
			File{Path: "out", Sym: "/proc/1/root"})))
	return n.Pull(toolsRef)
}

func imageMount(image, at, sub string, options ...string) *cri.Mount {
	return &cri.Mount{
		ContainerPath: at, Readonly: true, ImageSubPath: sub, MountOptions: options,
		Image: &cri.ImageSpec{Image: image, UserSpecifiedImage: toolsRef},
	}
}

func (n *Node) removeImage(ref string) error {
	_, err := n.Images.RemoveImage(n.Ctx(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}})
	return err
}

// tryCreate is the error of a CreateContainer.
func (n *Node) tryCreate(pod string, p *cri.PodSandboxConfig, c *cri.ContainerConfig) error {
	_, err := n.Runtime.CreateContainer(n.Ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: p})
	return err
}

func TestImageVolume(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	image := n.pullTools()
	p := n.PodConfig("image-volume")
	pod := n.RunPod(p)
	c := n.ContainerConfig("main", "sleep", "1000")
	c.Mounts = []*cri.Mount{
		imageMount(image, "/tools", ""),
		imageMount(toolsRef, "/etc2/", "link/../etc"),
		imageMount(image, "/one-file", "etc/new"),
		imageMount(image, "/data", "", "noexec"),
	}
	id := n.Run(pod, p, c)
	look := func(when string) {
		t.Helper()
		for script, want := range map[string]string{
			"/tools/bin/hello":                            "hello from an image\n",
			"ls /tools/etc /etc2":                         "/etc2:\nnew\n\n/tools/etc:\nnew\n",
			"cat /one-file":                               "new\n",
			"touch /tools/x || echo read-only":            "read-only\n",
			"echo x >/one-file || echo read-only":         "read-only\n",
			"mount -o remount,rw /tools || echo refused":  "refused\n",
			"/data/bin/hello 2>/dev/null || echo no exec": "no exec\n",
		} {
			if got := n.Sh(id, script+" 2>/dev/null"); got != want {
				t.Errorf("%s: %s = %q, want %q", when, script, got, want)
			}
		}
	}
	look("at first")
	for _, m := range n.mounts() {
		if strings.Contains(m, "@") {
			t.Errorf("the node's mount table has the image: %s", m)
		}
	}
	n.checked()
	st := n.Status(id)
	for i, m := range st.Mounts {
		asked := c.Mounts[i]
		if m.ContainerPath != asked.ContainerPath || m.HostPath != "" || !m.Readonly || m.ImageSubPath != asked.ImageSubPath ||
			m.Image.GetImage() != asked.Image.Image || m.Image.GetImageRef() != image || m.Image.GetUserSpecifiedImage() != toolsRef {
			t.Errorf("status of mount %d = %v, want as asked for, and image_ref %s", i, m, image)
		}
	}

	wantCode(t, "RemoveImage of a volume", n.removeImage(toolsRef), codes.FailedPrecondition, id)
	n.Restart()
	look("after a restart of crid")
	wantCode(t, "RemoveImage of a volume after a restart", n.removeImage(image), codes.FailedPrecondition, id)
	if m := n.Status(id).Mounts[0]; m.Image.GetImageRef() != image {
		t.Errorf("image_ref after a restart = %v, want %s", m, image)
	}
	if err := syscall.Kill(n.MonitorPID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.Eventually("the container is adopted", func() bool {
		_, err := n.Runtime.ExecSync(n.Ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}, Timeout: 10})
		return err == nil
	})
	look("in the hands of another monitor")
	// The sandbox alone is in nobody's way, nor is a container that ran the image.
	if _, err := n.Runtime.RemoveContainer(n.Ctx(), &cri.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	if err := n.removeImage(toolsRef); err != nil {
		t.Errorf("RemoveImage when the container is gone = %v", err)
	}
}

func TestImageVolumeErrors(t *testing.T) {
	n := NewNode(t, NodeOptions{NoNetwork: true})
	n.PullBusybox()
	image := n.pullTools()
	p := n.PodConfig("image-errors")
	p.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	pod := n.RunPod(p)
	const failed = "ImageVolumeMountFailed: create container "
	for name, tt := range map[string]struct {
		m     *cri.Mount
		code  codes.Code
		texts []string
	}{
		"absent image":    {imageMount("registry.k8s.io/e2e/absent:1", "/v", ""), codes.NotFound, []string{failed, "config.mounts[0].image: ", "absent:1", "pull it first"}},
		"absent sub path": {imageMount(image, "/v", "etc/absent"), codes.InvalidArgument, []string{failed, "config.mounts[0]: sub path \"etc/absent\" of the image: there is no such"}},
		"link that leads out": {
			imageMount(image, "/v", "out/etc"), codes.InvalidArgument, []string{failed, "there is no such"},
		},
	} {
		c := n.ContainerConfig("main", "sleep", "1000")
		c.Mounts = []*cri.Mount{tt.m}
		err := n.tryCreate(pod, p, c)
		wantCode(t, name, err, tt.code, tt.texts...)
		if !strings.HasPrefix(status.Convert(err).Message(), "ImageVolumeMountFailed") {
			t.Errorf("%s: %v does not begin with kubelet's word", name, err)
		}
	}
	// Nothing of them holds the image.
	if err := n.removeImage(image); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(n.path("root", "rootfs", "*")); len(left) > 0 {
		t.Errorf("left in the store: %v", left)
	}
}
