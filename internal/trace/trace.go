// Package trace marks the steps of a request, for those who watch requests with
// OpenTelemetry. It is all that the domain packages know of tracing; otlp below
// it sends what is marked to a collector.
//
// There is nothing global: a step is part of the request in whose context it
// is, and nothing at all where nobody watches that request.
package trace

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	oteltrace "go.opentelemetry.io/otel/trace"
)

// scope is what the spans say made them.
const scope = "github.com/cridproject/crid"

// Start begins a step of the request in ctx; end, which must be called once, ends it
// and says with which error. Names are constant, as "cni.ADD"; what varies is in kv,
// keys and values in turn. Steps may end after the request that they are of. It costs a
// few nanoseconds where nobody watches.
func Start(ctx context.Context, name string, kv ...string) (_ context.Context, end func(error)) {
	parent := oteltrace.SpanFromContext(ctx)
	if !parent.SpanContext().IsSampled() {
		return ctx, func(error) {}
	}
	ctx, span := parent.TracerProvider().Tracer(scope).Start(ctx, name, oteltrace.WithAttributes(attributes(kv)...))
	return ctx, func(err error) { finish(span, err) }
}

func finish(span oteltrace.Span, err error) {
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}

func attributes(kv []string) []attribute.KeyValue {
	all := make([]attribute.KeyValue, 0, len(kv)/2)
	for i := 0; i+1 < len(kv); i += 2 {
		all = append(all, attribute.String(kv[i], kv[i+1]))
	}
	return all
}

// Requests begins requests.
type Requests struct {
	tracer oteltrace.Tracer
}

// NewRequests makes a Requests whose steps p takes.
func NewRequests(p oteltrace.TracerProvider) *Requests { return &Requests{p.Tracer(scope)} }

// Start begins the request of a client. parent is the traceparent that it has sent
// (https://www.w3.org/TR/trace-context), "" for none: then, and when it is
// malformed, the request is the first of its trace. end says with which error, and
// with further kv, it ended.
func (r *Requests) Start(ctx context.Context, name, parent string, kv ...string) (_ context.Context, end func(err error, kv ...string)) {
	ctx = withParent(ctx, parent)
	ctx, span := r.tracer.Start(ctx, name,
		oteltrace.WithSpanKind(oteltrace.SpanKindServer), oteltrace.WithAttributes(attributes(kv)...))
	return ctx, func(err error, kv ...string) {
		span.SetAttributes(attributes(kv)...)
		finish(span, err)
	}
}

// traceparent is the header's name.
const traceparent = "traceparent"

// withParent is ctx with the span that a traceparent names.
func withParent(ctx context.Context, parent string) context.Context {
	if parent == "" {
		return ctx
	}
	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{traceparent: parent})
}
