// Package metrics is what crid tells Prometheus of itself. It knows the names,
// labels and buckets; those who do the work call its methods, through interfaces
// of their own or from cmd/crid, and states are asked for at each scrape.
//
// Labels are bounded by the node's configuration and by tables of the program:
// none is the name or ID of a pod, a container or an image. docs/metrics.md has
// the list, and a test compares both.
package metrics

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/cridproject/crid/internal/errkind"
)

// Buckets of durations, in seconds: few, since each is a series for each label.
var (
	rpcBuckets  = []float64{.001, .005, .025, .1, .5, 2.5, 10, 60}
	cniBuckets  = []float64{.01, .05, .25, 1, 5, 30}
	pullBuckets = []float64{.1, .5, 2, 10, 60, 300}
)

// scrapeLimit bounds the scrapes that run at once: one is enough, the second is for
// a person.
const scrapeLimit = 2

// Metrics counts what happens. Its methods may be called concurrently and never wait.
type Metrics struct {
	registry *prometheus.Registry

	rpcs     *prometheus.HistogramVec // rpc, code
	inFlight *prometheus.GaugeVec     // rpc

	cniCalls    *prometheus.HistogramVec // plugin, verb
	cniFailures *prometheus.CounterVec   // plugin, verb

	pulls       *prometheus.HistogramVec // outcome
	pulledBytes prometheus.Counter
	layers      prometheus.Counter
	layerBytes  prometheus.Counter
}

// New makes the registry. version is that of crid; state is asked at each scrape.
func New(version string, state Sources) *Metrics {
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		rpcs: histogram("crid_rpc_duration_seconds",
			"Time that CRI requests took, by gRPC's code; GetContainerEvents, which lasts, is not among them.", rpcBuckets, "rpc", "code"),
		inFlight: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "crid_rpc_in_flight", Help: "CRI requests under way, open streams included.",
		}, []string{"rpc"}),
		cniCalls: histogram("crid_cni_call_duration_seconds", "Time that calls of CNI plugins took.", cniBuckets, "plugin", "verb"),
		cniFailures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "crid_cni_call_failures_total", Help: "Calls of CNI plugins that failed, those that were killed at the time limit included.",
		}, []string{"plugin", "verb"}),
		pulls: histogram("crid_image_pull_duration_seconds",
			"Time that pulls took, by outcome: success, canceled, or the kind of the error.", pullBuckets, "outcome"),
		pulledBytes: counter("crid_image_pulled_bytes_total", "Bytes that came from registries and archives, compressed as they came."),
		layers:      counter("crid_image_layers_unpacked_total", "Layers that were unpacked and stored."),
		layerBytes:  counter("crid_image_layers_unpacked_bytes_total", "Size of the files in the layers that were unpacked."),
	}
	buildInfo := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "crid_build_info", Help: "1, with the version of crid.", ConstLabels: prometheus.Labels{"version": version},
	})
	buildInfo.Set(1)
	m.registry.MustRegister(
		m.rpcs, m.inFlight, m.cniCalls, m.cniFailures, m.pulls, m.pulledBytes, m.layers, m.layerBytes, buildInfo,
		newStates(state),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{Namespace: "crid_monitor", PidFn: state.MonitorPID}),
	)
	return m
}

// Handler answers scrapes.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: scrapeLimit})
}

// RPC counts a request as under way until done is called, with its code and whether
// its time is one: that of a stream that lasts is not.
func (m *Metrics) RPC(rpc string) (done func(code string, lasted bool)) {
	began := time.Now()
	inFlight := m.inFlight.WithLabelValues(rpc)
	inFlight.Inc()
	return func(code string, lasted bool) {
		inFlight.Dec()
		if !lasted {
			m.rpcs.WithLabelValues(rpc, code).Observe(time.Since(began).Seconds())
		}
	}
}

// CNICall is one call of one plugin; err is nil for success.
func (m *Metrics) CNICall(plugin, verb string, took time.Duration, err error) {
	m.cniCalls.WithLabelValues(plugin, verb).Observe(took.Seconds())
	if err != nil {
		m.cniFailures.WithLabelValues(plugin, verb).Inc()
	}
}

// Pulled is the end of a pull of an image; err is nil for success.
func (m *Metrics) Pulled(took time.Duration, err error) {
	m.pulls.WithLabelValues(outcome(err)).Observe(took.Seconds())
}

func outcome(err error) string {
	switch {
	case err == nil:
		return "success"
	case errors.Is(err, context.Canceled):
		return "canceled"
	}
	return strings.ReplaceAll(errkind.Of(err).String(), " ", "_")
}

// Fetched is compressed bytes that came.
func (m *Metrics) Fetched(bytes int) { m.pulledBytes.Add(float64(bytes)) }

// Unpacked is a layer that is new in the store, of files of so many bytes.
func (m *Metrics) Unpacked(bytes uint64) {
	m.layers.Inc()
	m.layerBytes.Add(float64(bytes))
}
