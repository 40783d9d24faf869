package cri

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/image"
	"github.com/cridproject/crid/sandbox"
	"github.com/cridproject/crid/sandbox/config"
)

func wantMessage(t *testing.T, what string, got, want proto.Message) {
	t.Helper()
	if !proto.Equal(got, want) {
		t.Errorf("%s =\n%s\nwant\n%s", what, prototext.Format(got), prototext.Format(want))
	}
}

func TestEncodeSandbox(t *testing.T) {
	created := time.Unix(7, 9)
	pod := config.Namespaces{Network: config.NamespacePod, PID: config.NamespaceContainer, IPC: config.NamespacePod}
	base := func() *v1.PodSandboxStatus {
		return &v1.PodSandboxStatus{
			Id: "s", Metadata: &v1.PodSandboxMetadata{Name: "n", Uid: "u", Namespace: "ns", Attempt: 3},
			CreatedAt: 7000000009, Network: &v1.PodSandboxNetworkStatus{},
			Linux: &v1.LinuxPodSandboxStatus{Namespaces: &v1.Namespace{Options: &v1.NamespaceOption{
				Pid: v1.NamespaceMode_CONTAINER, UsernsOptions: &v1.UserNamespace{Mode: v1.NamespaceMode_NODE},
			}}},
			Labels: map[string]string{"k": "v"}, Annotations: map[string]string{"a": "b"},
		}
	}
	status := func() sandbox.SandboxStatus {
		return sandbox.SandboxStatus{
			ID: "s", CreatedAt: created, State: sandbox.SandboxReady,
			Config: config.Sandbox{
				Name: "n", UID: "u", Namespace: "ns", Attempt: 3, Namespaces: pod,
				Labels: map[string]string{"k": "v"}, Annotations: map[string]string{"a": "b"},
			},
		}
	}
	for _, test := range []struct {
		name   string
		change func(*sandbox.SandboxStatus)
		want   func(*v1.PodSandboxStatus)
	}{
		{"ready, dual stack", func(s *sandbox.SandboxStatus) {
			s.IPs = []netip.Addr{netip.MustParseAddr("::ffff:10.1.2.3"), netip.MustParseAddr("fd00::3")}
		}, func(w *v1.PodSandboxStatus) {
			w.Network.Ip, w.Network.AdditionalIps = "10.1.2.3", []*v1.PodIP{{Ip: "fd00::3"}}
		}},
		{"stopped", func(s *sandbox.SandboxStatus) { s.State = sandbox.SandboxNotReady }, func(w *v1.PodSandboxStatus) {
			w.State = v1.PodSandboxState_SANDBOX_NOTREADY
		}},
		{"the node's network", func(s *sandbox.SandboxStatus) {
			s.Config.Namespaces = config.Namespaces{Network: config.NamespaceNode, PID: config.NamespaceNode, IPC: config.NamespaceNode}
			s.IPs = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
		}, func(w *v1.PodSandboxStatus) {
			o := w.Linux.Namespaces.Options
			o.Network, o.Pid, o.Ipc = v1.NamespaceMode_NODE, v1.NamespaceMode_NODE, v1.NamespaceMode_NODE
		}},
		{"a user namespace", func(s *sandbox.SandboxStatus) {
			s.Config.Namespaces.User = config.NamespacePod
			s.Config.Namespaces.UserMap = &config.IDMaps{UIDs: config.IDMapping{HostID: 5, Length: 6}, GIDs: config.IDMapping{HostID: 7, Length: 8}}
		}, func(w *v1.PodSandboxStatus) {
			w.Linux.Namespaces.Options.UsernsOptions = &v1.UserNamespace{
				Mode: v1.NamespaceMode_POD, Uids: []*v1.IDMapping{{HostId: 5, Length: 6}}, Gids: []*v1.IDMapping{{HostId: 7, Length: 8}},
			}
		}},
		{"a state that is not told", func(s *sandbox.SandboxStatus) { s.State = "halfway" }, func(w *v1.PodSandboxStatus) {
			w.State = v1.PodSandboxState_SANDBOX_NOTREADY
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			st, want := status(), base()
			test.change(&st)
			test.want(want)
			wantMessage(t, "encodeSandboxStatus", encodeSandboxStatus(&st), want)
			wantMessage(t, "encodeSandbox", encodeSandbox(&st), &v1.PodSandbox{
				Id: want.Id, Metadata: want.Metadata, State: want.State, CreatedAt: want.CreatedAt,
				Labels: want.Labels, Annotations: want.Annotations,
			})
		})
	}
}

func TestEncodeContainer(t *testing.T) {
	status := func() sandbox.ContainerStatus {
		return sandbox.ContainerStatus{
			ID: "c", Sandbox: "s", State: sandbox.ContainerCreated, CreatedAt: time.Unix(1, 0),
			ImageID: "sha256:1", ImageRef: "docker.io/library/busybox@sha256:2", LogPath: "/var/log/pods/p/c/0.log",
			StopSignal: "SIGRTMIN+3", User: sandbox.User{UID: 5, GID: 6, Groups: []int64{6, 7}},
			Resources: config.Resources{
				CPUPeriod: 1, CPUQuota: -1, CPUShares: 3, MemoryLimit: 4, MemorySwap: 5, OOMScoreAdj: -6, CpusetCPUs: "0-1", CpusetMems: "0",
				HugepageMax: map[string]uint64{"2MB": 1, "1GB": 0}, Unified: map[string]string{"memory.high": "9"},
			},
			Config: config.Container{
				Name: "n", Attempt: 2, Image: config.Image{Ref: "sha256:1", UserSpecified: "busybox", Annotations: map[string]string{"x": "y"}},
				Mounts: []config.Mount{
					{ContainerPath: "/dev/termination-log/", HostPath: "/var/lib/kubelet/x", Propagation: config.PropagationHostToContainer, SELinuxRelabel: true},
					{ContainerPath: "/r", HostPath: "/h", Readonly: true, RecursiveReadonly: true, Options: []string{"noexec"}, Propagation: config.PropagationPrivate},
				},
				Labels: map[string]string{"k": "v"}, Annotations: map[string]string{"a": "b"},
			},
		}
	}
	base := func() *v1.ContainerStatus {
		return &v1.ContainerStatus{
			Id: "c", Metadata: &v1.ContainerMetadata{Name: "n", Attempt: 2}, State: v1.ContainerState_CONTAINER_CREATED, CreatedAt: 1000000000,
			Image:    &v1.ImageSpec{Image: "sha256:1", UserSpecifiedImage: "busybox", Annotations: map[string]string{"x": "y"}},
			ImageRef: "docker.io/library/busybox@sha256:2", ImageId: "sha256:1", LogPath: "/var/log/pods/p/c/0.log",
			StopSignal: v1.Signal_SIGNAL_SIGRTMINPLUS3,
			User:       &v1.ContainerUser{Linux: &v1.LinuxContainerUser{Uid: 5, Gid: 6, SupplementalGroups: []int64{6, 7}}},
			Resources: &v1.ContainerResources{Linux: &v1.LinuxContainerResources{
				CpuPeriod: 1, CpuQuota: -1, CpuShares: 3, MemoryLimitInBytes: 4, MemorySwapLimitInBytes: 5, OomScoreAdj: -6, CpusetCpus: "0-1", CpusetMems: "0",
				HugepageLimits: []*v1.HugepageLimit{{PageSize: "1GB"}, {PageSize: "2MB", Limit: 1}}, Unified: map[string]string{"memory.high": "9"},
			}},
			Mounts: []*v1.Mount{
				{ContainerPath: "/dev/termination-log/", HostPath: "/var/lib/kubelet/x", Propagation: v1.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, SelinuxRelabel: true},
				{ContainerPath: "/r", HostPath: "/h", Readonly: true, RecursiveReadOnly: true, MountOptions: []string{"noexec"}},
			},
			Labels: map[string]string{"k": "v"}, Annotations: map[string]string{"a": "b"},
		}
	}
	for _, test := range []struct {
		name   string
		tags   []string
		change func(*sandbox.ContainerStatus)
		want   func(*v1.ContainerStatus)
	}{
		{"created", nil, func(*sandbox.ContainerStatus) {}, func(*v1.ContainerStatus) {}},
		{"running", nil, func(s *sandbox.ContainerStatus) {
			s.State, s.StartedAt = sandbox.ContainerRunning, time.Unix(2, 0)
		}, func(w *v1.ContainerStatus) {
			w.State, w.StartedAt = v1.ContainerState_CONTAINER_RUNNING, 2000000000
		}},
		{"exited", nil, func(s *sandbox.ContainerStatus) {
			s.State, s.StartedAt, s.FinishedAt = sandbox.ContainerExited, time.Unix(2, 0), time.Unix(3, 0)
			s.ExitCode, s.Reason, s.Message = 137, "OOMKilled", "not \xff UTF-8"
		}, func(w *v1.ContainerStatus) {
			w.State, w.StartedAt, w.FinishedAt = v1.ContainerState_CONTAINER_EXITED, 2000000000, 3000000000
			w.ExitCode, w.Reason, w.Message = 137, "OOMKilled", "not \uFFFD UTF-8"
		}},
		{"unknown", nil, func(s *sandbox.ContainerStatus) { s.State = sandbox.ContainerUnknown }, func(w *v1.ContainerStatus) {
			w.State = v1.ContainerState_CONTAINER_UNKNOWN
		}},
		{"a state that is not told", nil, func(s *sandbox.ContainerStatus) { s.State = "halfway" }, func(w *v1.ContainerStatus) {
			w.State = v1.ContainerState_CONTAINER_UNKNOWN
		}},
		{"image known by its ID only", nil, func(s *sandbox.ContainerStatus) { s.ImageRef = "" }, func(w *v1.ContainerStatus) {
			w.ImageRef = "sha256:1"
		}},
		{"a signal that CRI lacks", nil, func(s *sandbox.ContainerStatus) { s.StopSignal = "SIGWHAT" }, func(w *v1.ContainerStatus) {
			w.StopSignal = v1.Signal_SIGNAL_RUNTIME_DEFAULT
		}},
		{
			"the tag that the user wrote",
			[]string{"a.example/b:1", "docker.io/library/busybox:latest", "z.example/notbusybox:latest"},
			func(*sandbox.ContainerStatus) {}, func(w *v1.ContainerStatus) { w.Image.Image = "docker.io/library/busybox:latest" },
		},
		{
			"another tag",
			[]string{"a.example/b:1", "z.example/notbusybox:latest"},
			func(*sandbox.ContainerStatus) {}, func(w *v1.ContainerStatus) { w.Image.Image = "a.example/b:1" },
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			st, want := status(), base()
			test.change(&st)
			test.want(want)
			wantMessage(t, "encodeContainerStatus", encodeContainerStatus(&st, test.tags), want)
			want.Image.Image = "sha256:1" // lists show what was asked for
			wantMessage(t, "encodeContainer", encodeContainer(&st), &v1.Container{
				Id: "c", PodSandboxId: "s", Metadata: want.Metadata, Image: want.Image, ImageRef: want.ImageRef, ImageId: want.ImageId,
				State: want.State, CreatedAt: want.CreatedAt, Labels: want.Labels, Annotations: want.Annotations,
			})
		})
	}
}

func TestEncodeImage(t *testing.T) {
	uid := int64(1000)
	for _, test := range []struct {
		name string
		in   image.Image
		want *v1.Image
	}{
		{
			"numeric user",
			image.Image{ID: "sha256:1", RepoTags: []string{"a:1", "a:2"}, RepoDigests: []string{"a@sha256:3"}, Size: 9, UID: &uid, Pinned: true},
			&v1.Image{Id: "sha256:1", RepoTags: []string{"a:1", "a:2"}, RepoDigests: []string{"a@sha256:3"}, Size: 9, Uid: &v1.Int64Value{Value: 1000}, Spec: &v1.ImageSpec{}, Pinned: true},
		},
		{"named user", image.Image{ID: "sha256:1", Username: "www"}, &v1.Image{Id: "sha256:1", Username: "www", Spec: &v1.ImageSpec{}}},
		{"no user", image.Image{ID: "sha256:1"}, &v1.Image{Id: "sha256:1", Uid: &v1.Int64Value{}, Spec: &v1.ImageSpec{}}},
	} {
		wantMessage(t, "encodeImage of "+test.name, encodeImage(&test.in), test.want)
	}
}

// Every signal of the API goes both ways by its name.
func TestSignals(t *testing.T) {
	for n := range v1.Signal_name {
		s := v1.Signal(n)
		name, ok := signalName(s)
		if got := signalValue(name); !ok || got != s {
			t.Errorf("signalValue(signalName(%v)) = %v by %q", s, got, name)
		}
	}
	for s, want := range map[v1.Signal]string{
		v1.Signal_SIGNAL_SIGTERM: "SIGTERM", v1.Signal_SIGNAL_SIGKILL: "SIGKILL", v1.Signal_SIGNAL_SIGRTMIN: "SIGRTMIN",
		v1.Signal_SIGNAL_SIGRTMINPLUS15: "SIGRTMIN+15", v1.Signal_SIGNAL_SIGRTMAXMINUS1: "SIGRTMAX-1", v1.Signal_SIGNAL_RUNTIME_DEFAULT: "",
	} {
		if got, ok := signalName(s); got != want || !ok {
			t.Errorf("signalName(%v) = %q, %v, want %q", s, got, ok, want)
		}
	}
	for in, want := range map[string]v1.Signal{"term": v1.Signal_SIGNAL_SIGTERM, "15": 0, "": 0, "SIG": 0, "sigrtmax-2": v1.Signal_SIGNAL_SIGRTMAXMINUS2} {
		if got := signalValue(in); got != want {
			t.Errorf("signalValue(%q) = %v, want %v", in, got, want)
		}
	}
}

// What was decoded is echoed as it was sent.
func TestRoundTrip(t *testing.T) {
	var r v1.CreateContainerRequest
	readRequest(t, "testdata/create-kubelet.json", &r)
	c, err := newDecoder().container(&r)
	if err != nil {
		t.Fatal(err)
	}
	st := encodeContainerStatus(&sandbox.ContainerStatus{Config: c, Resources: c.Resources, StopSignal: c.StopSignal}, nil)
	got := &v1.ContainerConfig{
		Metadata: st.Metadata, Image: st.Image, Mounts: st.Mounts, Labels: st.Labels, Annotations: st.Annotations, StopSignal: st.StopSignal,
		Linux: &v1.LinuxContainerConfig{Resources: st.Resources.Linux},
	}
	want := &v1.ContainerConfig{
		Metadata: r.Config.Metadata, Image: r.Config.Image, Mounts: r.Config.Mounts, Labels: r.Config.Labels,
		Annotations: r.Config.Annotations, StopSignal: r.Config.StopSignal, Linux: &v1.LinuxContainerConfig{Resources: r.Config.Linux.Resources},
	}
	wantMessage(t, "status of a decoded container", got, want)
}

func TestVerbose(t *testing.T) {
	node := &fakeNode{
		sandboxes:  []sandbox.SandboxStatus{{ID: "s1", HolderPID: 11, NetNS: "/run/netns/crid-s1"}},
		containers: []sandbox.ContainerStatus{{ID: "c1", Sandbox: "s1", PID: 12, ImageID: "sha256:1"}},
		images: []image.Image{{
			ID: "sha256:1", RepoTags: []string{"a:1"}, ChainID: "sha256:9", ConfigJSON: []byte(`{"os":"linux"}`),
			Layers: []digest.Digest{"sha256:a", "sha256:b"}, LayerSizes: []uint64{7, 0}, Pulled: time.Unix(1_600_000_000, 0).UTC(),
		}},
	}
	s := newTestServer(t, node)
	ctx := t.Context()
	sb, err := s.PodSandboxStatus(ctx, &v1.PodSandboxStatusRequest{PodSandboxId: "s", Verbose: true})
	wantInfo(t, "PodSandboxStatus", sb.GetInfo(), err, `"sandboxID":"s1"`, `"pid":11`, `"netNamespace":"/run/netns/crid-s1"`, `"runtimeSpec":{"error":"no spec of s1"}`)
	if sb.GetTimestamp() != 55 || len(sb.GetContainersStatuses()) != 1 {
		t.Errorf("PodSandboxStatus = %v, want timestamp and containers_statuses", sb)
	}
	c, err := s.ContainerStatus(ctx, &v1.ContainerStatusRequest{ContainerId: "c1", Verbose: true})
	wantInfo(t, "ContainerStatus", c.GetInfo(), err, `"sandboxID":"s1"`, `"pid":12`, `"runtimeSpec":{"hostname":"of c1"}`, `"metadata":{}`)
	if c.GetStatus().GetImage().GetImage() != "a:1" {
		t.Errorf("ContainerStatus = %v, want the image's tag in it", c)
	}
	i, err := s.images.ImageStatus(ctx, &v1.ImageStatusRequest{Image: &v1.ImageSpec{Image: "a:1"}, Verbose: true})
	wantInfo(t, "ImageStatus", i.GetInfo(), err, `"chainID":"sha256:9"`, `"imageSpec":{"os":"linux"}`,
		`"layers":[{"diffID":"sha256:a","size":7},{"diffID":"sha256:b","size":0}]`, `"pulledAt":"2020-09-13T12:26:40Z"`)
	if sb, err := s.PodSandboxStatus(ctx, &v1.PodSandboxStatusRequest{PodSandboxId: "s1"}); err != nil || len(sb.Info) != 0 {
		t.Errorf("PodSandboxStatus = %v, %v, want no info", sb, err)
	}
}

func wantInfo(t *testing.T, rpc string, info map[string]string, err error, want ...string) {
	t.Helper()
	for _, w := range want {
		if err != nil || !strings.Contains(info["info"], w) {
			t.Errorf("%s has info %v, %v, want %s in it", rpc, info, err, w)
		}
	}
}
