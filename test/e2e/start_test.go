package e2e

import (
	"os"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pushBroken serves and pulls an image with programs that cannot be executed.
func (n *Node) pushBroken() string {
	n.T.Helper()
	n.Registry.Push("e2e/broken:1", Image(n.T, v1.Config{Env: []string{"PATH=/bin"}}, BusyboxLayer(n.T), Layer(n.T,
		File{Path: "app/plain", Mode: 0o644, Data: []byte("#!/bin/sh\n")},
		File{Path: "app/script", Mode: 0o755, Data: []byte("#!/no/such/interpreter\n")},
		File{Path: "app/text", Mode: 0o755, Data: []byte("neither a script nor a program\n")},
	)))
	n.Pull("registry.k8s.io/e2e/broken:1")
	return "registry.k8s.io/e2e/broken:1"
}

// A program that cannot be executed: the container can be created, its start says
// why, and so does its status from then on, in the words that kubelet knows.
func TestStartFailures(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	image := n.pushBroken()
	p := n.PodConfig("broken")
	pod := n.RunPod(p)
	var last string
	for _, test := range []struct {
		name, command string
		want          []string // in the message
	}{
		{"missing", "/no/such", []string{"/no/such", "no such file"}},
		{"not-in-path", "nosuch", []string{`"nosuch"`, "not found"}},
		{"not-executable", "/app/plain", []string{"/app/plain", "permission denied"}},
		{"no-interpreter", "/app/script", []string{"/app/script", "no such file"}},
		{"no-program", "/app/text", []string{"/app/text", "exec format error"}},
		{"folder", "/app", []string{"/app"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := n.ContainerConfig(test.name, test.command)
			c.Image.Image = image
			id := n.CreateContainer(pod, p, c)
			_, err := n.Runtime.StartContainer(n.Ctx(), &cri.StartContainerRequest{ContainerId: id})
			wantCode(t, "StartContainer", err, codes.InvalidArgument, test.want...)
			s := n.WaitExit(id)
			if s.ExitCode != 128 || s.Reason != "StartError" || s.StartedAt == 0 || s.FinishedAt < s.StartedAt {
				t.Errorf("code %d, reason %q, started %d, finished %d; want 128, StartError, times", s.ExitCode, s.Reason, s.StartedAt, s.FinishedAt)
			}
			for _, w := range test.want {
				if !strings.Contains(s.Message, w) {
					t.Errorf("message %q, want it to name %q", s.Message, w)
				}
			}
			if left := n.inCgroup(id); len(left) > 0 {
				t.Errorf("left in its cgroup: %q", left)
			}
			n.stop(id, 10)
			last = id
		})
	}
	want := n.Status(last)
	n.Restart()
	if s := n.Status(last); s.Reason != "StartError" || s.Message != want.Message || s.FinishedAt != want.FinishedAt {
		t.Errorf("after a restart: %v, want %v", s, want)
	}
}

// What cannot even be created is refused with the field's name, and leaves nothing.
func TestCreateFailures(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	image := n.pushBroken()
	p := n.PodConfig("refused")
	pod := n.RunPod(p)
	n.WriteFile(n.path("file"), "")
	for _, test := range []struct {
		name   string
		change func(c *cri.ContainerConfig)
		want   string
	}{
		{"no command", func(c *cri.ContainerConfig) { c.Command = nil }, "command"},
		{"user", func(c *cri.ContainerConfig) { c.Linux.SecurityContext.RunAsUsername = "nobody-knows" }, "nobody-knows"},
		{"working folder is a file", func(c *cri.ContainerConfig) { c.WorkingDir = "/app/plain" }, "config.working_dir: /app/plain"},
		{"working folder in a file", func(c *cri.ContainerConfig) { c.WorkingDir = "/app/plain/x" }, "config.working_dir: /app/plain/x"},
		{"working folder in /proc", func(c *cri.ContainerConfig) { c.WorkingDir = "/proc/x" }, "config.working_dir: /proc/x"},
		{"working folder of a long name", func(c *cri.ContainerConfig) { c.WorkingDir = "/" + strings.Repeat("x", 256) }, "config.working_dir: "},
		{"file over a folder", func(c *cri.ContainerConfig) {
			c.Mounts = []*cri.Mount{{HostPath: n.path("file"), ContainerPath: "/app"}}
		}, "config.mounts: "},
		{"folder over a file", func(c *cri.ContainerConfig) {
			c.Mounts = []*cri.Mount{{HostPath: n.Dir, ContainerPath: "/app/plain"}}
		}, "config.mounts: "},
		{"mount in /proc", func(c *cri.ContainerConfig) {
			c.Mounts = []*cri.Mount{{HostPath: n.Dir, ContainerPath: "/proc/sys"}}
		}, "config.mounts: "},
		{"no such CPU", func(c *cri.ContainerConfig) {
			c.Linux.Resources = &cri.LinuxContainerResources{CpusetCpus: "8191"}
		}, "config.linux.resources.cpuset_cpus: "},
		{"no such memory node", func(c *cri.ContainerConfig) {
			c.Linux.Resources = &cri.LinuxContainerResources{CpusetMems: "1023"}
		}, "config.linux.resources.cpuset_mems: "},
		{"more CPU than there can be", func(c *cri.ContainerConfig) {
			c.Linux.Resources = &cri.LinuxContainerResources{CpuQuota: 1 << 44}
		}, "config.linux.resources.cpu_quota: "},
		{"log of a long name", func(c *cri.ContainerConfig) { c.LogPath = strings.Repeat("x", 256) }, "config.log_path: "},
		{"log is a folder", func(c *cri.ContainerConfig) { c.LogPath = "folder" }, "log_path"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := os.MkdirAll(p.LogDirectory+"/folder", 0o755); err != nil {
				t.Fatal(err)
			}
			c := n.ContainerConfig("c", "sleep", "1000")
			c.Image.Image, c.LogPath = image, "logs-of-c/0.log"
			test.change(c)
			_, err := n.Runtime.CreateContainer(n.Ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: p})
			wantCode(t, "CreateContainer", err, codes.InvalidArgument, test.want)
			for _, dir := range []string{"root/containers", "root/rootfs", "state/monitor/runc", "state/monitor/rootfs", "state/monitor/journal"} {
				if e, _ := os.ReadDir(n.path(dir)); len(e) > 0 {
					t.Errorf("left behind: %s/%s", dir, e[0].Name())
				}
			}
			for _, g := range n.cgroups() {
				if i := strings.LastIndex(g, "/crid-"); i >= 0 && !strings.Contains(g[i:], "e2e") {
					t.Errorf("left behind: %s", g)
				}
			}
			if _, err := os.Stat(p.LogDirectory + "/logs-of-c/0.log"); err == nil {
				t.Error("left behind: its log file")
			}
		})
	}
}
