package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"google.golang.org/grpc/metadata"
	"k8s.io/klog/v2"

	"github.com/cridproject/crid/cri"
	"github.com/cridproject/crid/internal/metrics"
	"github.com/cridproject/crid/internal/trace/otlp"
)

// lasting is the RPC that goes on for as long as its client wants: its time says
// nothing, and a trace of it would never be sent.
const lasting = "GetContainerEvents"

// newMetrics makes what /metrics shows. The parts that it asks must be there before
// it is asked.
func (d *daemon) newMetrics() *metrics.Metrics {
	return metrics.New(version(), metrics.Sources{
		Sandboxes:   func() map[string]int { return d.manager.SandboxCounts() },
		Containers:  func() map[string]int { return d.manager.ContainerCounts() },
		Subscribers: func() (int, uint64) { return d.manager.Subscribers() },
		Images: func() (int, uint64) {
			return len(d.images.List()), d.images.StoredBytes()
		},
		MonitorPID:      d.link.pid,
		MonitorRestarts: d.link.restarts.Load,
		Monitor: func(ctx context.Context) (metrics.Monitor, error) {
			r, err := d.link.figures(ctx)
			return metrics.Monitor{
				Containers: r.Containers, Execs: r.Execs, Holders: r.Holders,
				LogBytes: r.LogWritten, LogDroppedBytes: r.LogDropped, LogErrors: r.LogErrors,
				LogLimitedBytes: r.LogLimited, LogLimitedRecords: r.LogLimitedRecords,
			}, err
		},
	})
}

// countRequests counts requests.
func countRequests(m *metrics.Metrics) cri.Observer {
	return func(ctx context.Context, rpc string) (context.Context, func(string, error)) {
		done := m.RPC(rpc)
		return ctx, func(code string, _ error) { done(code, rpc == lasting) }
	}
}

// traceRequests makes each request a step of its client's trace, or the first of one.
func traceRequests(e *otlp.Exporter) cri.Observer {
	return func(ctx context.Context, rpc string) (context.Context, func(string, error)) {
		if rpc == lasting {
			return ctx, func(string, error) {}
		}
		parent := ""
		if sent := metadata.ValueFromIncomingContext(ctx, "traceparent"); len(sent) > 0 {
			parent = sent[0]
		}
		ctx, end := e.Start(ctx, "cri."+rpc, parent, "rpc.system", "grpc", "rpc.method", rpc)
		return ctx, func(code string, err error) { end(err, "rpc.grpc.status_code", code) }
	}
}

// observers is who is told of requests.
func (d *daemon) observers() []cri.Observer {
	all := []cri.Observer{countRequests(d.metrics)}
	if d.tracing != nil {
		all = append(all, traceRequests(d.tracing))
	}
	return all
}

// startTracing starts to send traces, if that is configured.
func (d *daemon) startTracing(ctx context.Context) (err error) {
	c := d.config.Tracing
	if c.Endpoint == "" {
		return nil
	}
	d.link.traced = true
	d.tracing, err = otlp.Start(ctx, otlp.Options{
		Endpoint: c.Endpoint, PerMillion: c.SamplingRatePerMillion, Version: version(), Log: klog.FromContext(ctx),
	})
	if err == nil {
		d.closers = append(d.closers, func() {
			ctx, cancel := context.WithTimeout(context.Background(), flushLimit)
			defer cancel()
			d.tracing.Close(ctx)
		})
	}
	return err
}

// flushLimit is how long crid's end may be held up by a collector of traces.
const flushLimit = 2 * time.Second

// scrapeServer serves /metrics, and nothing else, on an address.
type scrapeServer struct {
	http     *http.Server
	listener net.Listener
}

func (s *scrapeServer) serve() error { return s.http.Serve(s.listener) }

// listenForScrapes opens metrics.address, if there is one.
func (d *daemon) listenForScrapes(ctx context.Context) error {
	if d.config.Metrics.Address == "" {
		return nil
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", d.config.Metrics.Address)
	if err != nil {
		return fmt.Errorf("metrics.address: %w", err)
	}
	d.closers = append(d.closers, func() { _ = l.Close() })
	klog.FromContext(ctx).Info("Serving metrics", "address", l.Addr().String())
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", d.metrics.Handler())
	d.scraped = &scrapeServer{listener: l, http: &http.Server{
		Handler: mux, ReadHeaderTimeout: requestTimeout, WriteTimeout: scrapeTimeout, IdleTimeout: time.Minute,
		ErrorLog: klog.NewStandardLogger("WARNING"),
	}}
	return nil
}

// Limits of clients of crid's own HTTP servers.
const (
	requestTimeout = 10 * time.Second // to send a header
	scrapeTimeout  = 30 * time.Second // for a whole scrape
)

// addDebugging serves, beside imports, what those need who look into a running crid.
func addDebugging(mux *http.ServeMux, m *metrics.Metrics) {
	mux.Handle("GET /metrics", m.Handler())
	mux.HandleFunc("GET /debug/pprof/", pprof.Index) // has goroutine, heap and so on below it
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
}
