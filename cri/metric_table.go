package cri

import (
	"slices"
	"strings"
	"sync"

	"github.com/cridproject/crid/sandbox"
)

type (
	cm    = *sandbox.ContainerMetrics
	count = sandbox.Value
)

// metrics is all metrics, sorted by name.
var metrics = sync.OnceValue(func() []metric {
	all := slices.Concat(cpuMetrics(), diskMetrics(), memoryMetrics(), networkMetrics(), pressureMetrics(), processMetrics(), specMetrics())
	slices.SortFunc(all, func(a, b metric) int { return strings.Compare(a.name, b.name) })
	return all
})

func cpuMetrics() []metric {
	return []metric{
		value("container_cpu_cfs_periods_total", "Number of elapsed enforcement period intervals.", counter,
			func(c cm) count { return c.Details.Periods }),
		value("container_cpu_cfs_throttled_periods_total", "Number of throttled period intervals.", counter,
			func(c cm) count { return c.Details.ThrottledPeriods }),
		value("container_cpu_cfs_throttled_seconds_total", "Total time duration the container has been throttled, in seconds.", counter,
			func(c cm) count { return seconds(c.Details.ThrottledNanoseconds) }),
		value("container_cpu_system_seconds_total", "Cumulative system CPU time consumed, in seconds.", counter,
			func(c cm) count { return seconds(c.Details.SystemNanoseconds) }),
		{
			name: "container_cpu_usage_seconds_total", help: "Cumulative CPU time consumed, in seconds.", kind: counter, labels: []string{"cpu"},
			container: func(c cm, s series) { s.add(seconds(c.Details.CPUNanoseconds), "total") },
		},
		value("container_cpu_user_seconds_total", "Cumulative user CPU time consumed, in seconds.", counter,
			func(c cm) count { return seconds(c.Details.UserNanoseconds) }),
	}
}

func diskMetrics() []metric {
	return []metric{
		{
			name: "container_blkio_device_usage_total", help: "Bytes read from, written to and discarded on a block device.", kind: counter,
			labels: []string{"device", "major", "minor", "operation"}, container: blockIO,
		},
		filesystem("container_fs_inodes_free", "Number of free inodes of the file system that the container writes to.",
			func(f *sandbox.FilesystemSize) uint64 { return f.FreeInodes }),
		filesystem("container_fs_inodes_total", "Number of inodes of the file system that the container writes to.",
			func(f *sandbox.FilesystemSize) uint64 { return f.Inodes }),
		filesystem("container_fs_limit_bytes", "Number of bytes that the container can use on this file system.",
			func(f *sandbox.FilesystemSize) uint64 { return f.Bytes }),
		disk("container_fs_reads_bytes_total", "Cumulative count of bytes read.",
			func(d *sandbox.DeviceUsage) uint64 { return d.ReadBytes }),
		disk("container_fs_reads_total", "Cumulative count of reads completed.",
			func(d *sandbox.DeviceUsage) uint64 { return d.Reads }),
		{
			name: "container_fs_usage_bytes", help: "Number of bytes that the container uses on this file system.", kind: gauge,
			labels: []string{"device"}, container: written,
		},
		disk("container_fs_writes_bytes_total", "Cumulative count of bytes written.",
			func(d *sandbox.DeviceUsage) uint64 { return d.WriteBytes }),
		disk("container_fs_writes_total", "Cumulative count of writes completed.",
			func(d *sandbox.DeviceUsage) uint64 { return d.Writes }),
	}
}

func memoryMetrics() []metric {
	return []metric{
		hugePages("container_hugetlb_max_usage_bytes", "Most huge page memory that was in use, in bytes.", true),
		hugePages("container_hugetlb_usage_bytes", "Huge page memory in use, in bytes.", false),
		value("container_memory_cache", "Number of bytes of page cache memory.", gauge,
			func(c cm) count { return c.Details.CacheBytes }),
		value("container_memory_failcnt", "Number of times that memory usage hit its limit.", counter,
			func(c cm) count { return c.Details.MemoryFailures }),
		{
			name: "container_memory_failures_total", help: "Cumulative count of page faults, by type and scope.", kind: counter,
			labels: []string{"failure_type", "scope"}, container: faults,
		},
		value("container_memory_kernel_usage", "Size of kernel memory allocated, in bytes.", gauge,
			func(c cm) count { return c.Details.KernelBytes }),
		value("container_memory_mapped_file", "Size of memory mapped files, in bytes.", gauge,
			func(c cm) count { return c.Details.MappedFileBytes }),
		value("container_memory_max_usage_bytes", "Most memory that was in use, in bytes.", gauge,
			func(c cm) count { return c.Details.MaxMemoryBytes }),
		value("container_memory_rss", "Size of anonymous memory, in bytes.", gauge,
			func(c cm) count { return c.Details.RSSBytes }),
		value("container_memory_swap", "Swap in use, in bytes.", gauge,
			func(c cm) count { return orZero(c.Details.SwapBytes) }),
		value("container_memory_usage_bytes", "Memory in use, in bytes, regardless of when it was accessed.", gauge,
			func(c cm) count { return c.Details.MemoryBytes }),
		value("container_memory_working_set_bytes", "Memory in use that cannot be dropped at once, in bytes.", gauge,
			func(c cm) count { return c.Details.WorkingSetBytes }),
		value("container_oom_events_total", "Number of processes that were killed because memory ran out.", counter,
			func(c cm) count { return c.Details.OOMKills }),
	}
}

func networkMetrics() []metric {
	type ni = *sandbox.NetInterface
	return []metric{
		network("container_network_receive_bytes_total", "Cumulative count of bytes received.", func(i ni) uint64 { return i.RxBytes }),
		network("container_network_receive_errors_total", "Cumulative count of errors while receiving.", func(i ni) uint64 { return i.RxErrors }),
		network("container_network_receive_packets_dropped_total", "Cumulative count of packets dropped while receiving.",
			func(i ni) uint64 { return i.RxDropped }),
		network("container_network_receive_packets_total", "Cumulative count of packets received.", func(i ni) uint64 { return i.RxPackets }),
		network("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted.", func(i ni) uint64 { return i.TxBytes }),
		network("container_network_transmit_errors_total", "Cumulative count of errors while transmitting.", func(i ni) uint64 { return i.TxErrors }),
		network("container_network_transmit_packets_dropped_total", "Cumulative count of packets dropped while transmitting.",
			func(i ni) uint64 { return i.TxDropped }),
		network("container_network_transmit_packets_total", "Cumulative count of packets transmitted.", func(i ni) uint64 { return i.TxPackets }),
	}
}

func pressureMetrics() []metric {
	var all []metric
	for _, r := range []struct {
		name, long string
		of         func(cm) *sandbox.Pressure
	}{
		{"cpu", "CPU", func(c cm) *sandbox.Pressure { return &c.Details.CPUPressure }},
		{"io", "IO", func(c cm) *sandbox.Pressure { return &c.Details.IOPressure }},
		{"memory", "memory", func(c cm) *sandbox.Pressure { return &c.Details.MemoryPressure }},
	} {
		all = append(all,
			value("container_pressure_"+r.name+"_stalled_seconds_total",
				"Total time that no task could make progress for "+r.long+" congestion, in seconds.", counter,
				func(c cm) count { p := r.of(c); return stalled(p, &p.Full) }),
			value("container_pressure_"+r.name+"_waiting_seconds_total",
				"Total time that tasks have waited for "+r.long+" congestion, in seconds.", counter,
				func(c cm) count { p := r.of(c); return stalled(p, &p.Some) }))
	}
	return all
}

func processMetrics() []metric {
	return []metric{
		value("container_file_descriptors", "Number of open file descriptors.", gauge,
			func(c cm) count { return c.Processes.OpenFiles }),
		value("container_last_seen", "When the container was last seen, in seconds since the epoch.", gauge,
			func(c cm) count { return known(uint64(c.At.Unix())) }),
		value("container_processes", "Number of processes that run in the container.", gauge,
			func(c cm) count { return c.Processes.Count }),
		value("container_sockets", "Number of open sockets.", gauge,
			func(c cm) count { return c.Processes.Sockets }),
		value("container_start_time_seconds", "When the container was started, in seconds since the epoch.", gauge,
			func(c cm) count { return known(uint64(c.Status.StartedAt.Unix())) }),
		value("container_threads", "Number of threads that run in the container.", gauge,
			func(c cm) count { return c.Details.Tasks }),
		value("container_threads_max", "Most threads that may run in the container; 0 means no limit.", gauge,
			func(c cm) count { return orZero(c.Details.TasksMax) }),
		{
			name: "container_ulimits_soft", help: "Soft limits of the container's first process; one that is unlimited is left out.", kind: gauge,
			labels: []string{"ulimit"}, container: func(c cm, s series) { s.add(c.Processes.OpenFilesLimit, "max_open_files") },
		},
	}
}

func specMetrics() []metric {
	return []metric{
		value("container_spec_cpu_period", "CPU period of the container, in microseconds.", gauge, func(c cm) count {
			if p := c.Status.Resources.CPUPeriod; p > 0 {
				return known(uint64(p))
			}
			return known(100_000) // the kernel's default
		}),
		value("container_spec_cpu_quota", "CPU quota of the container, in microseconds each period; not there without one.", gauge, func(c cm) count {
			q := c.Status.Resources.CPUQuota
			return count{N: uint64(max(q, 0)), Known: q > 0}
		}),
		value("container_spec_cpu_shares", "CPU share of the container.", gauge, func(c cm) count {
			if s := c.Status.Resources.CPUShares; s > 0 {
				return known(uint64(s))
			}
			return known(1024) // the kernel's default
		}),
		value("container_spec_memory_limit_bytes", "Memory limit of the container, in bytes; 0 means none.", gauge,
			func(c cm) count { return orZero(c.Details.MemoryLimitBytes) }),
		value("container_spec_memory_reservation_limit_bytes", "Memory reserved for the container, in bytes.", gauge,
			func(c cm) count { return orZero(c.Details.ReservedMemoryBytes) }),
		value("container_spec_memory_swap_limit_bytes", "Limit of swap, with cgroup v1 of memory and swap, in bytes; 0 means none.", gauge,
			func(c cm) count { return orZero(c.Details.SwapLimitFileBytes) }),
	}
}
