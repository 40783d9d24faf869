package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// BusyboxRef is the name by which tests use Busybox.
const BusyboxRef = "registry.k8s.io/e2e/busybox:1"

// Ctx is a context for one call, of two minutes as kubelet's are.
func (n *Node) Ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	n.T.Cleanup(cancel)
	return ctx
}

// PullBusybox serves Busybox and pulls it; it returns the image ID.
func (n *Node) PullBusybox() string {
	n.T.Helper()
	n.Registry.Push("e2e/busybox:1", Busybox(n.T))
	return n.Pull(BusyboxRef)
}

// Pull pulls ref or fails the test; it returns the image ID.
func (n *Node) Pull(ref string) string {
	n.T.Helper()
	r, err := n.Images.PullImage(n.Ctx(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
	if err != nil {
		n.T.Fatalf("PullImage(%s) = %v", ref, err)
	}
	return r.ImageRef
}

// PodConfig is a pod as kubelet would send it; tests change it before RunPod.
func (n *Node) PodConfig(name string) *cri.PodSandboxConfig {
	return &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Uid: name + "-uid", Namespace: "e2e"},
		Hostname:     name,
		LogDirectory: n.path("logs", name),
		Labels:       map[string]string{"app": name, "io.kubernetes.pod.uid": name + "-uid"},
		Annotations:  map[string]string{"note": "Some / annotation = verbatim\n"},
		DnsConfig:    &cri.DNSConfig{Servers: []string{"10.0.0.10"}, Searches: []string{"e2e.local"}, Options: []string{"ndots:5"}},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: n.Cgroup,
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
			},
		},
	}
}

// RunPod runs a sandbox or fails the test.
func (n *Node) RunPod(c *cri.PodSandboxConfig) string {
	n.T.Helper()
	r, err := n.Runtime.RunPodSandbox(n.Ctx(), &cri.RunPodSandboxRequest{Config: c})
	if err != nil {
		n.T.Fatalf("RunPodSandbox(%s) = %v\n%s", c.Metadata.Name, err, tail(n.Log()))
	}
	return r.PodSandboxId
}

// ContainerConfig runs args in busybox.
func (n *Node) ContainerConfig(name string, args ...string) *cri.ContainerConfig {
	return &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name},
		Image:    &cri.ImageSpec{Image: BusyboxRef},
		Command:  args,
		LogPath:  name + "/0.log",
		Labels:   map[string]string{"container": name},
		Linux:    &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}}},
	}
}

// CreateContainer creates a container in pod or fails the test.
func (n *Node) CreateContainer(pod string, p *cri.PodSandboxConfig, c *cri.ContainerConfig) string {
	n.T.Helper()
	r, err := n.Runtime.CreateContainer(n.Ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: p})
	if err != nil {
		n.T.Fatalf("CreateContainer(%s) = %v\n%s", c.Metadata.Name, err, tail(n.Log()))
	}
	return r.ContainerId
}

// StartContainer starts a container or fails the test.
func (n *Node) StartContainer(id string) {
	n.T.Helper()
	if _, err := n.Runtime.StartContainer(n.Ctx(), &cri.StartContainerRequest{ContainerId: id}); err != nil {
		n.T.Fatalf("StartContainer = %v\n%s", err, tail(n.Log()))
	}
}

// Run creates and starts.
func (n *Node) Run(pod string, p *cri.PodSandboxConfig, c *cri.ContainerConfig) string {
	n.T.Helper()
	id := n.CreateContainer(pod, p, c)
	n.StartContainer(id)
	return id
}

// Status is a container's status.
func (n *Node) Status(id string) *cri.ContainerStatus {
	n.T.Helper()
	r, err := n.Runtime.ContainerStatus(n.Ctx(), &cri.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		n.T.Fatalf("ContainerStatus(%s) = %v", id, err)
	}
	return r.Status
}

// PodStatus is a sandbox's status.
func (n *Node) PodStatus(id string) *cri.PodSandboxStatus {
	n.T.Helper()
	r, err := n.Runtime.PodSandboxStatus(n.Ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil {
		n.T.Fatalf("PodSandboxStatus(%s) = %v", id, err)
	}
	return r.Status
}

// WaitExit waits until the container has exited, at most a minute.
func (n *Node) WaitExit(id string) *cri.ContainerStatus {
	n.T.Helper()
	var s *cri.ContainerStatus
	n.Eventually("container exits", func() bool {
		s = n.Status(id)
		return s.State == cri.ContainerState_CONTAINER_EXITED
	})
	return s
}

// Eventually polls until ok is true; it fails the test after a minute.
func (n *Node) Eventually(what string, ok func() bool) {
	n.T.Helper()
	end := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(end) {
			n.T.Fatalf("not within a minute: %s\n%s", what, tail(n.Log()))
		}
		time.Sleep(10 * time.Millisecond) //nolint:forbidigo // polls another process, as kubelet does
	}
}

// Exec runs args in the container and returns stdout; anything but exit code 0 fails the test.
func (n *Node) Exec(id string, args ...string) string {
	n.T.Helper()
	r, err := n.Runtime.ExecSync(n.Ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: args, Timeout: 60})
	if err != nil {
		n.T.Fatalf("ExecSync(%q) = %v\n%s", args, err, tail(n.Log()))
	}
	if r.ExitCode != 0 {
		n.T.Fatalf("ExecSync(%q): exit code %d, stdout %q, stderr %q", args, r.ExitCode, r.Stdout, r.Stderr)
	}
	return string(r.Stdout)
}

// Sh is Exec of a shell command.
func (n *Node) Sh(id, script string) string {
	n.T.Helper()
	return n.Exec(id, "sh", "-c", script)
}

// ContainerLog is the raw content of the container's log file.
func (n *Node) ContainerLog(pod *cri.PodSandboxConfig, c *cri.ContainerConfig) string {
	n.T.Helper()
	b, err := os.ReadFile(filepath.Join(pod.LogDirectory, c.LogPath))
	if err != nil {
		n.T.Fatal(err)
	}
	return string(b)
}

// RemovePod stops and removes a sandbox as kubelet does, or fails the test.
func (n *Node) RemovePod(id string) {
	n.T.Helper()
	if err := n.removePod(id); err != nil {
		n.T.Fatal(err)
	}
}

func (n *Node) removePod(id string) error {
	if _, err := n.Runtime.StopPodSandbox(n.Ctx(), &cri.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("StopPodSandbox(%s) = %w", id, err)
	}
	if _, err := n.Runtime.RemovePodSandbox(n.Ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("RemovePodSandbox(%s) = %w", id, err)
	}
	return nil
}

// RemoveAll removes every pod there is.
func (n *Node) RemoveAll() {
	n.T.Helper()
	r, err := n.Runtime.ListPodSandbox(n.Ctx(), &cri.ListPodSandboxRequest{})
	if err != nil {
		n.T.Errorf("ListPodSandbox = %v", err)
		return
	}
	for _, s := range r.Items {
		if err := n.removePod(s.Id); err != nil {
			n.T.Error(err)
		}
	}
}

// polls are the log lines of what this package asks again and again.
var polls = regexp.MustCompile(`(?m)^.*rpc="(Status|ContainerStatus|Version)".*err=<?nil.*\n|^.*"Handled request" rpc="(Status|ContainerStatus|Version)" request=\d+ duration="[^"]*"\n`)

// tail is the end of a long text, for failure messages.
func tail(s string) string {
	const most = 6000
	s = polls.ReplaceAllString(s, "")
	if len(s) > most {
		s = s[len(s)-most:]
	}
	return string(bytes.TrimSpace([]byte(s)))
}
