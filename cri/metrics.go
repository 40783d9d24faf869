package cri

import (
	"context"
	"slices"
	"strconv"
	"time"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/sandbox"
)

// Metrics are what kubelet shows at /metrics/cadvisor when it leaves cAdvisor out:
// the same names, help and units. Values of CRI are whole numbers, so seconds are
// whole seconds, rounded down. What the kernel does not count is left out.

// baseLabels come first in all metrics. In those of a pod, container is POD and image is
// empty. The name is the ID, as kubelet's own cAdvisor has it of containerd: dashboards
// look for what has a name.
var baseLabels = []string{"container", "id", "image", "name", "namespace", "pod"}

// metric is one name with all that is shown under it.
type metric struct {
	name, help string
	kind       v1.MetricType
	labels     []string // after baseLabels
	// One of these: of each container, and of each interface of a pod.
	container func(*sandbox.ContainerMetrics, series)
	network   func(*sandbox.NetInterface) uint64
}

const (
	counter = v1.MetricType_COUNTER
	gauge   = v1.MetricType_GAUGE
)

// series takes the values of one metric.
type series struct {
	m    *metric
	base []string // values of baseLabels
	to   *[]*v1.Metric
	at   time.Time // when it was collected; zero means now
}

// add adds a value, if it is known, with those of the metric's own labels.
func (s series) add(v sandbox.Value, labels ...string) {
	if !v.Known {
		return
	}
	out := &v1.Metric{Name: s.m.name, MetricType: s.m.kind, LabelValues: s.base, Value: &v1.UInt64Value{Value: v.N}}
	if len(labels) > 0 {
		out.LabelValues = append(slices.Clip(s.base), labels...)
	}
	if !s.at.IsZero() {
		out.Timestamp = s.at.UnixNano()
	}
	*s.to = append(*s.to, out)
}

// ListMetricDescriptors is the same list for the daemon's whole life: kubelet asks once.
func (*Server) ListMetricDescriptors(context.Context, *v1.ListMetricDescriptorsRequest) (*v1.ListMetricDescriptorsResponse, error) {
	resp := &v1.ListMetricDescriptorsResponse{}
	for _, m := range metrics() {
		resp.Descriptors = append(resp.Descriptors, &v1.MetricDescriptor{
			Name: m.name, Help: m.help, LabelKeys: slices.Concat(baseLabels, m.labels),
		})
	}
	return resp, nil
}

// ListPodSandboxMetrics is of ready sandboxes and running containers.
func (s *Server) ListPodSandboxMetrics(context.Context, *v1.ListPodSandboxMetricsRequest) (*v1.ListPodSandboxMetricsResponse, error) {
	resp := &v1.ListPodSandboxMetricsResponse{}
	for m := range s.o.Sandboxes.AllMetrics() {
		resp.PodMetrics = append(resp.PodMetrics, encodeSandboxMetrics(&m))
	}
	return resp, nil
}

func encodeSandboxMetrics(sm *sandbox.SandboxMetrics) *v1.PodSandboxMetrics {
	table := metrics()
	pod := &sm.Status.Config
	out := &v1.PodSandboxMetrics{PodSandboxId: string(sm.Status.ID)}
	if n := sm.Network; n != nil {
		base := []string{"POD", string(sm.Status.ID), "", string(sm.Status.ID), pod.Namespace, pod.Name}
		interfaces := n.Others
		if n.Default != nil {
			interfaces = slices.Concat([]sandbox.NetInterface{*n.Default}, n.Others)
		}
		for i := range table {
			for j := range interfaces {
				if f := table[i].network; f != nil {
					series{m: &table[i], base: base, to: &out.Metrics}.add(known(f(&interfaces[j])), utf8Text(interfaces[j].Name))
				}
			}
		}
	}
	for i := range sm.Containers {
		c := &sm.Containers[i]
		image := c.Status.Config.Image.UserSpecified // the name; kubelet gives the ID as the reference
		if image == "" {
			image = c.Status.Config.Image.Ref
		}
		base := []string{c.Status.Config.Name, string(c.Status.ID), image, string(c.Status.ID), pod.Namespace, pod.Name}
		cm := &v1.ContainerMetrics{ContainerId: string(c.Status.ID), Metrics: make([]*v1.Metric, 0, len(table))}
		for i := range table {
			if f := table[i].container; f != nil {
				f(c, series{m: &table[i], base: base, to: &cm.Metrics})
			}
		}
		out.ContainerMetrics = append(out.ContainerMetrics, cm)
	}
	return out
}

func known(n uint64) sandbox.Value { return sandbox.Value{N: n, Known: true} }

// orZero is for figures of which 0 says that there is no limit, or no swap.
func orZero(v sandbox.Value) sandbox.Value { return known(v.N) }

func seconds(nanoseconds sandbox.Value) sandbox.Value {
	nanoseconds.N /= uint64(time.Second)
	return nanoseconds
}

// stalled is whole seconds of pressure.
func stalled(p *sandbox.Pressure, s *sandbox.Stall) sandbox.Value {
	return sandbox.Value{N: uint64(s.Total / time.Second), Known: p.Known}
}

// value is a metric with one value for each container.
func value(name, help string, kind v1.MetricType, f func(*sandbox.ContainerMetrics) sandbox.Value) metric {
	return metric{name: name, help: help, kind: kind, container: func(c *sandbox.ContainerMetrics, s series) { s.add(f(c)) }}
}

// disk is a metric with one value for each block device.
func disk(name, help string, f func(*sandbox.DeviceUsage) uint64) metric {
	return metric{name: name, help: help, kind: counter, labels: []string{"device"}, container: func(c *sandbox.ContainerMetrics, s series) {
		for i := range c.Devices {
			s.add(known(f(&c.Devices[i])), c.Devices[i].Name)
		}
	}}
}

// filesystem is a metric of the file system that the writable layer is on.
func filesystem(name, help string, f func(*sandbox.FilesystemSize) uint64) metric {
	return metric{name: name, help: help, kind: gauge, labels: []string{"device"}, container: func(c *sandbox.ContainerMetrics, s series) {
		if c.Filesystem != nil {
			s.add(known(f(c.Filesystem)), c.Filesystem.Device)
		}
	}}
}

// hugePages is a metric with one value for each size of huge pages.
func hugePages(name, help string, most bool) metric {
	return metric{name: name, help: help, kind: gauge, labels: []string{"pagesize"}, container: func(c *sandbox.ContainerMetrics, s series) {
		for _, h := range c.Details.HugePages {
			if most {
				h.Bytes = h.MaxBytes
			}
			s.add(h.Bytes, h.Size)
		}
	}}
}

// network is a metric with one value for each interface of a pod.
func network(name, help string, f func(*sandbox.NetInterface) uint64) metric {
	return metric{name: name, help: help, kind: counter, labels: []string{"interface"}, network: f}
}

// written is the size of the writable layer, and older than the rest.
func written(c *sandbox.ContainerMetrics, s series) {
	if w := c.Written; !w.At.IsZero() && c.Filesystem != nil {
		s.at = w.At
		s.add(known(w.UsedBytes), c.Filesystem.Device)
	}
}

// blockIO is bytes by device and operation.
func blockIO(c *sandbox.ContainerMetrics, s series) {
	for i := range c.Devices {
		d := &c.Devices[i]
		major, minor := strconv.FormatUint(uint64(d.Major), 10), strconv.FormatUint(uint64(d.Minor), 10)
		s.add(known(d.DiscardBytes), d.Name, major, minor, "Discard")
		s.add(known(d.ReadBytes), d.Name, major, minor, "Read")
		s.add(known(d.WriteBytes), d.Name, major, minor, "Write")
	}
}

// faults: the kernel's hierarchical figures are all that there is, for both scopes.
func faults(c *sandbox.ContainerMetrics, s series) {
	for _, scope := range []string{"container", "hierarchy"} {
		s.add(c.Details.PageFaults, "pgfault", scope)
		s.add(c.Details.MajorPageFaults, "pgmajfault", scope)
	}
}
