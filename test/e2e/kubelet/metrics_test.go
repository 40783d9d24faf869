package kubelet

import (
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

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
