package cri

import (
	"context"
	"strings"
	"time"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/image"
	"github.com/cridproject/crid/sandbox"
)

// ContainerStats of a container that does not run is what it has written.
func (s *Server) ContainerStats(_ context.Context, r *v1.ContainerStatsRequest) (*v1.ContainerStatsResponse, error) {
	if err := oneID("container_id", r.GetContainerId()); err != nil {
		return nil, err
	}
	st, err := s.o.Sandboxes.ContainerStats(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	return &v1.ContainerStatsResponse{Stats: encodeContainerStats(&st)}, nil
}

// ListContainerStats lists running containers only.
func (s *Server) ListContainerStats(_ context.Context, r *v1.ListContainerStatsRequest) (*v1.ListContainerStatsResponse, error) {
	resp := &v1.ListContainerStatsResponse{}
	for st := range s.o.Sandboxes.AllContainerStats(containerStatsFilter(r.GetFilter())) {
		resp.Stats = append(resp.Stats, encodeContainerStats(&st))
	}
	return resp, nil
}

// PodSandboxStats of a sandbox that is not ready has no figures.
func (s *Server) PodSandboxStats(_ context.Context, r *v1.PodSandboxStatsRequest) (*v1.PodSandboxStatsResponse, error) {
	if err := oneID("pod_sandbox_id", r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	st, err := s.o.Sandboxes.SandboxStats(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	return &v1.PodSandboxStatsResponse{Stats: encodeSandboxStats(&st)}, nil
}

// ListPodSandboxStats lists ready sandboxes only.
func (s *Server) ListPodSandboxStats(_ context.Context, r *v1.ListPodSandboxStatsRequest) (*v1.ListPodSandboxStatsResponse, error) {
	resp := &v1.ListPodSandboxStatsResponse{}
	for st := range s.o.Sandboxes.AllSandboxStats(sandboxStatsFilter(r.GetFilter())) {
		resp.Stats = append(resp.Stats, encodeSandboxStats(&st))
	}
	return resp, nil
}

// sandboxStatsFilter is as sandboxFilter.
func sandboxStatsFilter(f *v1.PodSandboxStatsFilter) func(*sandbox.SandboxStatus) bool {
	return func(st *sandbox.SandboxStatus) bool {
		return strings.HasPrefix(string(st.ID), f.GetId()) && hasLabels(st.Config.Labels, f.GetLabelSelector())
	}
}

func containerStatsFilter(f *v1.ContainerStatsFilter) func(*sandbox.ContainerStatus) bool {
	return func(st *sandbox.ContainerStatus) bool {
		return strings.HasPrefix(string(st.ID), f.GetId()) &&
			strings.HasPrefix(string(st.Sandbox), f.GetPodSandboxId()) &&
			hasLabels(st.Config.Labels, f.GetLabelSelector())
	}
}

func encodeContainerStats(st *sandbox.ContainerStats) *v1.ContainerStats {
	c := &st.Status.Config
	out := &v1.ContainerStats{
		Attributes: &v1.ContainerAttributes{
			Id: string(st.Status.ID), Metadata: containerMetadata(c), Labels: c.Labels, Annotations: c.Annotations,
		},
		WritableLayer: encodeWritten(st.Written),
	}
	if st.At.IsZero() {
		return out
	}
	at, u := st.At.UnixNano(), &st.Usage
	out.Cpu = encodeCPU(at, u, st.CPUNanocores)
	out.Memory = encodeMemory(at, u)
	out.Io = encodeIO(at, u)
	if u.SwapBytes.Known {
		out.Swap = &v1.SwapUsage{
			Timestamp: at, SwapUsageBytes: uintValue(u.SwapBytes), SwapAvailableBytes: uintValue(u.SwapLimitBytes.Sub(u.SwapBytes)),
		}
	}
	return out
}

func encodeSandboxStats(st *sandbox.SandboxStats) *v1.PodSandboxStats {
	c := &st.Status.Config
	out := &v1.PodSandboxStats{
		Attributes: &v1.PodSandboxAttributes{
			Id: string(st.Status.ID), Metadata: sandboxMetadata(c), Labels: c.Labels, Annotations: c.Annotations,
		},
		Linux: &v1.LinuxPodSandboxStats{},
	}
	if st.At.IsZero() {
		return out
	}
	at, u := st.At.UnixNano(), &st.Usage
	out.Linux.Cpu = encodeCPU(at, u, st.CPUNanocores)
	out.Linux.Memory = encodeMemory(at, u)
	out.Linux.Io = encodeIO(at, u)
	// Threads too, as with CRI-O: kubelet ranks pods by it when PIDs get scarce, which both take.
	out.Linux.Process = &v1.ProcessUsage{Timestamp: at, ProcessCount: uintValue(u.Tasks)}
	out.Linux.Network = encodeNetworkStats(st.Network)
	for i := range st.Containers {
		out.Linux.Containers = append(out.Linux.Containers, encodeContainerStats(&st.Containers[i]))
	}
	return out
}

func encodeCPU(at int64, u *sandbox.Usage, nanocores sandbox.Value) *v1.CpuUsage {
	return &v1.CpuUsage{
		Timestamp:            at,
		UsageCoreNanoSeconds: uintValue(u.CPUNanoseconds),
		UsageNanoCores:       uintValue(nanocores),
		Psi:                  encodePressure(&u.CPUPressure),
	}
}

func encodeMemory(at int64, u *sandbox.Usage) *v1.MemoryUsage {
	return &v1.MemoryUsage{
		Timestamp:       at,
		WorkingSetBytes: uintValue(u.WorkingSetBytes),
		AvailableBytes:  uintValue(u.MemoryLimitBytes.Sub(u.WorkingSetBytes)), // not known without a limit
		UsageBytes:      uintValue(u.MemoryBytes),
		RssBytes:        uintValue(u.RSSBytes),
		PageFaults:      uintValue(u.PageFaults),
		MajorPageFaults: uintValue(u.MajorPageFaults),
		Psi:             encodePressure(&u.MemoryPressure),
	}
}

// encodeIO is nil where nothing is known: there is only pressure in it.
func encodeIO(at int64, u *sandbox.Usage) *v1.IoUsage {
	if !u.IOPressure.Known {
		return nil
	}
	return &v1.IoUsage{Timestamp: at, Psi: encodePressure(&u.IOPressure)}
}

func encodePressure(p *sandbox.Pressure) *v1.PsiStats {
	if !p.Known {
		return nil
	}
	data := func(s *sandbox.Stall) *v1.PsiData {
		return &v1.PsiData{Total: uint64(s.Total / time.Nanosecond), Avg10: s.Avg10, Avg60: s.Avg60, Avg300: s.Avg300}
	}
	return &v1.PsiStats{Full: data(&p.Full), Some: data(&p.Some)}
}

func encodeNetworkStats(n *sandbox.NetworkStats) *v1.NetworkUsage {
	if n == nil {
		return nil
	}
	// Not nil in any case: a container with CAP_NET_ADMIN can rename or remove the interface, and
	// kubelet 1.36 crashes on a nil one.
	out := &v1.NetworkUsage{Timestamp: n.At.UnixNano(), DefaultInterface: &v1.NetworkInterfaceUsage{}}
	if n.Default != nil {
		out.DefaultInterface = encodeInterface(n.Default)
	}
	for i := range n.Others {
		out.Interfaces = append(out.Interfaces, encodeInterface(&n.Others[i]))
	}
	return out
}

func encodeInterface(i *sandbox.NetInterface) *v1.NetworkInterfaceUsage {
	return &v1.NetworkInterfaceUsage{
		Name:    utf8Text(i.Name),
		RxBytes: &v1.UInt64Value{Value: i.RxBytes}, RxErrors: &v1.UInt64Value{Value: i.RxErrors},
		TxBytes: &v1.UInt64Value{Value: i.TxBytes}, TxErrors: &v1.UInt64Value{Value: i.TxErrors},
	}
}

// encodeWritten names the file system in any case. Figures without a time are not
// known yet.
func encodeWritten(w image.FsUsage) *v1.FilesystemUsage {
	out := &v1.FilesystemUsage{Timestamp: w.At.UnixNano(), FsId: &v1.FilesystemIdentifier{Mountpoint: w.Mountpoint}}
	if w.At.IsZero() {
		out.Timestamp = time.Now().UnixNano()
		return out
	}
	out.UsedBytes, out.InodesUsed = &v1.UInt64Value{Value: w.UsedBytes}, &v1.UInt64Value{Value: w.Inodes}
	return out
}

// uintValue is nil for what is not known.
func uintValue(v sandbox.Value) *v1.UInt64Value {
	if !v.Known {
		return nil
	}
	return &v1.UInt64Value{Value: v.N}
}
