package cri

import (
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// counters and gauges are what kubelet's users know from cAdvisor, and critest expects, with
// the labels that come after baseLabels. Those of the latter are of all runtimes.
const (
	counters = `
container_blkio_device_usage_total{device,major,minor,operation} container_cpu_cfs_periods_total container_cpu_cfs_throttled_periods_total
container_cpu_cfs_throttled_seconds_total container_cpu_system_seconds_total container_cpu_usage_seconds_total{cpu}
container_cpu_user_seconds_total container_fs_reads_bytes_total{device} container_fs_reads_total{device}
container_fs_writes_bytes_total{device} container_fs_writes_total{device} container_memory_failcnt
container_memory_failures_total{failure_type,scope} container_network_receive_bytes_total{interface}
container_network_receive_errors_total{interface} container_network_receive_packets_dropped_total{interface}
container_network_receive_packets_total{interface} container_network_transmit_bytes_total{interface}
container_network_transmit_errors_total{interface} container_network_transmit_packets_dropped_total{interface}
container_network_transmit_packets_total{interface} container_oom_events_total container_pressure_cpu_stalled_seconds_total
container_pressure_cpu_waiting_seconds_total container_pressure_io_stalled_seconds_total container_pressure_io_waiting_seconds_total
container_pressure_memory_stalled_seconds_total container_pressure_memory_waiting_seconds_total`
	gauges = `
container_file_descriptors container_fs_inodes_free{device} container_fs_inodes_total{device} container_fs_limit_bytes{device}
container_fs_usage_bytes{device} container_hugetlb_max_usage_bytes{pagesize} container_hugetlb_usage_bytes{pagesize} container_last_seen
container_memory_cache container_memory_kernel_usage container_memory_mapped_file container_memory_max_usage_bytes container_memory_rss
container_memory_swap container_memory_usage_bytes container_memory_working_set_bytes container_processes container_sockets
container_spec_cpu_period container_spec_cpu_quota container_spec_cpu_shares container_spec_memory_limit_bytes
container_spec_memory_reservation_limit_bytes container_spec_memory_swap_limit_bytes container_start_time_seconds container_threads
container_threads_max container_ulimits_soft{ulimit}`
)

func TestMetrics(t *testing.T) {
	node := figuresNode(2)
	for i := range node.containers {
		node.containers[i].Resources.CPUQuota = 5000
	}
	s := newTestServer(t, node)
	d, err := s.ListMetricDescriptors(t.Context(), &v1.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	keys := make(map[string][]string)
	var names, described []string
	for _, d := range d.Descriptors {
		names = append(names, d.Name)
		keys[d.Name] = d.LabelKeys
		if d.Help == "" || len(d.LabelKeys) < 6 || !slices.Equal(d.LabelKeys[:6], []string{"container", "id", "image", "name", "namespace", "pod"}) {
			t.Fatalf("descriptor %v has no help or not the common labels", d)
		}
		own := d.Name
		if labels := d.LabelKeys[6:]; len(labels) > 0 {
			own += "{" + strings.Join(labels, ",") + "}"
		}
		described = append(described, own)
	}
	want := slices.Concat(strings.Fields(counters), strings.Fields(gauges))
	slices.Sort(want)
	slices.Sort(described)
	if !slices.Equal(described, want) || len(want) != 56 {
		t.Errorf("descriptors are %d:\n%v\nwant %d:\n%v", len(described), described, len(want), want)
	}

	got, err := s.ListPodSandboxMetrics(t.Context(), &v1.ListPodSandboxMetricsRequest{})
	if err != nil || len(got.PodMetrics) != 3 {
		t.Fatalf("ListPodSandboxMetrics = %d pods, %v, want 3", len(got.GetPodMetrics()), err)
	}
	pod := got.PodMetrics[0]
	if pod.PodSandboxId != "p000" || len(pod.ContainerMetrics) != 1 || pod.ContainerMetrics[0].ContainerId != "p000-c0" {
		t.Fatalf("first pod = %v", pod)
	}
	seen := make(map[string]*v1.Metric)
	for _, m := range slices.Concat(pod.Metrics, pod.ContainerMetrics[0].Metrics) {
		if len(m.LabelValues) != len(keys[m.Name]) {
			t.Errorf("%s has the labels %q, want values of %q", m.Name, m.LabelValues, keys[m.Name])
		}
		if isCounter := slices.ContainsFunc(strings.Fields(counters), func(s string) bool { n, _, _ := strings.Cut(s, "{"); return n == m.Name }); isCounter != (m.MetricType == counter) {
			t.Errorf("%s is a %v", m.Name, m.MetricType)
		}
		if seen[m.Name] == nil {
			seen[m.Name] = m
		}
	}
	for _, name := range names {
		if seen[name] == nil {
			t.Errorf("%s has no value", name)
		}
	}
	for _, test := range []struct {
		name, labels string
		value        uint64
		at           int64
		kind         v1.MetricType
	}{
		{"container_network_receive_bytes_total", "POD p000  p000 ns pod-p000 eth0", 1, 0, counter},
		{"container_network_transmit_packets_dropped_total", "POD p000  p000 ns pod-p000 eth0", 8, 0, counter},
		{"container_cpu_user_seconds_total", "c p000-c0 busybox:1 p000-c0 ns pod-p000", 1, 0, counter},
		{"container_cpu_cfs_throttled_seconds_total", "c p000-c0 busybox:1 p000-c0 ns pod-p000", 2, 0, counter},
		{"container_cpu_usage_seconds_total", "c p000-c0 busybox:1 p000-c0 ns pod-p000 total", 0, 0, counter},
		{"container_fs_usage_bytes", "c p000-c0 busybox:1 p000-c0 ns pod-p000 /dev/vda", 8, 77, gauge},
		{"container_start_time_seconds", "c p000-c0 busybox:1 p000-c0 ns pod-p000", 5, 0, gauge},
		{"container_last_seen", "c p000-c0 busybox:1 p000-c0 ns pod-p000", 9, 0, gauge},
		{"container_spec_cpu_quota", "c p000-c0 busybox:1 p000-c0 ns pod-p000", 5000, 0, gauge},
		{"container_spec_cpu_period", "c p000-c0 busybox:1 p000-c0 ns pod-p000", 100_000, 0, gauge},
		{"container_ulimits_soft", "c p000-c0 busybox:1 p000-c0 ns pod-p000 max_open_files", 4, 0, gauge},
	} {
		m := seen[test.name]
		if m == nil {
			continue
		}
		if l := strings.Join(m.LabelValues, " "); l != test.labels || m.Value.GetValue() != test.value || m.Timestamp != test.at || m.MetricType != test.kind {
			t.Errorf("%s = %v, want %v", test.name, m, test)
		}
	}
}
