package kubelet

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
)

// usage is a part of a pod's or container's figures in kubelet's summary.
type usage struct {
	Name   string
	CPU    struct{ UsageCoreNanoSeconds uint64 }
	Memory struct{ WorkingSetBytes, RSSBytes, AvailableBytes uint64 }
	Rootfs disk
}

type podUsage struct {
	usage
	PodRef  struct{ Name string }
	Network *struct {
		Name             string
		RxBytes, TxBytes *uint64
		Interfaces       []struct{ Name string }
	}
	ProcessStats struct {
		ProcessCount uint64 `json:"process_count"`
	} `json:"process_stats"`
	Containers []usage
}

// summary is a pod's part of kubelet's summary.
func (k *kubelet) summary(pod string) (*podUsage, error) {
	var s struct{ Pods []podUsage }
	if err := getJSON("/stats/summary", &s); err != nil {
		return nil, err
	}
	for i := range s.Pods {
		if s.Pods[i].PodRef.Name == pod+"-"+nodeName {
			return &s.Pods[i], nil
		}
	}
	return nil, fmt.Errorf("the summary has no pod %s", pod)
}

// What kubelet makes of crid's figures without its cAdvisor: the summary, from which
// pods are evicted, and the page that people know from cAdvisor.
func TestFigures(t *testing.T) {
	k := newKubelet(t, options{})
	k.run("figures", `
		containers:
		- name: main
			image: IMAGE
			command: [sh, -c, "head -c 8388608 /dev/zero >/written; x=$(head -c 16777216 /dev/zero | tr '\\0' x); touch /ready; while :; do sleep 0.1; done"]
			resources: {limits: {memory: 256Mi, cpu: 500m}}
			securityContext: {capabilities: {add: [NET_ADMIN]}}
			readinessProbe: {exec: {command: [test, -e, /ready]}, periodSeconds: 1, timeoutSeconds: 60}
	`)
	k.await("figures", "is ready", ready)
	var p *podUsage
	k.eventually("the summary counts what was written", func() (err error) {
		if p, err = k.summary("figures"); err == nil && (len(p.Containers) != 1 || p.Containers[0].Rootfs.UsedBytes < 8<<20) {
			err = fmt.Errorf("it has %+v", p)
		}
		return err
	})
	for what, u := range map[string]usage{"pod": p.usage, "container": p.Containers[0]} {
		if m := u.Memory; u.CPU.UsageCoreNanoSeconds == 0 || m.RSSBytes < 16<<20 || m.WorkingSetBytes < 16<<20 || m.WorkingSetBytes+m.AvailableBytes != 256<<20 {
			t.Errorf("%s: %+v, want CPU time and 16 MiB of 256", what, u)
		}
	}
	if n := p.Network; p.ProcessStats.ProcessCount == 0 || n == nil || n.Name != "eth0" || n.TxBytes == nil || n.RxBytes == nil {
		t.Errorf("summary = %+v, want processes and eth0", p)
	}
	checkFamilies(t, k)

	// A container may take the interface away from under its name. kubelet lives on.
	k.exec("figures", "main", "sh", "-c", "ip link set eth0 down && ip link set eth0 name other")
	k.eventually("the summary has the new name", func() error {
		p, err := k.summary("figures")
		if err == nil && (p.Network == nil || len(p.Network.Interfaces) != 1 || p.Network.Interfaces[0].Name != "other" || p.Network.Name != "") {
			err = errors.New("the network is another")
		}
		return err
	})
}

// checkFamilies holds the page against what cAdvisor's users know.
func checkFamilies(t *testing.T, k *kubelet) {
	page, err := get(server + "/metrics/cadvisor")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for name, f := range families(t, page) {
		if !strings.HasPrefix(name, "container_") {
			continue
		}
		found++
		want := dto.MetricType_GAUGE
		if strings.HasSuffix(name, "_total") && name != "container_fs_inodes_total" || name == "container_memory_failcnt" {
			want = dto.MetricType_COUNTER
		}
		if f.GetType() != want {
			t.Errorf("%s is a %v, want a %v", name, f.GetType(), want)
		}
		who := "main"
		if strings.HasPrefix(name, "container_network_") {
			who = "POD"
		}
		if !slices.ContainsFunc(of(samples(f), "figures", who), func(s sample) bool { return s.labels["id"] != "" }) {
			t.Errorf("%s has no series of the pod's %s", name, who)
		}
	}
	if found < 40 {
		t.Errorf("kubelet shows %d kinds of figures of containers", found)
	}
}
