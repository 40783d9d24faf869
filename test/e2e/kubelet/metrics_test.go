package kubelet

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// awaitMetric waits until kubelet's figures about itself have a text.
func (k *kubelet) awaitMetric(text string) {
	k.t.Helper()
	k.eventually("kubelet has counted", func() error {
		body, err := get(server + "/metrics")
		if err == nil && !strings.Contains(body, text) {
			err = fmt.Errorf("no %q", text)
		}
		return err
	})
}

// metric is a figure of kubelet's about itself, over all labels; of a histogram the count.
func (k *kubelet) metric(family string) int {
	k.t.Helper()
	page, err := get(server + "/metrics")
	if err != nil {
		k.t.Fatal(err)
	}
	if !strings.Contains(page, family) {
		k.t.Fatalf("kubelet has no metric %s", family)
	}
	sum := 0.0
	for _, s := range series(k.t, page, family) {
		sum += s.value
	}
	return int(sum)
}

// sample is one series of a page of metrics.
type sample struct {
	labels map[string]string
	value  float64 // a histogram's count
}

// families are those of a page in Prometheus' text format.
func families(t testing.TB, page string) map[string]*dto.MetricFamily {
	t.Helper()
	p := expfmt.NewTextParser(model.UTF8Validation)
	f, err := p.TextToMetricFamilies(strings.NewReader(page))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// series are those of one family.
func series(t testing.TB, page, family string) []sample {
	t.Helper()
	return samples(families(t, page)[family])
}

func samples(f *dto.MetricFamily) []sample {
	var found []sample
	for _, m := range f.GetMetric() {
		s := sample{labels: make(map[string]string)}
		for _, l := range m.Label {
			s.labels[l.GetName()] = l.GetValue()
		}
		switch {
		case m.Counter != nil:
			s.value = m.Counter.GetValue()
		case m.Gauge != nil:
			s.value = m.Gauge.GetValue()
		case m.Histogram != nil:
			s.value = float64(m.Histogram.GetSampleCount())
		default:
			s.value = m.GetUntyped().GetValue()
		}
		found = append(found, s)
	}
	return found
}

// of are those that are of a pod's container.
func of(all []sample, pod, container string) []sample {
	return slices.DeleteFunc(all, func(s sample) bool {
		return s.labels["pod"] != pod+"-"+nodeName || s.labels["namespace"] != namespace || s.labels["container"] != container
	})
}
