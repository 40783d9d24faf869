// Package otlp sends traces to a collector of OpenTelemetry, by OTLP over gRPC.
// It is linked for those nodes that are configured to, and does nothing, not even
// a goroutine, until Start.
package otlp

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/trace"
)

// Limits of what a collector that is slow or away may cost.
const (
	queueSpans  = 2048             // wait to be sent; more are dropped
	batchSpans  = 512              // of one message
	batchDelay  = 2 * time.Second  // that a span waits at most for others
	exportLimit = 5 * time.Second  // of one message
	maxPerSpan  = 32               // attributes, and so many of anything else
	maxValue    = 1024             // bytes of an attribute
	retryLimit  = 20 * time.Second // of one message, with all its attempts
	perMillion  = 1_000_000
	serviceName = "crid"
)

// Options of an Exporter.
type Options struct {
	Endpoint string // host:port of the collector; required
	// PerMillion is how many of a million requests are traced that come without a
	// decision; those of a client that traces them are.
	PerMillion int
	Version    string // of crid
	Log        klog.Logger
}

// Exporter sends what trace.Requests begins.
type Exporter struct {
	*trace.Requests
	provider *sdk.TracerProvider
	client   sdk.SpanExporter
}

// Start starts to send. It does not wait for the collector, which may come and go:
// what cannot be sent meanwhile is dropped, and the log says so once.
func Start(ctx context.Context, o Options) (*Exporter, error) {
	client, err := otlptracegrpc.New(ctx,
		otlptracegrpc.WithEndpoint(o.Endpoint), otlptracegrpc.WithInsecure(), otlptracegrpc.WithTimeout(exportLimit),
		otlptracegrpc.WithRetry(otlptracegrpc.RetryConfig{
			Enabled: true, InitialInterval: time.Second, MaxInterval: exportLimit, MaxElapsedTime: retryLimit,
		}))
	if err != nil {
		return nil, fmt.Errorf("send traces to %s: %w", o.Endpoint, err)
	}
	limits := sdk.NewSpanLimits()
	limits.AttributeValueLengthLimit = maxValue
	limits.AttributeCountLimit, limits.EventCountLimit, limits.LinkCountLimit = maxPerSpan, maxPerSpan, maxPerSpan
	p := sdk.NewTracerProvider(
		sdk.WithSampler(sdk.ParentBased(sdk.TraceIDRatioBased(float64(o.PerMillion)/perMillion))),
		sdk.WithResource(describe(o.Version)),
		sdk.WithRawSpanLimits(limits),
		sdk.WithBatcher(&told{SpanExporter: client, o: o},
			sdk.WithMaxQueueSize(queueSpans), sdk.WithMaxExportBatchSize(batchSpans), sdk.WithBatchTimeout(batchDelay),
			sdk.WithExportTimeout(retryLimit)),
	)
	return &Exporter{trace.NewRequests(p), p, client}, nil
}

// describe is this process, by the names of OpenTelemetry's semantic conventions.
func describe(version string) *resource.Resource {
	host, _ := os.Hostname()
	return resource.NewSchemaless(
		attribute.String("service.name", serviceName),
		attribute.String("service.version", version),
		attribute.String("service.instance.id", host),
		attribute.String("host.name", host),
		attribute.Int("process.pid", os.Getpid()),
	)
}

// Close sends what waits, until ctx ends, and leaves nothing behind.
func (e *Exporter) Close(ctx context.Context) {
	// What was lost has been said. When ctx has ended, the second call ends what the
	// first has left under way.
	_ = e.provider.Shutdown(ctx)
	_ = e.client.Shutdown(ctx)
}

// told is an exporter whose errors go to the log, once until the next success.
type told struct {
	sdk.SpanExporter
	o       Options
	failing atomic.Bool
}

// ExportSpans implements sdk.SpanExporter.
func (t *told) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	err := t.SpanExporter.ExportSpans(ctx, spans)
	switch {
	case err != nil && !t.failing.Swap(true):
		t.o.Log.Info("Lost traces, will go on trying", "endpoint", t.o.Endpoint, "spans", len(spans), "err", err)
	case err == nil && t.failing.Swap(false):
		t.o.Log.Info("Sends traces again", "endpoint", t.o.Endpoint)
	}
	return nil // the package would write it elsewhere
}
