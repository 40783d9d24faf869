package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What kubelet compares, by equality, with what it sent: over a restart, in the
// lists by which it finds its pods, and in a container that was made from an
// image's ID, as kubelet does it.
func TestWhatKubeletReliesOn(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	image := n.PullBusybox()
	p := n.PodConfig("kubelets")
	odd := map[string]string{
		"io.kubernetes.container.terminationMessagePolicy": "FallbackToLogsOnError",
		"odd/bytes": "tab\t, quote \", back\\slash, \u2028, é, \x00NUL, line\n\n", "odd/empty": "", "odd/json": `{"a":[1,2.50]}`,
	}
	maps.Copy(p.Annotations, odd)
	pod := n.RunPod(p)
	other := n.RunPod(n.PodConfig("other"))

	n.WriteFile(n.path("volume", "termination"), "")
	if err := os.Symlink(n.path("volume"), n.path("link")); err != nil {
		t.Fatal(err)
	}
	c := n.ContainerConfig("main", "sh", "-c", "echo last words > /dev/termination-log; exit 3")
	c.Image = &cri.ImageSpec{Image: image, UserSpecifiedImage: BusyboxRef}
	c.Labels["io.kubernetes.pod.uid"] = "kubelets-uid"
	c.Annotations = odd
	c.Mounts = []*cri.Mount{
		{ContainerPath: "/dev/termination-log", HostPath: n.path("link") + "//termination"},
		{ContainerPath: "/data/", HostPath: n.path("link"), Readonly: true, Propagation: cri.MountPropagation_PROPAGATION_PRIVATE},
	}
	id := n.Run(pod, p, c)
	n.WaitExit(id)
	running := n.ContainerConfig("second", "sleep", "1000")
	running.Labels["io.kubernetes.pod.uid"] = "kubelets-uid"
	second := n.Run(pod, p, running)

	look := func() (*cri.PodSandboxStatus, *cri.ContainerStatus) {
		t.Helper()
		ps, cs := n.PodStatus(pod), n.Status(id)
		if !maps.Equal(ps.Annotations, p.Annotations) || !maps.Equal(ps.Labels, p.Labels) {
			t.Errorf("pod has annotations %q, labels %q; want %q, %q", ps.Annotations, ps.Labels, p.Annotations, p.Labels)
		}
		if !maps.Equal(cs.Annotations, c.Annotations) || !maps.Equal(cs.Labels, c.Labels) {
			t.Errorf("container has annotations %q, labels %q; want %q, %q", cs.Annotations, cs.Labels, c.Annotations, c.Labels)
		}
		for i, m := range c.Mounts {
			if i >= len(cs.Mounts) || cs.Mounts[i].HostPath != m.HostPath || cs.Mounts[i].ContainerPath != m.ContainerPath || cs.Mounts[i].Readonly != m.Readonly {
				t.Errorf("mounts = %v, want them as sent: %v", cs.Mounts, c.Mounts)
			}
		}
		if b, err := os.ReadFile(cs.Mounts[0].HostPath); err != nil || string(b) != "last words\n" {
			t.Errorf("termination message = %q, %v", b, err)
		}
		if cs.ImageId != image || !strings.Contains(cs.ImageRef, "@sha256:") || cs.Image.Image != BusyboxRef || cs.Image.UserSpecifiedImage != BusyboxRef {
			t.Errorf("image_id %q, image_ref %q, image %v; want %s, a repository digest, %s", cs.ImageId, cs.ImageRef, cs.Image, image, BusyboxRef)
		}
		if cs.LogPath != p.LogDirectory+"/main/0.log" || cs.Reason != "Error" || cs.ExitCode != 3 || cs.Metadata.Name != "main" {
			t.Errorf("status = %v", cs)
		}
		if ps.GetLinux().GetNamespaces().GetOptions().GetNetwork() != cri.NamespaceMode_POD || ps.GetNetwork().GetIp() == "" || ps.State != cri.PodSandboxState_SANDBOX_READY {
			t.Errorf("sandbox = %v, want its network mode, an address, ready", ps)
		}
		return ps, cs
	}
	ps, cs := look()
	n.Restart()
	ps2, cs2 := look()
	if ps.String() != ps2.String() || cs.String() != cs2.String() {
		t.Errorf("after a restart:\n%v\n%v\nwant\n%v\n%v", ps2, cs2, ps, cs)
	}

	list := func(f *cri.ContainerFilter) (ids []string) {
		t.Helper()
		r, err := n.Runtime.ListContainers(n.Ctx(), &cri.ListContainersRequest{Filter: f})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range r.Containers {
			ids = append(ids, c.Id)
			if c.ImageId == "" || c.ImageRef == "" || c.PodSandboxId != pod || c.CreatedAt == 0 {
				t.Errorf("listed: %v", c)
			}
		}
		return ids
	}
	byUID := map[string]string{"io.kubernetes.pod.uid": "kubelets-uid"}
	exited := &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_EXITED}
	for _, test := range []struct {
		what   string
		filter *cri.ContainerFilter
		want   []string
	}{
		{"of the pod", &cri.ContainerFilter{LabelSelector: byUID}, []string{id, second}},
		{"of the pod that have exited", &cri.ContainerFilter{LabelSelector: byUID, State: exited}, []string{id}},
		{"with one label more", &cri.ContainerFilter{LabelSelector: map[string]string{"io.kubernetes.pod.uid": "kubelets-uid", "container": "second"}}, []string{second}},
		{"with another value", &cri.ContainerFilter{LabelSelector: map[string]string{"io.kubernetes.pod.uid": "kubelets"}}, nil},
		{"of another sandbox", &cri.ContainerFilter{PodSandboxId: other, LabelSelector: byUID}, nil},
		{"of an ID and another state", &cri.ContainerFilter{Id: second, State: exited}, nil},
	} {
		got := list(test.filter)
		slices.Sort(got)
		slices.Sort(test.want)
		if !slices.Equal(got, test.want) {
			t.Errorf("containers %s = %v, want %v", test.what, got, test.want)
		}
	}
	r, err := n.Runtime.ListPodSandbox(n.Ctx(), &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{
		LabelSelector: byUID, State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY},
	}})
	if err != nil || len(r.Items) != 1 || r.Items[0].Id != pod {
		t.Errorf("ready sandboxes of the pod = %v, %v; want %s", r.GetItems(), err, pod)
	}

	// Every call takes the beginning of an ID.
	n.Exec(second[:12], "true")
	n.stop(second[:12], 0)
	if _, err := n.Runtime.RemoveContainer(n.Ctx(), &cri.RemoveContainerRequest{ContainerId: second[:12]}); err != nil {
		t.Error(err)
	}
	// Between List and Status it went: kubelet ignores just this code.
	_, err = n.Runtime.ContainerStatus(n.Ctx(), &cri.ContainerStatusRequest{ContainerId: second})
	wantCode(t, "ContainerStatus of what is gone", err, codes.NotFound)
	resp, err := n.Runtime.PodSandboxStatus(n.Ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: pod[:12]})
	if err != nil || (resp.Timestamp == 0) != (len(resp.ContainersStatuses) == 0) {
		t.Errorf("PodSandboxStatus = %v, %v; want timestamp and containers_statuses, or neither", resp, err)
	}
	n.RemovePod(pod[:12])
}

// The JSON that `crictl inspect` and `inspectp` show has what scripts that were
// written for other runtimes look for.
func TestInspect(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("inspected")
	pod := n.RunPod(p)
	c := n.ContainerConfig("main", "sleep", "1000")
	c.Envs = []*cri.KeyValue{{Key: "A", Value: []byte("b")}}
	c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}
	id := n.Run(pod, p, c)
	type namespace struct{ Type, Path string }
	type info struct {
		SandboxID   string
		PID         int
		SnapshotKey string
		Snapshotter string
		Privileged  *bool
		Config      struct {
			Metadata     struct{ Name string }
			LogPath      string `json:"log_path"`
			LogDirectory string `json:"log_directory"`
		}
		CNIResult   struct{ IPs []struct{ Address string } }
		RuntimeSpec struct {
			OCIVersion string
			Hostname   string
			Process    struct{ Args, Env []string }
			Linux      struct {
				CgroupsPath string
				Namespaces  []namespace
				Resources   struct{ Memory struct{ Limit int64 } }
			}
		}
	}
	inspect := func() (s, c info) {
		t.Helper()
		ps, err := n.Runtime.PodSandboxStatus(n.Ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: pod, Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		cs, err := n.Runtime.ContainerStatus(n.Ctx(), &cri.ContainerStatusRequest{ContainerId: id, Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		for text, into := range map[string]*info{ps.Info["info"]: &s, cs.Info["info"]: &c} {
			if err := json.Unmarshal([]byte(text), into); err != nil {
				t.Fatalf("%v: %s", err, text)
			}
		}
		return s, c
	}
	check := func() {
		t.Helper()
		s, c := inspect()
		if s.SandboxID != pod || s.Privileged == nil || s.Config.Metadata.Name != "inspected" || s.Config.LogDirectory != p.LogDirectory || s.RuntimeSpec.Hostname != "inspected" {
			t.Errorf("sandbox info = %+v", s)
		}
		if len(s.CNIResult.IPs) == 0 || !strings.HasPrefix(s.CNIResult.IPs[0].Address, n.PodStatus(pod).Network.Ip) {
			t.Errorf("cniResult = %+v", s.CNIResult)
		}
		// A script enters the pod's network by this path.
		i := slices.IndexFunc(s.RuntimeSpec.Linux.Namespaces, func(ns namespace) bool { return ns.Type == "network" })
		if i < 0 {
			t.Fatalf("namespaces = %v", s.RuntimeSpec.Linux.Namespaces)
		}
		// The inode of a pinned namespace is the number in the link of who is in it.
		fi, err := os.Stat(s.RuntimeSpec.Linux.Namespaces[i].Path)
		if err != nil {
			t.Fatal(err)
		}
		in, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", c.PID))
		if err != nil || !os.SameFile(fi, in) {
			t.Errorf("the pod's network namespace is not where its spec says, %v: %v", s.RuntimeSpec.Linux.Namespaces[i], err)
		}
		sp := c.RuntimeSpec
		if c.SandboxID != pod || c.SnapshotKey != id || c.Snapshotter == "" || c.Privileged == nil || c.Config.Metadata.Name != "main" || c.Config.LogPath != "main/0.log" {
			t.Errorf("container info = %+v", c)
		}
		if sp.OCIVersion == "" || !slices.Equal(sp.Process.Args, []string{"sleep", "1000"}) || !slices.Contains(sp.Process.Env, "A=b") ||
			sp.Linux.Resources.Memory.Limit != 64<<20 || !strings.Contains(sp.Linux.CgroupsPath, id) {
			t.Errorf("runtimeSpec = %+v", sp)
		}
	}
	check()
	n.Restart()
	check()
	r, err := n.Runtime.Status(n.Ctx(), &cri.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	for key, text := range r.Info {
		if !json.Valid([]byte(text)) {
			t.Errorf("status info %s is no JSON: %q", key, text)
		}
	}
	n.RemovePod(pod)
	if e, err := os.ReadDir(n.path("root", "containers")); err != nil || len(e) > 0 {
		t.Errorf("left of records and specs: %v, %v", e, err)
	}
}
