package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/image"
	"github.com/cridproject/crid/sandbox"
	"github.com/cridproject/crid/sandbox/config"
)

func (f *fakeNode) ContainerStats(id string) (sandbox.ContainerStats, error) {
	st, err := f.Container(id)
	return f.containerStats(&st), err
}

func (f *fakeNode) AllContainerStats(match func(*sandbox.ContainerStatus) bool) iter.Seq[sandbox.ContainerStats] {
	return func(yield func(sandbox.ContainerStats) bool) {
		for i := range f.containers {
			if st := &f.containers[i]; match(st) && !yield(f.containerStats(st)) {
				return
			}
		}
	}
}

func (f *fakeNode) SandboxStats(id string) (sandbox.SandboxStats, error) {
	st, err := f.Sandbox(id)
	return f.sandboxStats(&st), err
}

func (f *fakeNode) AllSandboxStats(match func(*sandbox.SandboxStatus) bool) iter.Seq[sandbox.SandboxStats] {
	return func(yield func(sandbox.SandboxStats) bool) {
		taken := 0
		if f.yielded != nil {
			defer func() { f.yielded <- taken }()
		}
		for i := range f.sandboxes {
			taken++
			if st := &f.sandboxes[i]; match(st) && !yield(f.sandboxStats(st)) {
				return
			}
		}
	}
}

func (f *fakeNode) AllMetrics() iter.Seq[sandbox.SandboxMetrics] {
	return func(yield func(sandbox.SandboxMetrics) bool) {
		for i := range f.sandboxes {
			if !yield(f.sandboxMetrics(&f.sandboxes[i])) {
				return
			}
		}
	}
}

// allFigures has another number in each.
func allFigures() sandbox.Usage {
	pressure := func(n int) sandbox.Pressure {
		stall := func(n int) sandbox.Stall {
			return sandbox.Stall{Total: time.Duration(n) * time.Microsecond, Avg10: float64(n) + 0.1, Avg60: float64(n) + 0.2, Avg300: float64(n) + 0.3}
		}
		return sandbox.Pressure{Known: true, Some: stall(n), Full: stall(n + 1)}
	}
	return sandbox.Usage{
		CPUNanoseconds: known(1), MemoryBytes: known(200), WorkingSetBytes: known(150), RSSBytes: known(3), PageFaults: known(4),
		MajorPageFaults: known(5), MemoryLimitBytes: known(1000), SwapBytes: known(6), SwapLimitBytes: known(16), Tasks: known(7),
		CPUPressure: pressure(10), MemoryPressure: pressure(20), IOPressure: pressure(30),
	}
}

func (f *fakeNode) containerStats(st *sandbox.ContainerStatus) sandbox.ContainerStats {
	s := sandbox.ContainerStats{Status: st, Written: image.FsUsage{Mountpoint: "/w", UsedBytes: 8, Inodes: 9, At: time.Unix(0, 77)}}
	if st.State == sandbox.ContainerRunning {
		s.At, s.Usage, s.CPUNanocores = time.Unix(0, 99), allFigures(), known(2)
	}
	return s
}

func (f *fakeNode) sandboxStats(st *sandbox.SandboxStatus) sandbox.SandboxStats {
	s := sandbox.SandboxStats{Status: st}
	if st.State != sandbox.SandboxReady {
		return s
	}
	s.At, s.Usage = time.Unix(0, 88), allFigures()
	s.Network = &sandbox.NetworkStats{
		At:      time.Unix(0, 66),
		Default: &sandbox.NetInterface{Name: "eth0", RxBytes: 1, RxPackets: 2, RxErrors: 3, RxDropped: 4, TxBytes: 5, TxPackets: 6, TxErrors: 7, TxDropped: 8},
		Others:  []sandbox.NetInterface{{Name: "net1"}},
	}
	for i := range f.containers {
		if c := &f.containers[i]; c.Sandbox == st.ID && c.State == sandbox.ContainerRunning {
			s.Containers = append(s.Containers, f.containerStats(c))
		}
	}
	return s
}

func (f *fakeNode) sandboxMetrics(st *sandbox.SandboxStatus) sandbox.SandboxMetrics {
	all := f.sandboxStats(st)
	m := sandbox.SandboxMetrics{Status: st, Network: all.Network}
	for _, c := range all.Containers {
		cm := sandbox.ContainerMetrics{
			Status: c.Status, At: time.Unix(9, 1), Written: c.Written,
			Details: sandbox.Details{
				Usage: c.Usage, UserNanoseconds: known(1_999_999_999), SystemNanoseconds: known(1), Periods: known(1), ThrottledPeriods: known(1),
				ThrottledNanoseconds: known(2_000_000_000), CacheBytes: known(1), KernelBytes: known(1), MappedFileBytes: known(1),
				MaxMemoryBytes: known(1), MemoryFailures: known(1), OOMKills: known(1), ReservedMemoryBytes: known(1), TasksMax: known(1),
			},
			Processes:  sandbox.Processes{Count: known(1), OpenFiles: known(2), Sockets: known(3), OpenFilesLimit: known(4)},
			Filesystem: &sandbox.FilesystemSize{Device: "/dev/vda", Bytes: 1, Inodes: 2, FreeInodes: 3},
		}
		cm.Details.HugePages = []sandbox.HugePages{{Size: "2MB", Bytes: known(1), MaxBytes: known(2)}}
		cm.Devices = append(cm.Devices, sandbox.DeviceUsage{Name: "/dev/vda"})
		m.Containers = append(m.Containers, cm)
	}
	return m
}

// figuresNode has pods with a running and an exited container each, and one that is not ready.
func figuresNode(pods int) *fakeNode {
	f := &fakeNode{}
	for i := range pods {
		id := fmt.Sprintf("p%03d", i)
		f.sandboxes = append(f.sandboxes, sandbox.SandboxStatus{
			ID: config.SandboxID(id), State: sandbox.SandboxReady,
			Config: config.Sandbox{
				Name: "pod-" + id, Namespace: "ns", UID: "u", Attempt: 1,
				Labels: map[string]string{"n": id}, Annotations: map[string]string{"a": strings.Repeat("x", 20_000)},
			},
		})
		for j, state := range []sandbox.ContainerState{sandbox.ContainerRunning, sandbox.ContainerExited} {
			f.containers = append(f.containers, sandbox.ContainerStatus{
				ID: config.ContainerID(fmt.Sprintf("%s-c%d", id, j)), Sandbox: config.SandboxID(id), State: state, StartedAt: time.Unix(5, 0),
				Config: config.Container{
					Name: "c", Attempt: 2, Labels: map[string]string{"n": id}, Annotations: map[string]string{"b": "y"},
					Image: config.Image{Ref: "sha256:1", UserSpecified: "busybox:1"},
				},
			})
		}
		f.images = append(f.images, image.Image{ID: image.ID("sha256:" + id), RepoTags: []string{"i:" + id}})
	}
	f.sandboxes = append(f.sandboxes, sandbox.SandboxStatus{ID: "stopped", State: sandbox.SandboxNotReady})
	return f
}

func wantedContainerStats() *v1.ContainerStats {
	u := func(n uint64) *v1.UInt64Value { return &v1.UInt64Value{Value: n} }
	psi := func(n float64) *v1.PsiStats {
		data := func(n float64) *v1.PsiData {
			return &v1.PsiData{Total: uint64(n) * 1000, Avg10: n + 0.1, Avg60: n + 0.2, Avg300: n + 0.3}
		}
		return &v1.PsiStats{Some: data(n), Full: data(n + 1)}
	}
	return &v1.ContainerStats{
		Attributes: &v1.ContainerAttributes{
			Id: "p000-c0", Metadata: &v1.ContainerMetadata{Name: "c", Attempt: 2},
			Labels: map[string]string{"n": "p000"}, Annotations: map[string]string{"b": "y"},
		},
		Cpu: &v1.CpuUsage{Timestamp: 99, UsageCoreNanoSeconds: u(1), UsageNanoCores: u(2), Psi: psi(10)},
		Memory: &v1.MemoryUsage{
			Timestamp: 99, WorkingSetBytes: u(150), AvailableBytes: u(850), UsageBytes: u(200), RssBytes: u(3),
			PageFaults: u(4), MajorPageFaults: u(5), Psi: psi(20),
		},
		WritableLayer: &v1.FilesystemUsage{Timestamp: 77, FsId: &v1.FilesystemIdentifier{Mountpoint: "/w"}, UsedBytes: u(8), InodesUsed: u(9)},
		Swap:          &v1.SwapUsage{Timestamp: 99, SwapUsageBytes: u(6), SwapAvailableBytes: u(10)},
		Io:            &v1.IoUsage{Timestamp: 99, Psi: psi(30)},
	}
}

func TestContainerStats(t *testing.T) {
	s := newTestServer(t, figuresNode(2))
	got, err := s.ContainerStats(t.Context(), &v1.ContainerStatsRequest{ContainerId: "p000-c0"})
	if err != nil {
		t.Fatal(err)
	}
	wantMessage(t, "ContainerStats", got.Stats, wantedContainerStats())

	exited, err := s.ContainerStats(t.Context(), &v1.ContainerStatsRequest{ContainerId: "p000-c1"})
	if err != nil || exited.Stats.Cpu != nil || exited.Stats.Memory != nil || exited.Stats.WritableLayer.UsedBytes.GetValue() != 8 {
		t.Errorf("ContainerStats of one that has exited = %v, %v, want what it has written", exited, err)
	}
	for _, id := range []string{"", "none"} {
		want := codes.NotFound
		if id == "" {
			want = codes.InvalidArgument
		}
		if _, err := s.ContainerStats(t.Context(), &v1.ContainerStatsRequest{ContainerId: id}); status.Code(err) != want {
			t.Errorf("ContainerStats(%q) = %v, want %v", id, err, want)
		}
		if _, err := s.PodSandboxStats(t.Context(), &v1.PodSandboxStatsRequest{PodSandboxId: id}); status.Code(err) != want {
			t.Errorf("PodSandboxStats(%q) = %v, want %v", id, err, want)
		}
	}
}

// What is not known is absent, not zero.
func TestUnknownFigures(t *testing.T) {
	st := sandbox.ContainerStats{Status: &sandbox.ContainerStatus{ID: "c"}, At: time.Unix(0, 1), Written: image.FsUsage{Mountpoint: "/w"}}
	got := encodeContainerStats(&st)
	if got.WritableLayer.Timestamp <= 0 || got.WritableLayer.UsedBytes != nil || got.WritableLayer.FsId.GetMountpoint() != "/w" {
		t.Errorf("writable layer that nobody has looked at = %v, want a time, a mount point and no figures", got.WritableLayer)
	}
	got.WritableLayer = nil
	wantMessage(t, "stats without figures", got, &v1.ContainerStats{
		Attributes: &v1.ContainerAttributes{Id: "c", Metadata: &v1.ContainerMetadata{}},
		Cpu:        &v1.CpuUsage{Timestamp: 1}, Memory: &v1.MemoryUsage{Timestamp: 1},
	})
}

func TestPodSandboxStats(t *testing.T) {
	s := newTestServer(t, figuresNode(2))
	got, err := s.PodSandboxStats(t.Context(), &v1.PodSandboxStatsRequest{PodSandboxId: "p000"})
	if err != nil {
		t.Fatal(err)
	}
	u := func(n uint64) *v1.UInt64Value { return &v1.UInt64Value{Value: n} }
	c := wantedContainerStats()
	cpu, memory, disk := proto.Clone(c.Cpu).(*v1.CpuUsage), proto.Clone(c.Memory).(*v1.MemoryUsage), proto.Clone(c.Io).(*v1.IoUsage)
	cpu.Timestamp, memory.Timestamp, disk.Timestamp, cpu.UsageNanoCores = 88, 88, 88, nil
	wantMessage(t, "PodSandboxStats", got.Stats.Linux, &v1.LinuxPodSandboxStats{
		Cpu: cpu, Memory: memory, Io: disk,
		Process: &v1.ProcessUsage{Timestamp: 88, ProcessCount: u(7)},
		Network: &v1.NetworkUsage{
			Timestamp:        66,
			DefaultInterface: &v1.NetworkInterfaceUsage{Name: "eth0", RxBytes: u(1), RxErrors: u(3), TxBytes: u(5), TxErrors: u(7)},
			Interfaces:       []*v1.NetworkInterfaceUsage{{Name: "net1", RxBytes: u(0), RxErrors: u(0), TxBytes: u(0), TxErrors: u(0)}},
		},
		Containers: []*v1.ContainerStats{c},
	})
	if a := got.Stats.Attributes; a.Id != "p000" || a.Metadata.Name != "pod-p000" || a.Labels["n"] != "p000" || len(a.Annotations["a"]) != 20_000 {
		t.Errorf("attributes = %v", a)
	}
	stopped, err := s.PodSandboxStats(t.Context(), &v1.PodSandboxStatsRequest{PodSandboxId: "stopped"})
	if err != nil || !proto.Equal(stopped.Stats.Linux, &v1.LinuxPodSandboxStats{}) {
		t.Errorf("PodSandboxStats of one that is stopped = %v, %v, want no figures", stopped, err)
	}
}

// kubelet 1.36 reads the default interface without asking whether it is there, and a
// container may rename it.
func TestNoDefaultInterface(t *testing.T) {
	got := encodeNetworkStats(&sandbox.NetworkStats{At: time.Unix(0, 66), Others: []sandbox.NetInterface{{Name: "renamed", RxBytes: 1}}})
	if got.DefaultInterface == nil || got.DefaultInterface.RxBytes != nil || len(got.Interfaces) != 1 || got.Interfaces[0].Name != "renamed" {
		t.Errorf("network = %v, want an empty default interface and the other", got)
	}
}

func TestStatsFilters(t *testing.T) {
	s := newTestServer(t, figuresNode(12))
	for _, test := range []struct {
		filter *v1.ContainerStatsFilter
		want   int
	}{
		{nil, 24},
		{&v1.ContainerStatsFilter{Id: "p00"}, 20},
		{&v1.ContainerStatsFilter{PodSandboxId: "p01"}, 4},
		{&v1.ContainerStatsFilter{LabelSelector: map[string]string{"n": "p003"}}, 2},
		{&v1.ContainerStatsFilter{Id: "p003", LabelSelector: map[string]string{"n": "p004"}}, 0},
	} {
		got, err := s.ListContainerStats(t.Context(), &v1.ListContainerStatsRequest{Filter: test.filter})
		if err != nil || len(got.GetStats()) != test.want {
			t.Errorf("ListContainerStats(%v) = %d, %v, want %d", test.filter, len(got.GetStats()), err, test.want)
		}
	}
	for _, test := range []struct {
		filter *v1.PodSandboxStatsFilter
		want   int
	}{
		{nil, 13},
		{&v1.PodSandboxStatsFilter{Id: "p00"}, 10},
		{&v1.PodSandboxStatsFilter{LabelSelector: map[string]string{"n": "p003"}}, 1},
		{&v1.PodSandboxStatsFilter{Id: "p01", LabelSelector: map[string]string{"n": "p003"}}, 0},
	} {
		got, err := s.ListPodSandboxStats(t.Context(), &v1.ListPodSandboxStatsRequest{Filter: test.filter})
		if err != nil || len(got.GetStats()) != test.want {
			t.Errorf("ListPodSandboxStats(%v) = %d, %v, want %d", test.filter, len(got.GetStats()), err, test.want)
		}
	}
}

// collect reads a stream to its end. A message without items, or too large a one,
// is an error.
func collect[M any, T proto.Message](t *testing.T, stream grpc.ServerStreamingClient[M], err error, items func(*M) []T) []proto.Message {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	var all []proto.Message
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		size := 0
		for _, item := range items(m) {
			all = append(all, item)
			size += proto.Size(item)
		}
		if n := len(items(m)); n == 0 || n > streamItems || size > streamBytes+1<<20 {
			t.Errorf("a message of %d items, %d bytes", n, size)
		}
	}
}

func messages[T proto.Message](items []T) []proto.Message {
	var all []proto.Message
	for _, item := range items {
		all = append(all, item)
	}
	return all
}

// Each stream says what its list says.
func TestStreamsAreLists(t *testing.T) {
	for _, pods := range []int{0, 1, 70} {
		t.Run(fmt.Sprint(pods), func(t *testing.T) {
			s := newTestServer(t, figuresNode(pods))
			ctx := t.Context()
			check := func(what string, streamed, listed []proto.Message, err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
				if !slices.EqualFunc(streamed, listed, proto.Equal) {
					t.Errorf("%s: %d items are not the %d of the list", what, len(streamed), len(listed))
				}
			}
			stream1, err1 := s.StreamPodSandboxes(ctx, &v1.StreamPodSandboxesRequest{})
			list1, err := s.ListPodSandbox(ctx, &v1.ListPodSandboxRequest{})
			check("sandboxes", collect(t, stream1, err1, (*v1.StreamPodSandboxesResponse).GetPodSandboxes), messages(list1.GetItems()), err)
			stream2, err2 := s.StreamContainers(ctx, &v1.StreamContainersRequest{})
			list2, err := s.ListContainers(ctx, &v1.ListContainersRequest{})
			check("containers", collect(t, stream2, err2, (*v1.StreamContainersResponse).GetContainers), messages(list2.GetContainers()), err)
			stream3, err3 := s.images.StreamImages(ctx, &v1.StreamImagesRequest{})
			list3, err := s.images.ListImages(ctx, &v1.ListImagesRequest{})
			check("images", collect(t, stream3, err3, (*v1.StreamImagesResponse).GetImages), messages(list3.GetImages()), err)
			stream4, err4 := s.StreamContainerStats(ctx, &v1.StreamContainerStatsRequest{})
			list4, err := s.ListContainerStats(ctx, &v1.ListContainerStatsRequest{})
			check("container stats", collect(t, stream4, err4, (*v1.StreamContainerStatsResponse).GetContainerStats), messages(list4.GetStats()), err)
			stream5, err5 := s.StreamPodSandboxStats(ctx, &v1.StreamPodSandboxStatsRequest{})
			list5, err := s.ListPodSandboxStats(ctx, &v1.ListPodSandboxStatsRequest{})
			check("sandbox stats", collect(t, stream5, err5, (*v1.StreamPodSandboxStatsResponse).GetPodSandboxStats), messages(list5.GetStats()), err)
			stream6, err6 := s.StreamPodSandboxMetrics(ctx, &v1.StreamPodSandboxMetricsRequest{})
			list6, err := s.ListPodSandboxMetrics(ctx, &v1.ListPodSandboxMetricsRequest{})
			check("metrics", collect(t, stream6, err6, (*v1.StreamPodSandboxMetricsResponse).GetPodSandboxMetrics), messages(list6.GetPodMetrics()), err)
		})
	}
}

// What a client does not take is not made: nothing is collected first, and when the client
// goes, the rest is left.
func TestStreamEndsWithItsClient(t *testing.T) {
	node := figuresNode(300)
	node.yielded = make(chan int, 1)
	s := newTestServer(t, node)
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := s.StreamPodSandboxStats(ctx, &v1.StreamPodSandboxStatsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	first, err := stream.Recv()
	if err != nil || len(first.PodSandboxStats) == 0 {
		t.Fatalf("first message = %v, %v", first, err)
	}
	cancel()
	if _, err := stream.Recv(); status.Code(err) != codes.Canceled {
		t.Errorf("after it was cancelled = %v, want Canceled", err)
	}
	// A message is a MiB of these, and the connection holds some.
	if n := <-node.yielded; n > 250 {
		t.Errorf("%d of 301 sandboxes were looked at for a client that took %d", n, len(first.PodSandboxStats))
	}
}

// A wrong filter ends a stream with the error that the list gives, and filters hold.
func TestStreamFilters(t *testing.T) {
	s := newTestServer(t, figuresNode(3))
	bad, err := s.StreamContainers(t.Context(), &v1.StreamContainersRequest{Filter: &v1.ContainerFilter{State: &v1.ContainerStateValue{State: 77}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bad.Recv(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("StreamContainers in state 77 = %v, want InvalidArgument", err)
	}
	running, err := s.StreamContainers(t.Context(), &v1.StreamContainersRequest{Filter: &v1.ContainerFilter{
		State: &v1.ContainerStateValue{State: v1.ContainerState_CONTAINER_RUNNING}, PodSandboxId: "p001",
	}})
	if got := collect(t, running, err, (*v1.StreamContainersResponse).GetContainers); len(got) != 1 {
		t.Errorf("StreamContainers of running ones of a pod = %d, want 1", len(got))
	}
	one, err := s.images.StreamImages(t.Context(), &v1.StreamImagesRequest{Filter: &v1.ImageFilter{Image: &v1.ImageSpec{Image: "i:p001"}}})
	if got := collect(t, one, err, (*v1.StreamImagesResponse).GetImages); len(got) != 1 {
		t.Errorf("StreamImages of one = %d", len(got))
	}
}
