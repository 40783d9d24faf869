package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// wantCode fails the test unless err has the code and names each of words.
func wantCode(t *testing.T, what string, err error, code codes.Code, words ...string) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("%s = %v, want code %v", what, err, code)
		return
	}
	for _, w := range words {
		if !strings.Contains(status.Convert(err).Message(), w) {
			t.Errorf("%s = %q, want it to name %q", what, status.Convert(err).Message(), w)
		}
	}
}

func TestPodLifecycle(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("life")
	pod := n.RunPod(p)

	s := n.PodStatus(pod)
	if s.State != cri.PodSandboxState_SANDBOX_READY {
		t.Errorf("state = %v, want ready", s.State)
	}
	if !strings.HasPrefix(s.GetNetwork().GetIp(), n.Subnet+".") {
		t.Errorf("ip = %q, want one of %s.0/24", s.GetNetwork().GetIp(), n.Subnet)
	}
	if len(s.Network.AdditionalIps) != 1 || !strings.HasPrefix(s.Network.AdditionalIps[0].Ip, "fd00:") {
		t.Errorf("additional ips = %v, want one of fd00::/8", s.Network.AdditionalIps)
	}
	if s.Annotations["note"] != p.Annotations["note"] || len(s.Annotations) != 1 {
		t.Errorf("annotations = %q, want %q", s.Annotations, p.Annotations)
	}
	if len(s.Labels) != len(p.Labels) || s.Labels["app"] != "life" {
		t.Errorf("labels = %q, want %q", s.Labels, p.Labels)
	}
	if s.CreatedAt == 0 {
		t.Error("created_at = 0")
	}

	c := n.ContainerConfig("main", "sleep", "1000")
	id := n.CreateContainer(pod, p, c)
	if st := n.Status(id); st.State != cri.ContainerState_CONTAINER_CREATED || st.CreatedAt == 0 || st.StartedAt != 0 {
		t.Errorf("after create: %v, created %d, started %d; want created, set, 0", st.State, st.CreatedAt, st.StartedAt)
	}
	n.StartContainer(id)
	if st := n.Status(id); st.State != cri.ContainerState_CONTAINER_RUNNING || st.StartedAt < st.CreatedAt {
		t.Errorf("after start: %v, created %d, started %d", st.State, st.CreatedAt, st.StartedAt)
	}
	if _, err := n.Runtime.StopPodSandbox(n.Ctx(), &cri.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Fatal(err)
	}
	if s := n.PodStatus(pod); s.State != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("after stop: %v, want not ready", s.State)
	}
	if st := n.Status(id); st.State != cri.ContainerState_CONTAINER_EXITED || st.ExitCode != 137 {
		t.Errorf("container after StopPodSandbox: %v, code %d; want exited, 137", st.State, st.ExitCode)
	}
	n.RemovePod(pod)
	_, err := n.Runtime.PodSandboxStatus(n.Ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: pod})
	wantCode(t, "PodSandboxStatus of a removed pod", err, codes.NotFound)
	_, err = n.Runtime.ContainerStatus(n.Ctx(), &cri.ContainerStatusRequest{ContainerId: id})
	wantCode(t, "ContainerStatus of a removed pod's", err, codes.NotFound)
}

func TestUnknownIDs(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	const id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	ctx := n.Ctx()
	_, err := n.Runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id})
	wantCode(t, "PodSandboxStatus", err, codes.NotFound)
	_, err = n.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
	wantCode(t, "ContainerStatus", err, codes.NotFound)
	_, err = n.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id})
	wantCode(t, "StartContainer", err, codes.NotFound)
	_, err = n.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
	wantCode(t, "ExecSync", err, codes.NotFound)
	_, err = n.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: id, Config: n.ContainerConfig("c", "true"), SandboxConfig: n.PodConfig("p")})
	wantCode(t, "CreateContainer", err, codes.NotFound)
	for what, f := range map[string]func() error{
		"StopPodSandbox": func() error {
			_, err := n.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
			return err
		},
		"RemovePodSandbox": func() error {
			_, err := n.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
			return err
		},
		"StopContainer": func() error {
			_, err := n.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id})
			return err
		},
		"RemoveContainer": func() error {
			_, err := n.Runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: id})
			return err
		},
		"RemoveImage": func() error {
			_, err := n.Images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: "registry.k8s.io/none:1"}})
			return err
		},
	} {
		if err := f(); err != nil {
			t.Errorf("%s of an unknown id = %v, want success", what, err)
		}
	}
	r, err := n.Images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: "registry.k8s.io/none:1"}})
	if err != nil || r.Image != nil {
		t.Errorf("ImageStatus of an unknown image = %v, %v; want no image, no error", r.GetImage(), err)
	}
}

func TestRunPodSandboxIsIdempotent(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	p := n.PodConfig("twice")
	first := n.RunPod(p)
	if second := n.RunPod(p); second != first {
		t.Errorf("second RunPodSandbox with the same config = %s, want %s", second, first)
	}
	p.Labels["other"] = "yes"
	_, err := n.Runtime.RunPodSandbox(n.Ctx(), &cri.RunPodSandboxRequest{Config: p})
	wantCode(t, "RunPodSandbox with the same name and another config", err, codes.AlreadyExists, first[:12])
}

func TestSandboxFiles(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("files")
	pod := n.RunPod(p)
	id := n.Run(pod, p, n.ContainerConfig("main", "sleep", "1000"))
	if got, want := n.Exec(id, "cat", "/etc/resolv.conf"), "search e2e.local\nnameserver 10.0.0.10\noptions ndots:5\n"; got != want {
		t.Errorf("resolv.conf = %q, want %q", got, want)
	}
	if got := strings.TrimSpace(n.Exec(id, "hostname")); got != "files" {
		t.Errorf("hostname = %q, want files", got)
	}
	if got := strings.TrimSpace(n.Exec(id, "cat", "/etc/hostname")); got != "files" {
		t.Errorf("/etc/hostname = %q, want files", got)
	}
	if got := n.Sh(id, "echo $HOSTNAME"); got != "files\n" {
		t.Errorf("HOSTNAME = %q, want files", got)
	}
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil {
		t.Fatal(err)
	}
	if got := n.Exec(id, "cat", "/etc/hosts"); got != string(hosts) {
		t.Errorf("/etc/hosts = %q, want the node's %q", got, hosts)
	}
	if got := n.Sh(id, "df -k /dev/shm | tail -1 | awk '{print $2}'"); got != "65536\n" {
		t.Errorf("/dev/shm has %q KiB, want 65536", got)
	}
	// Shared memory is the pod's: what one container writes another reads.
	n.Sh(id, "echo shared > /dev/shm/x")
	other := n.Run(pod, p, n.ContainerConfig("other", "sleep", "1000"))
	if got := n.Exec(other, "cat", "/dev/shm/x"); got != "shared\n" {
		t.Errorf("/dev/shm/x in the pod's other container = %q, want shared", got)
	}
}

func TestPIDNamespaces(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	for _, mode := range []cri.NamespaceMode{cri.NamespaceMode_CONTAINER, cri.NamespaceMode_POD, cri.NamespaceMode_NODE} {
		t.Run(mode.String(), func(t *testing.T) {
			p := n.PodConfig("pid-" + strings.ToLower(mode.String()))
			p.Linux.SecurityContext.NamespaceOptions.Pid = mode
			pod := n.RunPod(p)
			defer n.RemovePod(pod)
			c := n.ContainerConfig("main", "sleep", "1000")
			c.Linux.SecurityContext.NamespaceOptions.Pid = mode
			id := n.Run(pod, p, c)
			c2 := n.ContainerConfig("second", "sleep", "2000")
			c2.Linux.SecurityContext.NamespaceOptions.Pid = mode
			second := n.Run(pod, p, c2)
			ps := n.Exec(id, "ps")
			if sees, want := strings.Contains(ps, "sleep 2000"), mode != cri.NamespaceMode_CONTAINER; sees != want {
				t.Errorf("mode %v: sees the other container's process = %v, want %v:\n%s", mode, sees, want, ps)
			}
			ns := strings.TrimSpace(n.Exec(id, "readlink", "/proc/self/ns/pid"))
			node, err := os.Readlink("/proc/self/ns/pid")
			if err != nil {
				t.Fatal(err)
			}
			if same, want := ns == node, mode == cri.NamespaceMode_NODE; same != want {
				t.Errorf("mode %v: in the node's PID namespace = %v, want %v", mode, same, want)
			}
			if mode == cri.NamespaceMode_POD {
				// An orphan is reaped by the pod's init and does not stay a zombie.
				n.Sh(second, "(sleep 0.05 &) ; exit 0")
				n.Eventually("orphan reaped", func() bool {
					return !strings.Contains(n.Exec(second, "ps"), "sleep 0.05") && !strings.Contains(n.Exec(second, "ps", "-o", "stat"), "Z")
				})
			}
		})
	}
}

// A container may share the pod's PID namespace although the sandbox was not made
// with one: it is made for the first that asks.
func TestPIDNamespaceOnDemand(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("late-pid")
	pod := n.RunPod(p)
	ids := make([]string, 2)
	for i := range ids {
		c := n.ContainerConfig(fmt.Sprintf("shares-%d", i), "sleep", "1000")
		c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
		ids[i] = n.Run(pod, p, c)
	}
	own := n.Run(pod, p, n.ContainerConfig("own", "sleep", "1000"))
	ns := func(id string) string { return n.Exec(id, "readlink", "/proc/self/ns/pid") }
	if ns(ids[0]) != ns(ids[1]) || ns(ids[0]) == ns(own) {
		t.Errorf("PID namespaces %q and %q are to be the same, %q another", ns(ids[0]), ns(ids[1]), ns(own))
	}
	n.Restart()
	n.Exec(ids[0], "true")
}

func TestHostNetworkAndIPC(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("host")
	p.Hostname = ""
	p.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	p.Linux.SecurityContext.NamespaceOptions.Ipc = cri.NamespaceMode_NODE
	pod := n.RunPod(p)
	if ip := n.PodStatus(pod).GetNetwork().GetIp(); ip != "" {
		t.Errorf("ip of a host-network pod = %q, want none", ip)
	}
	c := n.ContainerConfig("main", "sleep", "1000")
	c.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	c.Linux.SecurityContext.NamespaceOptions.Ipc = cri.NamespaceMode_NODE
	id := n.Run(pod, p, c)
	for _, ns := range []string{"net", "ipc", "uts"} {
		want, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.TrimSpace(n.Exec(id, "readlink", "/proc/self/ns/"+ns)); got != want {
			t.Errorf("%s namespace = %s, want the node's %s", ns, got, want)
		}
	}
}

func TestSysctls(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("sysctl")
	p.Linux.Sysctls = map[string]string{"kernel.shm_rmid_forced": "1", "net.ipv4.ip_local_port_range": "20000 30000"}
	pod := n.RunPod(p)
	id := n.Run(pod, p, n.ContainerConfig("main", "sleep", "1000"))
	if got := n.Exec(id, "cat", "/proc/sys/kernel/shm_rmid_forced"); got != "1\n" {
		t.Errorf("kernel.shm_rmid_forced = %q, want 1", got)
	}
	if got := strings.Fields(n.Exec(id, "cat", "/proc/sys/net/ipv4/ip_local_port_range")); len(got) != 2 || got[0] != "20000" {
		t.Errorf("net.ipv4.ip_local_port_range = %q, want 20000 30000", got)
	}
	bad := n.PodConfig("bad-sysctl")
	bad.Linux.Sysctls = map[string]string{"vm.swappiness": "1"}
	_, err := n.Runtime.RunPodSandbox(n.Ctx(), &cri.RunPodSandboxRequest{Config: bad})
	wantCode(t, "RunPodSandbox with a sysctl of the node", err, codes.InvalidArgument, "vm.swappiness")
}

func TestListFilters(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	a, b := n.PodConfig("a"), n.PodConfig("b")
	podA, podB := n.RunPod(a), n.RunPod(b)
	ca := n.Run(podA, a, n.ContainerConfig("main", "sleep", "1000"))
	cb := n.CreateContainer(podB, b, n.ContainerConfig("main", "sleep", "1000"))
	pods := func(f *cri.PodSandboxFilter) (ids []string) {
		r, err := n.Runtime.ListPodSandbox(n.Ctx(), &cri.ListPodSandboxRequest{Filter: f})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range r.Items {
			ids = append(ids, s.Id)
		}
		return ids
	}
	containers := func(f *cri.ContainerFilter) (ids []string) {
		r, err := n.Runtime.ListContainers(n.Ctx(), &cri.ListContainersRequest{Filter: f})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range r.Containers {
			ids = append(ids, s.Id)
		}
		return ids
	}
	one := func(what string, got []string, want string) {
		t.Helper()
		if len(got) != 1 || got[0] != want {
			t.Errorf("%s = %v, want [%s]", what, got, want)
		}
	}
	if got := pods(nil); len(got) != 2 {
		t.Errorf("all pods = %v, want two", got)
	}
	one("pods by truncated id", pods(&cri.PodSandboxFilter{Id: podA[:10]}), podA)
	one("pods by label", pods(&cri.PodSandboxFilter{LabelSelector: map[string]string{"app": "b"}}), podB)
	if got := pods(&cri.PodSandboxFilter{State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_NOTREADY}}); len(got) != 0 {
		t.Errorf("pods not ready = %v, want none", got)
	}
	one("running containers", containers(&cri.ContainerFilter{State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}}), ca)
	one("containers by pod", containers(&cri.ContainerFilter{PodSandboxId: podB[:10]}), cb)
	one("containers by truncated id", containers(&cri.ContainerFilter{Id: ca[:10]}), ca)
}

func TestNetworkNotReady(t *testing.T) {
	n := NewNode(t, NodeOptions{NoNetwork: true})
	condition := func() *cri.RuntimeCondition {
		r, err := n.Runtime.Status(n.Ctx(), &cri.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range r.Status.Conditions {
			if c.Type == "NetworkReady" {
				return c
			}
		}
		t.Fatal("no condition NetworkReady")
		return nil
	}
	if c := condition(); c.Status || !strings.Contains(c.Message, n.CNIDir()) || c.Reason == "" {
		t.Errorf("NetworkReady without configuration = %v, want false with a reason, naming %s", c, n.CNIDir())
	}
	_, err := n.Runtime.RunPodSandbox(n.Ctx(), &cri.RunPodSandboxRequest{Config: n.PodConfig("none")})
	wantCode(t, "RunPodSandbox without a network", err, codes.Unavailable, n.CNIDir())

	n.WriteCNI()
	n.Eventually("network ready once its configuration is there", func() bool { return condition().Status })
	n.RunPod(n.PodConfig("later"))
	if err := os.Remove(filepath.Join(n.CNIDir(), "10-e2e.conflist")); err != nil {
		t.Fatal(err)
	}
	n.Eventually("network not ready once it is gone", func() bool { return !condition().Status })
}

func TestBadRequests(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("bad")
	pod := n.RunPod(p)
	sandbox := func(change func(*cri.PodSandboxConfig)) error {
		c := n.PodConfig("bad2")
		change(c)
		_, err := n.Runtime.RunPodSandbox(n.Ctx(), &cri.RunPodSandboxRequest{Config: c})
		return err
	}
	container := func(change func(*cri.ContainerConfig)) error {
		c := n.ContainerConfig("bad", "true")
		change(c)
		_, err := n.Runtime.CreateContainer(n.Ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: p})
		return err
	}
	for field, err := range map[string]error{
		"metadata":      sandbox(func(c *cri.PodSandboxConfig) { c.Metadata = nil }),
		"metadata.name": sandbox(func(c *cri.PodSandboxConfig) { c.Metadata.Name = "" }),
		"port_mappings": sandbox(func(c *cri.PodSandboxConfig) {
			c.PortMappings = []*cri.PortMapping{{HostPort: 70000, ContainerPort: 1}}
		}),
		"network": sandbox(func(c *cri.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_TARGET
		}),
		"image":          container(func(c *cri.ContainerConfig) { c.Image = nil }),
		"container_path": container(func(c *cri.ContainerConfig) { c.Mounts = []*cri.Mount{{HostPath: "/tmp"}} }),
		"run_as_group":   container(func(c *cri.ContainerConfig) { c.Linux.SecurityContext.RunAsGroup = &cri.Int64Value{Value: 1} }),
		"log_path":       container(func(c *cri.ContainerConfig) { c.LogPath = "../../escape" }),
		"propagation": container(func(c *cri.ContainerConfig) {
			c.Mounts = []*cri.Mount{{HostPath: "/tmp", ContainerPath: "/x", Propagation: 99}}
		}),
	} {
		wantCode(t, "request with a bad "+field, err, codes.InvalidArgument, field)
	}
	err := container(func(c *cri.ContainerConfig) { c.Image.Image = "registry.k8s.io/none:1" })
	wantCode(t, "CreateContainer of an image that is not there", err, codes.NotFound, "registry.k8s.io/none:1")
}
