package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const mib = 1 << 20

// ownCgroup gives the pod a cgroup as kubelet does: its own, named by its UID.
func (n *Node) ownCgroup(p *cri.PodSandboxConfig) {
	uid := p.Metadata.Uid
	if n.Programs.CgroupDriver == "systemd" {
		slice := strings.TrimSuffix(n.Cgroup, ".slice") + "-pod" + strings.ReplaceAll(uid, "-", "_") + ".slice"
		p.Linux.CgroupParent = "/" + n.Cgroup + "/" + slice
		return
	}
	p.Linux.CgroupParent = n.Cgroup + "/pod" + uid
}

// busy holds 32 MiB of memory, has written 8 MiB, serves them, and burns CPU.
func (n *Node) busy(pod string, p *cri.PodSandboxConfig) string {
	n.T.Helper()
	c := n.ContainerConfig("busy", "sh", "-c", `head -c 8388608 /dev/zero >/written; mkdir /d; touch /d/1 /d/2
		httpd -p '[::]:8080' -h /; x=$(head -c 33554432 /dev/zero | tr '\0' x); touch /ready; while :; do :; done`)
	c.Linux.Resources = &cri.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 256 * mib, MemorySwapLimitInBytes: 256 * mib,
	}
	id := n.Run(pod, p, c)
	n.Eventually("it holds its memory", func() bool {
		r, err := n.Runtime.ExecSync(n.Ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"test", "-e", "/ready"}})
		return err == nil && r.ExitCode == 0
	})
	return id
}

func (n *Node) containerStats(id string) *cri.ContainerStats {
	n.T.Helper()
	r, err := n.Runtime.ContainerStats(n.Ctx(), &cri.ContainerStatsRequest{ContainerId: id})
	if err != nil {
		n.T.Fatalf("ContainerStats = %v", err)
	}
	return r.Stats
}

func (n *Node) podStats(id string) *cri.LinuxPodSandboxStats {
	n.T.Helper()
	r, err := n.Runtime.PodSandboxStats(n.Ctx(), &cri.PodSandboxStatsRequest{PodSandboxId: id})
	if err != nil {
		n.T.Fatalf("PodSandboxStats = %v", err)
	}
	return r.Stats.Linux
}

// between fails the test unless the figure is known and in the range.
func between(t *testing.T, what string, got *cri.UInt64Value, low, high uint64) {
	t.Helper()
	if got == nil || got.Value < low || got.Value > high {
		t.Errorf("%s = %v, want between %d and %d", what, got, low, high)
	}
}

const anything = 1<<64 - 1

func checkUsage(t *testing.T, what string, cpu *cri.CpuUsage, memory *cri.MemoryUsage) {
	t.Helper()
	now := time.Now().UnixNano()
	if cpu.GetTimestamp() <= 0 || cpu.GetTimestamp() > now || memory.GetTimestamp() <= 0 || memory.GetTimestamp() > now {
		t.Errorf("%s: times %d and %d, want nanoseconds before %d", what, cpu.GetTimestamp(), memory.GetTimestamp(), now)
	}
	between(t, what+": CPU", cpu.GetUsageCoreNanoSeconds(), 1, uint64(time.Hour))
	between(t, what+": memory", memory.GetUsageBytes(), 32*mib, 256*mib)
	between(t, what+": working set", memory.GetWorkingSetBytes(), 32*mib, memory.GetUsageBytes().GetValue())
	between(t, what+": rss", memory.GetRssBytes(), 32*mib, 256*mib)
	between(t, what+": page faults", memory.GetPageFaults(), 32*mib/4096/2, anything)
	between(t, what+": major page faults", memory.GetMajorPageFaults(), 0, anything)
}

func checkPressure(t *testing.T, what string, p *cri.PsiStats) {
	t.Helper()
	if _, err := os.Stat("/proc/pressure/cpu"); err != nil {
		return // this kernel counts none
	}
	if p == nil || p.Some == nil || p.Full == nil {
		t.Errorf("%s: pressure = %v, want some and full", what, p)
	}
}

// Figures of a container that uses a known amount of everything, and of its pod.
func TestStats(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("figures")
	n.ownCgroup(p)
	pod := n.RunPod(p)
	id := n.busy(pod, p)
	done := n.Run(pod, p, n.ContainerConfig("done", "true"))
	n.WaitExit(done)
	if got, err := get("http://" + net.JoinHostPort(n.PodStatus(pod).Network.Ip, "8080") + "/written"); err != nil || len(got) != 8*mib {
		t.Fatalf("fetched %d bytes of the pod, %v", len(got), err)
	}

	t.Run("container", func(t *testing.T) { checkContainer(t, n, id) })
	t.Run("exited", func(t *testing.T) {
		got := n.containerStats(done)
		if got.Cpu != nil || got.Memory != nil || got.WritableLayer.GetFsId().GetMountpoint() == "" {
			t.Errorf("stats = %v, want no more than the writable layer", got)
		}
		list, err := n.Runtime.ListContainerStats(n.Ctx(), &cri.ListContainerStatsRequest{Filter: &cri.ContainerStatsFilter{PodSandboxId: pod[:13]}})
		if err != nil || len(list.Stats) != 1 || list.Stats[0].Attributes.Id != id {
			t.Errorf("ListContainerStats = %v, %v, want the running one", list, err)
		}
		_, err = n.Runtime.ContainerStats(n.Ctx(), &cri.ContainerStatsRequest{ContainerId: "nonesuch"})
		wantCode(t, "ContainerStats of none", err, codes.NotFound, "nonesuch")
		_, err = n.Runtime.PodSandboxStats(n.Ctx(), &cri.PodSandboxStatsRequest{PodSandboxId: "nonesuch"})
		wantCode(t, "PodSandboxStats of none", err, codes.NotFound, "nonesuch")
	})
	t.Run("pod", func(t *testing.T) {
		got := n.podStats(pod)
		checkUsage(t, "pod", got.Cpu, got.Memory)
		checkPressure(t, "pod: CPU", got.Cpu.Psi) // of its own cgroup, not a sum
		between(t, "processes", got.Process.GetProcessCount(), 2, 100)
		between(t, "sent", got.Network.GetDefaultInterface().GetTxBytes(), 8*mib, 80*mib)
		between(t, "received", got.Network.GetDefaultInterface().GetRxBytes(), 100, 8*mib)
		between(t, "errors of sending", got.Network.GetDefaultInterface().GetTxErrors(), 0, 0)
		between(t, "errors of receiving", got.Network.GetDefaultInterface().GetRxErrors(), 0, 0)
		if name := got.Network.GetDefaultInterface().GetName(); name != "eth0" || slices.ContainsFunc(got.Network.Interfaces, func(i *cri.NetworkInterfaceUsage) bool {
			return i.Name == "lo" || i.Name == "eth0"
		}) {
			t.Errorf("interfaces = %v, want eth0 as the default one, and no loopback", got.Network)
		}
		if len(got.Containers) != 1 || got.Containers[0].Attributes.Id != id {
			t.Errorf("containers = %v, want the running one", got.Containers)
		}
	})
	t.Run("metrics", func(t *testing.T) { checkMetrics(t, n, pod, id) })
	t.Run("node's network", func(t *testing.T) {
		p := n.PodConfig("host")
		p.Hostname = ""
		p.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
		pod := n.RunPod(p)
		c := n.ContainerConfig("main", "sleep", "1000")
		n.Run(pod, p, c)
		// This pod's parent is everybody's: what counts is its containers.
		got := n.podStats(pod)
		if got.Network != nil {
			t.Errorf("network = %v, want none: it is the node's", got.Network)
		}
		between(t, "processes", got.Process.GetProcessCount(), 1, 1)
		between(t, "memory", got.Memory.GetUsageBytes(), 1, 32*mib)
	})
	t.Run("stopped", func(t *testing.T) {
		if _, err := n.Runtime.StopPodSandbox(n.Ctx(), &cri.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
			t.Fatal(err)
		}
		if got := n.podStats(pod); got.Cpu != nil || got.Network != nil || len(got.Containers) > 0 {
			t.Errorf("stats = %v, want none", got)
		}
		list, err := n.Runtime.ListPodSandboxStats(n.Ctx(), &cri.ListPodSandboxStatsRequest{Filter: &cri.PodSandboxStatsFilter{Id: pod}})
		if err != nil || len(list.Stats) > 0 {
			t.Errorf("ListPodSandboxStats = %v, %v, want none", list, err)
		}
	})
}

func checkContainer(t *testing.T, n *Node, id string) {
	first := n.containerStats(id)
	checkUsage(t, "container", first.Cpu, first.Memory)
	checkPressure(t, "CPU", first.Cpu.Psi)
	checkPressure(t, "memory", first.Memory.Psi)
	checkPressure(t, "IO", first.Io.GetPsi())
	between(t, "available", first.Memory.AvailableBytes, 256*mib-first.Memory.WorkingSetBytes.GetValue(), 256*mib-first.Memory.WorkingSetBytes.GetValue())
	if first.Swap != nil { // else the kernel does not count it
		between(t, "swap", first.Swap.SwapUsageBytes, 0, 256*mib)
	}
	// The rate needs two questions that are a second apart.
	var last *cri.ContainerStats
	n.Eventually("a rate of CPU use", func() bool {
		last = n.containerStats(id)
		return last.Cpu.UsageNanoCores != nil
	})
	between(t, "CPU rate", last.Cpu.UsageNanoCores, 1e7, 1e9) // half a CPU is its quota
	between(t, "CPU later", last.Cpu.UsageCoreNanoSeconds, first.Cpu.UsageCoreNanoSeconds.GetValue()+1, uint64(time.Hour))
	if last.Cpu.Timestamp <= first.Cpu.Timestamp {
		t.Errorf("time %d is not after %d", last.Cpu.Timestamp, first.Cpu.Timestamp)
	}
	n.Eventually("what it has written is counted", func() bool {
		w := n.containerStats(id).WritableLayer
		return w.GetUsedBytes().GetValue() >= 8*mib
	})
	w := n.containerStats(id).WritableLayer
	between(t, "written", w.UsedBytes, 8*mib, 9*mib)
	between(t, "inodes", w.InodesUsed, 6, 20) // the folder, written, d, 1, 2, ready, and what busybox's image leaves to be made
	fs, err := n.Images.ImageFsInfo(n.Ctx(), &cri.ImageFsInfoRequest{})
	if err != nil || fs.ContainerFilesystems[0].FsId.Mountpoint != w.FsId.GetMountpoint() {
		t.Errorf("mount point %v is not that of ImageFsInfo: %v, %v", w.FsId, fs, err)
	}
	if _, err := os.Stat(w.FsId.GetMountpoint()); err != nil {
		t.Errorf("mount point: %v", err)
	}
}

// optional are metrics that depend on the machine: its disks, its huge pages.
var optional = []string{"container_blkio", "container_fs_reads", "container_fs_writes", "container_hugetlb", "container_pressure"}

func checkMetrics(t *testing.T, n *Node, pod, id string) {
	d, err := n.Runtime.ListMetricDescriptors(n.Ctx(), &cri.ListMetricDescriptorsRequest{})
	if err != nil || len(d.Descriptors) != 56 {
		t.Fatalf("ListMetricDescriptors = %d, %v, want 56", len(d.GetDescriptors()), err)
	}
	r, err := n.Runtime.ListPodSandboxMetrics(n.Ctx(), &cri.ListPodSandboxMetricsRequest{})
	if err != nil || len(r.PodMetrics) != 1 || r.PodMetrics[0].PodSandboxId != pod || len(r.PodMetrics[0].ContainerMetrics) != 1 {
		t.Fatalf("ListPodSandboxMetrics = %v, %v, want one pod and container", r, err)
	}
	values := make(map[string]uint64)
	labels := make(map[string]int)
	for _, m := range slices.Concat(r.PodMetrics[0].Metrics, r.PodMetrics[0].ContainerMetrics[0].Metrics) {
		values[m.Name], labels[m.Name] = m.Value.GetValue(), len(m.LabelValues)
	}
	for _, d := range d.Descriptors {
		if got, ok := labels[d.Name]; !ok && !slices.ContainsFunc(optional, func(o string) bool { return strings.HasPrefix(d.Name, o) }) {
			t.Errorf("%s has no value", d.Name)
		} else if ok && got != len(d.LabelKeys) {
			t.Errorf("%s has %d labels, want %d", d.Name, got, len(d.LabelKeys))
		}
	}
	now := uint64(time.Now().Unix())
	for name, r := range map[string][2]uint64{
		"container_spec_cpu_quota":               {50000, 50000},
		"container_spec_cpu_period":              {100000, 100000},
		"container_spec_cpu_shares":              {512, 512},
		"container_spec_memory_limit_bytes":      {256 * mib, 256 * mib},
		"container_memory_rss":                   {32 * mib, 256 * mib},
		"container_memory_max_usage_bytes":       {32 * mib, 256 * mib},
		"container_memory_kernel_usage":          {1, 64 * mib},
		"container_cpu_cfs_periods_total":        {1, 1e6},
		"container_cpu_usage_seconds_total":      {0, 3600},
		"container_processes":                    {2, 10},
		"container_threads":                      {2, 10},
		"container_file_descriptors":             {4, 200},
		"container_sockets":                      {1, 20},
		"container_ulimits_soft":                 {1, 1 << 40},
		"container_start_time_seconds":           {now - 600, now},
		"container_last_seen":                    {now - 60, now + 1},
		"container_fs_usage_bytes":               {8 * mib, 9 * mib},
		"container_fs_limit_bytes":               {9 * mib, anything},
		"container_network_transmit_bytes_total": {8 * mib, 80 * mib},
		"container_oom_events_total":             {0, 0},
	} {
		between(t, name, &cri.UInt64Value{Value: values[name]}, r[0], r[1])
	}
}

// streamed reads a stream to its end and returns, sorted, the name of each item.
func streamed[M, T any](t *testing.T, stream grpc.ServerStreamingClient[M], err error, items func(*M) []T, id func(T) string) []string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			slices.Sort(all)
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, item := range items(m) {
			all = append(all, id(item))
		}
	}
}

// Streams say what lists say, and lists do not mind what goes meanwhile.
func TestStatsWhileContainersGo(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("stay")
	p.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	p.Hostname = ""
	pod := n.RunPod(p)
	stay := n.Run(pod, p, n.ContainerConfig("stay", "sleep", "1000"))

	ctx, end := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	t.Cleanup(func() { end(); wg.Wait() })
	for i := range 2 {
		wg.Go(func() {
			for j := 0; ctx.Err() == nil; j++ {
				p := n.PodConfig(fmt.Sprintf("go-%d-%d", i, j))
				p.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
				p.Hostname = ""
				s, err := n.Runtime.RunPodSandbox(context.Background(), &cri.RunPodSandboxRequest{Config: p})
				if err != nil {
					t.Errorf("RunPodSandbox = %v", err)
					return
				}
				c, err := n.Runtime.CreateContainer(context.Background(), &cri.CreateContainerRequest{
					PodSandboxId: s.PodSandboxId, Config: n.ContainerConfig("go", "sleep", "1000"), SandboxConfig: p,
				})
				if err == nil {
					_, err = n.Runtime.StartContainer(context.Background(), &cri.StartContainerRequest{ContainerId: c.ContainerId})
				}
				if err = errors.Join(err, n.removePod(s.PodSandboxId)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 30 {
		r, err := n.Runtime.ListContainerStats(ctx, &cri.ListContainerStatsRequest{})
		if err != nil || !slices.ContainsFunc(r.Stats, func(s *cri.ContainerStats) bool {
			return s.Attributes.Id == stay && s.Cpu != nil && s.Memory.UsageBytes != nil
		}) {
			t.Fatalf("ListContainerStats = %v, %v, want the one that stays", r, err)
		}
		s, err := n.Runtime.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{})
		if err != nil || !slices.ContainsFunc(s.Stats, func(s *cri.PodSandboxStats) bool { return s.Attributes.Id == pod && len(s.Linux.Containers) == 1 }) {
			t.Fatalf("ListPodSandboxStats = %v, %v, want the one that stays", s, err)
		}
		if m, err := n.Runtime.ListPodSandboxMetrics(ctx, &cri.ListPodSandboxMetricsRequest{}); err != nil || len(m.PodMetrics) == 0 {
			t.Fatalf("ListPodSandboxMetrics = %v, %v", m, err)
		}
	}
	end()
	wg.Wait()

	if s, err := n.Runtime.StreamPodSandboxes(t.Context(), &cri.StreamPodSandboxesRequest{}); !slices.Equal(
		streamed(t, s, err, (*cri.StreamPodSandboxesResponse).GetPodSandboxes, (*cri.PodSandbox).GetId), []string{pod}) {
		t.Error("StreamPodSandboxes is not the one pod")
	}
	if s, err := n.Runtime.StreamContainers(t.Context(), &cri.StreamContainersRequest{}); !slices.Equal(
		streamed(t, s, err, (*cri.StreamContainersResponse).GetContainers, (*cri.Container).GetId), []string{stay}) {
		t.Error("StreamContainers is not the one container")
	}
	if s, err := n.Runtime.StreamContainerStats(t.Context(), &cri.StreamContainerStatsRequest{}); !slices.Equal(
		streamed(t, s, err, (*cri.StreamContainerStatsResponse).GetContainerStats, func(s *cri.ContainerStats) string { return s.Attributes.Id }), []string{stay}) {
		t.Error("StreamContainerStats is not the one container")
	}
	if s, err := n.Runtime.StreamPodSandboxStats(t.Context(), &cri.StreamPodSandboxStatsRequest{}); !slices.Equal(
		streamed(t, s, err, (*cri.StreamPodSandboxStatsResponse).GetPodSandboxStats, func(s *cri.PodSandboxStats) string { return s.Attributes.Id }), []string{pod}) {
		t.Error("StreamPodSandboxStats is not the one pod")
	}
	if s, err := n.Runtime.StreamPodSandboxMetrics(t.Context(), &cri.StreamPodSandboxMetricsRequest{}); !slices.Equal(
		streamed(t, s, err, (*cri.StreamPodSandboxMetricsResponse).GetPodSandboxMetrics, (*cri.PodSandboxMetrics).GetPodSandboxId), []string{pod}) {
		t.Error("StreamPodSandboxMetrics is not the one pod")
	}
	img, err := n.Images.StreamImages(t.Context(), &cri.StreamImagesRequest{})
	if got := streamed(t, img, err, (*cri.StreamImagesResponse).GetImages, (*cri.Image).GetId); len(got) != 1 {
		t.Errorf("StreamImages = %v, want one", got)
	}
}

// cpu is the CPU time that our crid has used; 0 with -endpoint.
func (n *Node) cpu() time.Duration {
	if n.daemon == nil {
		return 0
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.PID()))
	if err != nil {
		n.T.Fatal(err)
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	const tick = 10 * time.Millisecond
	var sum time.Duration
	for _, f := range fields[11:13] { // utime, stime
		ticks, err := strconv.Atoi(f)
		if err != nil {
			n.T.Fatal(err)
		}
		sum += time.Duration(ticks) * tick
	}
	return sum
}

// BenchmarkStats is what kubelet and its scrapers ask for, with 60 pods of a container
// each, in cgroups as kubelet makes them.
func BenchmarkStats(b *testing.B) {
	n := benchNode(b)
	var wg sync.WaitGroup
	for i := range 60 {
		p := n.benchPod(i, false)
		n.ownCgroup(p)
		wg.Go(func() { n.Run(n.RunPod(p), p, n.benchContainer("main", "sleep", "1000")) })
	}
	wg.Wait()
	ctx := b.Context()
	for _, call := range []struct {
		name string
		do   func() (int, error)
	}{
		{"ListContainerStats", func() (int, error) {
			r, err := n.Runtime.ListContainerStats(ctx, &cri.ListContainerStatsRequest{})
			return len(r.GetStats()), err
		}},
		{"ListPodSandboxStats", func() (int, error) {
			r, err := n.Runtime.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{})
			return len(r.GetStats()), err
		}},
		{"ListPodSandboxMetrics", func() (int, error) {
			r, err := n.Runtime.ListPodSandboxMetrics(ctx, &cri.ListPodSandboxMetricsRequest{})
			return len(r.GetPodMetrics()), err
		}},
	} {
		ask := func(b *testing.B) {
			if got, err := call.do(); err != nil || got < 60 {
				b.Fatalf("%s = %d, %v, want 60", call.name, got, err)
			}
		}
		b.Run(call.name, func(b *testing.B) {
			// Calls of the same second share what has been read; these read anew.
			const fresh = 8
			before := n.cpu()
			var took time.Duration
			for range fresh {
				<-time.After(time.Second)
				began := time.Now()
				ask(b)
				took += time.Since(began)
			}
			used := n.cpu() - before
			before, calls := n.cpu(), 0
			for b.Loop() {
				ask(b)
				calls++
			}
			b.ReportMetric(float64((n.cpu()-before).Microseconds())/1000/float64(calls), "cpu-ms/op")
			// Not before: Loop drops what was reported.
			b.ReportMetric(float64(took.Microseconds())/1000/fresh, "fresh-ms/op")
			b.ReportMetric(float64(used.Microseconds())/1000/fresh, "fresh-cpu-ms/op")
		})
	}
}
