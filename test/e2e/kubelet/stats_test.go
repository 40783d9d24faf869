package kubelet

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// What the pod of the tests of figures does: it holds, writes, logs, serves and counts.
const (
	held, written, inVolume, said, served = 64 << 20, 8 << 20, 4 << 20, 1 << 20, 2 << 20

	busyPod = `
		terminationGracePeriodSeconds: 0
		initContainers:
		- name: side
			image: IMAGE
			restartPolicy: Always
			command: [sleep, "1000"]
		containers:
		- name: main
			image: IMAGE
			command:
			- sh
			- -c
			- |
				head -c 8388608 /dev/zero > /written
				head -c 4194304 /dev/zero > /data/written
				head -c 2097152 /dev/zero > /www/page
				yes a line of the log | head -c 1048576
				(head -c 67108864 /dev/zero; touch /tmp/held; sleep 1000) | tail &
				i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done
				until [ -e /tmp/held ]; do sleep 0.05; done
				exec httpd -f -p 80 -h /www
			readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 1, timeoutSeconds: 60}
			resources: {limits: {memory: 256Mi, cpu: "1"}}
			volumeMounts: [{name: data, mountPath: /data}]
		volumes: [{name: data, emptyDir: {}}]
	`
)

// runBusy runs that pod and takes its page.
func (k *kubelet) runBusy() *corev1.Pod {
	k.t.Helper()
	k.run("busy", busyPod)
	p := k.await("busy", "is ready", ready)
	if page, err := get("http://" + p.Status.PodIP + "/page"); len(page) != served || err != nil {
		k.t.Fatalf("the page has %d bytes, want %d; %v", len(page), served, err)
	}
	return p
}

// numbers are those in an object of JSON by their paths, elements of lists
// by their names.
func numbers(in any, path string, out map[string]float64) {
	switch v := in.(type) {
	case map[string]any:
		for key, value := range v {
			numbers(value, strings.TrimPrefix(path+"."+key, "."), out)
		}
	case []any:
		for _, value := range v {
			if o, ok := value.(map[string]any); ok {
				numbers(value, fmt.Sprintf("%s.%v", path, o["name"]), out)
			}
		}
	case float64:
		out[path] = v
	}
}

// stats is what kubelet says of a pod and its node.
func (k *kubelet) stats(pod string) (ofPod, ofNode map[string]float64, err error) {
	var s struct {
		Node map[string]any
		Pods []map[string]any
	}
	if err := getJSON("/stats/summary", &s); err != nil {
		return nil, nil, err
	}
	ofPod, ofNode = map[string]float64{}, map[string]float64{}
	numbers(s.Node, "", ofNode)
	for _, p := range s.Pods {
		if ref, ok := p["podRef"].(map[string]any); ok && ref["name"] == pod+"-"+nodeName {
			numbers(p, "", ofPod)
		}
	}
	return ofPod, ofNode, nil
}

// Names of figures that several objects of the summary have.
var (
	cpuFigures    = []string{"usageNanoCores", "usageCoreNanoSeconds"}
	memoryFigures = []string{"usageBytes", "workingSetBytes", "rssBytes", "pageFaults", "majorPageFaults"}
	diskFigures   = []string{"availableBytes", "capacityBytes", "usedBytes", "inodesFree", "inodes", "inodesUsed"}
)

func under(prefix string, names ...string) (paths []string) {
	for _, n := range names {
		paths = append(paths, prefix+n)
	}
	return paths
}

// With the runtime's figures, which is how a node with crid is to be run, all that
// kubelet has a place for is there and fits what the pod has done.
func TestStats(t *testing.T) {
	k := newKubelet(t, options{kubelet: map[string]any{"volumeStatsAggPeriod": "1s"}})
	p := k.runBusy()
	t.Run("Summary", func(t *testing.T) { testSummary(t, k.within(t)) })
	t.Run("Resource", func(t *testing.T) { testResourceMetrics(t, k.within(t)) })
	t.Run("CAdvisor", func(t *testing.T) { testContainerMetrics(t, k.within(t), p) })
}

func testSummary(t *testing.T, k *kubelet) {
	wantPod := slices.Concat(
		under("cpu.", cpuFigures...), under("memory.", memoryFigures...),
		under("network.", "rxBytes", "rxErrors", "txBytes", "txErrors"),
		under("volume.data.", diskFigures...), under("ephemeral-storage.", diskFigures...),
		[]string{"process_stats.process_count", "containers.main.memory.availableBytes", "containers.main.swap.swapAvailableBytes"})
	for _, c := range []string{"containers.main.", "containers.side."} {
		wantPod = slices.Concat(wantPod, under(c+"cpu.", cpuFigures...), under(c+"memory.", memoryFigures...),
			under(c+"rootfs.", diskFigures...), under(c+"logs.", diskFigures...), under(c+"swap.", "swapUsageBytes"))
	}
	wantNode := slices.Concat(under("cpu.", cpuFigures...), under("memory.", append(memoryFigures, "availableBytes")...),
		under("network.", "rxBytes", "txBytes"), under("fs.", diskFigures...), under("runtime.imageFs.", diskFigures...),
		under("runtime.containerFs.", diskFigures...), under("rlimit.", "maxpid", "curproc"), under("swap.", "swapUsageBytes"))
	var pod map[string]float64
	k.eventually("the summary is complete", func() error {
		var node map[string]float64
		var err error
		if pod, node, err = k.stats("busy"); err != nil {
			return err
		}
		var missing []string
		for _, w := range []struct {
			paths []string
			in    map[string]float64
			of    string
		}{{wantPod, pod, "pod "}, {wantNode, node, "node "}} {
			for _, path := range w.paths {
				if _, ok := w.in[path]; !ok {
					missing = append(missing, w.of+path)
				}
			}
		}
		if len(missing) > 0 {
			return fmt.Errorf("it lacks %v", missing)
		}
		return nil
	})
	const main, side = "containers.main.", "containers.side."
	for _, test := range []struct {
		path     string
		from, to float64
	}{
		{main + "memory.workingSetBytes", held, 256 << 20},
		{main + "memory.rssBytes", held, 256 << 20},
		{main + "memory.usageBytes", pod[main+"memory.workingSetBytes"], 256 << 20},
		{main + "memory.availableBytes", 0, 256<<20 - held},
		{main + "memory.pageFaults", held / 4096, 1e9},
		{side + "memory.workingSetBytes", 4096, held / 4},
		{"memory.workingSetBytes", held, 256 << 20},
		{main + "cpu.usageCoreNanoSeconds", 1e7, 1e12},
		{side + "cpu.usageCoreNanoSeconds", 1, pod[main+"cpu.usageCoreNanoSeconds"]},
		{"cpu.usageCoreNanoSeconds", pod[side+"cpu.usageCoreNanoSeconds"], 1e12},
		{main + "rootfs.usedBytes", written + served, 2 * (written + served)},
		{main + "rootfs.inodesUsed", 3, 100},
		{side + "rootfs.usedBytes", 0, written},
		{main + "logs.usedBytes", said, 8 * said}, // with a time before each line
		{side + "logs.usedBytes", 0, 0},
		{"volume.data.usedBytes", inVolume, inVolume + 1<<20},
		{"ephemeral-storage.usedBytes", written + inVolume + said, 4 * (written + inVolume + said)},
		{"network.txBytes", served, 10 * served},
		{"network.rxBytes", 1000, served},
		{"network.txErrors", 0, 0},
		{"process_stats.process_count", 4, 20}, // httpd, tail, the shell before it, sleep; the sidecar
	} {
		if v := pod[test.path]; v < test.from || v > test.to {
			t.Errorf("%s = %.0f, want from %.0f to %.0f", test.path, v, test.from, test.to)
		}
	}
}

func testResourceMetrics(t *testing.T, k *kubelet) {
	page, err := get(server + "/metrics/resource")
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range []string{
		"container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_start_time_seconds",
		"container_swap_usage_bytes", "pod_cpu_usage_seconds_total", "pod_memory_working_set_bytes", "pod_swap_usage_bytes",
	} {
		got := map[string]float64{}
		for _, s := range series(t, page, family) {
			if s.labels["pod"] == "busy-"+nodeName && s.labels["namespace"] == namespace {
				got[s.labels["container"]] = s.value
			}
		}
		want := []string{"main", "side"}
		if strings.HasPrefix(family, "pod_") {
			want = []string{""}
		}
		if names := slices.Sorted(maps.Keys(got)); !slices.Equal(names, want) {
			t.Errorf("%s is of the containers %q, want %q", family, names, want)
		}
		if strings.HasSuffix(family, "working_set_bytes") && got[want[0]] < held {
			t.Errorf("%s = %v, want at least %d", family, got, held)
		}
	}
	for _, family := range []string{"node_cpu_usage_seconds_total", "node_memory_working_set_bytes"} {
		if s := series(t, page, family); len(s) != 1 || s[0].value <= 0 {
			t.Errorf("%s = %v", family, s)
		}
	}
	if s := series(t, page, "resource_scrape_error"); len(s) != 1 || s[0].value != 0 {
		t.Errorf("resource_scrape_error = %v, want 0", s)
	}
}

func testContainerMetrics(t *testing.T, k *kubelet, p *corev1.Pod) {
	page, err := get(server + "/metrics/cadvisor")
	if err != nil {
		t.Fatal(err)
	}
	all := families(t, page)
	for name, families := range map[string]string{
		"main": `cpu_cfs_periods_total cpu_cfs_throttled_periods_total cpu_cfs_throttled_seconds_total cpu_system_seconds_total
			cpu_usage_seconds_total cpu_user_seconds_total file_descriptors fs_inodes_free fs_inodes_total fs_limit_bytes fs_usage_bytes
			last_seen memory_cache memory_failcnt memory_failures_total memory_kernel_usage memory_mapped_file memory_max_usage_bytes
			memory_rss memory_swap memory_usage_bytes memory_working_set_bytes oom_events_total processes sockets spec_cpu_period
			spec_cpu_quota spec_cpu_shares spec_memory_limit_bytes spec_memory_reservation_limit_bytes spec_memory_swap_limit_bytes
			start_time_seconds threads threads_max ulimits_soft`,
		"POD": `network_receive_bytes_total network_receive_errors_total network_receive_packets_dropped_total network_receive_packets_total
			network_transmit_bytes_total network_transmit_errors_total network_transmit_packets_dropped_total network_transmit_packets_total`,
	} {
		for _, family := range strings.Fields(families) {
			found := of(samples(all["container_"+family]), "busy", name)
			if len(found) == 0 {
				t.Errorf("there is no container_%s of %s", family, name)
				continue
			}
			l := found[0].labels
			if l["id"] == "" || l["name"] == "" || name == "main" && (l["image"] != "registry.k8s.io/e2e/busybox:1" || "crid://"+l["id"] != container(p, name).ContainerID) {
				t.Errorf("container_%s of %s has the labels %v", family, name, l)
			}
		}
	}
	for family, want := range map[string][2]float64{
		"memory_working_set_bytes": {held, 256 << 20}, "memory_rss": {held, 256 << 20}, "spec_memory_limit_bytes": {256 << 20, 256 << 20},
		"fs_usage_bytes": {written, 4 * written}, "spec_cpu_quota": {100000, 100000}, "processes": {3, 20}, "oom_events_total": {0, 0},
		"start_time_seconds": {float64(p.CreationTimestamp.Unix()), 1e10},
	} {
		if s := of(samples(all["container_"+family]), "busy", "main"); len(s) != 1 || s[0].value < want[0] || s[0].value > want[1] {
			t.Errorf("container_%s = %v, want one from %.0f to %.0f", family, s, want[0], want[1])
		}
	}
	if s := of(samples(all["container_network_transmit_bytes_total"]), "busy", "POD"); len(s) != 1 || s[0].labels["interface"] != "eth0" || s[0].value < served {
		t.Errorf("container_network_transmit_bytes_total = %v, want one of eth0 with at least %d", s, served)
	}
}

// Without the gate, kubelet asks crid for containers and its own cAdvisor, which does not know
// crid, for the rest: it has no pod's network and processes, and its metrics of containers have
// cgroups instead of names. docs/kubernetes.md says so.
func TestStatsOfCAdvisor(t *testing.T) {
	k := newKubelet(t, options{gates: map[string]bool{"PodAndContainerStatsFromCRI": false}})
	p := k.runBusy()
	id := strings.TrimPrefix(container(p, "main").ContainerID, "crid://")
	var pod map[string]float64
	k.eventually("the summary has the container", func() (err error) {
		if pod, _, err = k.stats("busy"); err == nil && pod["containers.main.memory.workingSetBytes"] < held {
			err = fmt.Errorf("it has %v", pod)
		}
		return err
	})
	if v := pod["containers.main.rootfs.usedBytes"]; v < written {
		t.Errorf("rootfs used = %.0f, want at least %d", v, written)
	}
	k.eventually("cAdvisor has seen the cgroup", func() error {
		page, err := get(server + "/metrics/cadvisor")
		if err != nil {
			return err
		}
		all := families(t, page)
		for _, s := range samples(all["container_memory_working_set_bytes"]) {
			if strings.HasSuffix(s.labels["id"], "/crid-"+id) {
				if s.labels["container"] != "" || s.labels["pod"] != "" {
					t.Errorf("cAdvisor knows a container of crid's by name: %v", s.labels)
				}
				return nil
			}
		}
		return fmt.Errorf("it has no cgroup of %s", id)
	})
	if _, ok := pod["network.txBytes"]; ok {
		t.Error("kubelet has the pod's network")
	}
	if _, ok := pod["process_stats.process_count"]; ok {
		t.Error("kubelet has the pod's processes")
	}
}
