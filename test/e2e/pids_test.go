package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// targeting has a container join the PID namespace of another, as kubelet's
// ephemeral containers do.
func targeting(c *cri.ContainerConfig, target string) *cri.ContainerConfig {
	c.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET, TargetId: target}
	return c
}

func TestPIDTarget(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("target")
	pod := n.RunPod(p)
	main := n.Run(pod, p, n.ContainerConfig("main", "sleep", "1234"))
	debug := n.Run(pod, p, targeting(n.ContainerConfig("debug", "sh", "-c", "setsid sleep 4321 & exec sleep 4322"), main))
	ns := func(id string) string { return n.Exec(id, "readlink", "/proc/self/ns/pid") }
	if ns(main) != ns(debug) {
		t.Errorf("PID namespaces %q and %q, want the same", ns(main), ns(debug))
	}
	if ps := n.Exec(debug, "ps"); !strings.Contains(ps, "sleep 1234") {
		t.Errorf("the debug container does not see its target:\n%s", ps)
	}
	// Its own end takes its own processes along, and nobody else's.
	n.stop(debug, 0)
	if left := n.inCgroup(debug); len(left) > 0 {
		t.Errorf("left of the debug container: %q", left)
	}
	if ps := n.Exec(main, "ps"); strings.Contains(ps, "sleep 432") || !strings.Contains(ps, "sleep 1234") {
		t.Errorf("in the target after the debug container's end:\n%s", ps)
	}

	again := n.Run(pod, p, targeting(n.ContainerConfig("again", "sleep", "1000"), main))
	waiting := n.CreateContainer(pod, p, targeting(n.ContainerConfig("waiting", "sleep", "1000"), main))
	other := n.PodConfig("other")
	stranger := n.Run(n.RunPod(other), other, n.ContainerConfig("main", "sleep", "1000"))
	create := func(target string) error {
		_, err := n.Runtime.CreateContainer(n.Ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: targeting(n.ContainerConfig("bad", "true"), target), SandboxConfig: p})
		return err
	}
	wantCode(t, "CreateContainer with a target in another pod", create(stranger), codes.InvalidArgument, "target_id")
	wantCode(t, "CreateContainer with a target that does not exist", create("0123"), codes.InvalidArgument, "target_id")
	wantCode(t, "CreateContainer without a target", create(""), codes.InvalidArgument, "target_id")

	// With the target goes its namespace, and all who are in it.
	n.stop(main, 0)
	if s := n.WaitExit(again); s.ExitCode != 137 {
		t.Errorf("exit code of who was in the target's namespace = %d, want 137", s.ExitCode)
	}
	_, err := n.Runtime.StartContainer(n.Ctx(), &cri.StartContainerRequest{ContainerId: waiting})
	wantCode(t, "StartContainer after the target's end", err, codes.FailedPrecondition)
	wantCode(t, "CreateContainer with a target that has exited", create(main), codes.FailedPrecondition, "target_id")
}

// Which namespaces the containers of a pod have in common, with each other, with
// other pods and with the node.
func TestSharedNamespaces(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	namespaces := func(id string) map[string]string {
		found := map[string]string{}
		for _, name := range []string{"net", "ipc", "uts", "pid", "mnt"} {
			found[name] = strings.TrimSpace(n.Exec(id, "readlink", "/proc/self/ns/"+name))
		}
		return found
	}
	pod := func(name string, change func(*cri.NamespaceOption)) (a, b string) {
		p := n.PodConfig(name)
		c, d := n.ContainerConfig("a", "sleep", "1000"), n.ContainerConfig("b", "sleep", "1000")
		for _, o := range []*cri.NamespaceOption{p.Linux.SecurityContext.NamespaceOptions, c.Linux.SecurityContext.NamespaceOptions, d.Linux.SecurityContext.NamespaceOptions} {
			change(o)
		}
		if p.Linux.SecurityContext.NamespaceOptions.Network == cri.NamespaceMode_NODE {
			p.Hostname = ""
		}
		id := n.RunPod(p)
		return n.Run(id, p, c), n.Run(id, p, d)
	}
	node := map[string]string{}
	for _, name := range []string{"net", "ipc", "uts", "pid", "mnt"} {
		link, err := os.Readlink("/proc/self/ns/" + name)
		if err != nil {
			t.Fatal(err)
		}
		node[name] = link
	}
	for _, test := range []struct {
		name    string
		change  func(*cri.NamespaceOption)
		inPod   string // what both containers of the pod have in common
		ofNode  string // of these, what is the node's
		private string // what each has for itself
	}{
		{"usual", func(*cri.NamespaceOption) {}, "net ipc uts", "", "pid mnt"},
		{"pids", func(o *cri.NamespaceOption) { o.Pid = cri.NamespaceMode_POD }, "net ipc uts pid", "", "mnt"},
		{"host-pids", func(o *cri.NamespaceOption) { o.Pid = cri.NamespaceMode_NODE }, "net ipc uts pid", "pid", "mnt"},
		{"host-ipc", func(o *cri.NamespaceOption) { o.Ipc = cri.NamespaceMode_NODE }, "net ipc uts", "ipc", "pid mnt"},
		{"host-net", func(o *cri.NamespaceOption) { o.Network = cri.NamespaceMode_NODE }, "net ipc uts", "net uts", "pid mnt"},
	} {
		t.Run(test.name, func(t *testing.T) {
			first, second := pod(test.name, test.change)
			a, b := namespaces(first), namespaces(second)
			for _, ns := range strings.Fields(test.inPod) {
				if a[ns] != b[ns] || (a[ns] == node[ns]) != strings.Contains(test.ofNode, ns) {
					t.Errorf("%s: %s and %s, the node's is %s", ns, a[ns], b[ns], node[ns])
				}
			}
			for _, ns := range strings.Fields(test.private) {
				if a[ns] == b[ns] || a[ns] == node[ns] {
					t.Errorf("%s: %s and %s, the node's is %s; want three", ns, a[ns], b[ns], node[ns])
				}
			}
			// Shared memory and message queues go with the IPC namespace.
			name := fmt.Sprintf("crid-e2e-%d", os.Getpid())
			n.Sh(first, "echo shared > /dev/shm/"+name+" && mkdir -p /dev/mqueue && : > /dev/mqueue/"+name)
			if got := n.Sh(second, "cat /dev/shm/"+name+"; ls /dev/mqueue"); !strings.Contains(got, "shared\n") || !strings.Contains(got, name) {
				t.Errorf("the other container sees %q", got)
			}
			_, err := os.Stat("/dev/shm/" + name)
			if onNode := err == nil; onNode != strings.Contains(test.ofNode, "ipc") {
				t.Errorf("on the node's /dev/shm: %t", onNode)
			}
			n.Sh(first, "rm /dev/shm/"+name+" /dev/mqueue/"+name)
		})
	}
}
