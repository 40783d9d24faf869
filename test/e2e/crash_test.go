//go:build failpoint

package e2e

import (
	"os"
	"slices"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// life is one pod from pull to removal, each step with the retry that kubelet
// makes when the runtime is gone: start crid again, ask again.
type life struct {
	n       *Node
	p       *cri.PodSandboxConfig
	c       *cri.ContainerConfig
	crashes int
	step    string // for messages
	crashed string // the step during which crid was killed
}

// try calls f until it succeeds; it restarts crid where f's failure is its death.
func (l *life) try(step string, f func() error) {
	l.n.T.Helper()
	l.step = step
	for range 3 {
		err := f()
		if err == nil {
			return
		}
		// The connection breaks a moment before the process can be waited for.
		l.n.settle(func() bool { return !l.n.Alive() })
		if l.n.Alive() {
			l.n.T.Fatalf("%s (crid was killed in: %q) = %v\n%s", step, l.crashed, err, tail(l.n.Log()))
		}
		l.crashes++
		l.crashed = step
		l.n.Programs.Env = nil // the failpoint is for one crash
		l.n.forget()
		l.n.Start()
	}
	l.n.T.Fatalf("%s fails again and again", step)
}

// up pulls, runs, creates and starts.
func (l *life) up() (pod, container string) {
	n := l.n
	l.try("PullImage", func() error {
		_, err := n.Images.PullImage(n.Ctx(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: BusyboxRef}})
		return err
	})
	l.try("RunPodSandbox", func() error {
		r, err := n.Runtime.RunPodSandbox(n.Ctx(), &cri.RunPodSandboxRequest{Config: l.p})
		pod = r.GetPodSandboxId()
		return err
	})
	l.try("CreateContainer", func() error {
		r, err := n.Runtime.CreateContainer(n.Ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: l.c, SandboxConfig: l.p})
		container = r.GetContainerId()
		return err
	})
	l.try("StartContainer", func() error {
		s, err := n.Runtime.ContainerStatus(n.Ctx(), &cri.ContainerStatusRequest{ContainerId: container})
		if err != nil || s.Status.State == cri.ContainerState_CONTAINER_RUNNING {
			return err // killed after it was started: kubelet finds it running
		}
		_, err = n.Runtime.StartContainer(n.Ctx(), &cri.StartContainerRequest{ContainerId: container})
		return err
	})
	return pod, container
}

// down stops and removes, as kubelet does.
func (l *life) down(pod, container string) {
	n := l.n
	l.try("StopContainer", func() error {
		_, err := n.Runtime.StopContainer(n.Ctx(), &cri.StopContainerRequest{ContainerId: container})
		return err
	})
	l.try("StopPodSandbox", func() error {
		_, err := n.Runtime.StopPodSandbox(n.Ctx(), &cri.StopPodSandboxRequest{PodSandboxId: pod})
		return err
	})
	l.try("RemoveContainer", func() error {
		_, err := n.Runtime.RemoveContainer(n.Ctx(), &cri.RemoveContainerRequest{ContainerId: container})
		return err
	})
	l.try("RemovePodSandbox", func() error {
		_, err := n.Runtime.RemovePodSandbox(n.Ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: pod})
		return err
	})
	l.try("RemoveImage", func() error {
		_, err := n.Images.RemoveImage(n.Ctx(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: BusyboxRef}})
		return err
	})
}

func newLife(n *Node) *life {
	l := &life{n: n, p: n.PodConfig("crash"), c: n.ContainerConfig("main", "sleep", "1000")}
	// With a PID namespace of the pod, the holder is on the way too.
	l.p.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	l.c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	// As is what an image as a volume needs.
	l.c.Mounts = []*cri.Mount{imageMount(BusyboxRef, "/again", "bin")}
	return l
}

// TestCrashAtEveryFailpoint kills crid at each failpoint that a pod's life
// passes, starts it again, goes on as kubelet would, and finds a working pod
// and, after its removal, nothing left.
func TestCrashAtEveryFailpoint(t *testing.T) {
	crashEverywhere(t, newLife, failpointsOfALife(t, newLife))
}

// crashEverywhere lives the life that begin begins once for each of points.
func crashEverywhere(t *testing.T, begin func(*Node) *life, points []string) {
	t.Helper()
	t.Logf("%d failpoints: %s", len(points), strings.Join(points, " "))
	const fewest = 15 // so that a lost tag or trace does not make this test pass
	if len(points) < fewest {
		t.Fatalf("a pod's life passes %d failpoints, want at least %d", len(points), fewest)
	}
	n := NewNode(t, NodeOptions{})
	n.Registry.Push("e2e/busybox:1", Busybox(t))
	before := n.snapshot()
	for _, point := range points {
		ok := t.Run(point, func(t *testing.T) {
			outer := n.T
			n.T = t
			defer func() { n.T = outer }()
			n.Stop()
			n.Programs.Env = []string{"CRID_FAILPOINTS=" + point + "=kill"}
			l := begin(n)
			n.tolerant = true
			n.Start()
			n.tolerant = false
			if !n.Alive() {
				l.crashes++
				n.Programs.Env = nil
				n.forget()
				n.Start()
			}
			pod, container := l.up()
			if got := n.Exec(container, "echo", "alive"); got != "alive\n" {
				t.Errorf("exec = %q", got)
			}
			if len(l.c.Mounts) > 0 {
				n.Exec(container, "/again/busybox", "true")
			}
			if ip := n.PodStatus(pod).GetNetwork().GetIp(); ip == "" {
				t.Error("the pod has no address")
			}
			l.down(pod, container)
			if l.crashes == 0 {
				t.Errorf("crid was not killed at %s", point)
			}
			n.Programs.Env = nil
			var left []string
			n.settle(func() bool { left = n.left(before); return len(left) == 0 })
			if len(left) > 0 {
				t.Errorf("left behind after a crash in %s: %v", l.crashed, left)
			}
			n.noImageFiles()
		})
		if !ok {
			n.RemoveAll() // the next one starts from nothing
		}
	}
}

// failpointsOfALife are the names in the order in which they are first passed.
func failpointsOfALife(t *testing.T, begin func(*Node) *life) []string {
	t.Helper()
	trace := t.TempDir() + "/trace"
	n := NewNode(t, NodeOptions{Env: []string{"CRID_FAILPOINTS_TRACE=" + trace}})
	n.Registry.Push("e2e/busybox:1", Busybox(t))
	l := begin(n)
	pod, container := l.up()
	l.down(pod, container)
	b, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	var points []string
	for name := range strings.Lines(string(b)) {
		if name = strings.TrimSpace(name); !slices.Contains(points, name) {
			points = append(points, name)
		}
	}
	return points
}

// forget drops a crid that has ended by itself.
func (n *Node) forget() {
	if n.conn != nil {
		_ = n.conn.Close()
	}
	_ = n.log.Close()
	n.daemon = nil
}
