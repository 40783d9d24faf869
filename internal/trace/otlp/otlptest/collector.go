// Package otlptest has a collector of OpenTelemetry traces for tests: it speaks OTLP
// over gRPC and keeps what it gets.
package otlptest

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/grpc"
)

// Collector is a collector on a loopback port.
type Collector struct {
	collector.UnimplementedTraceServiceServer

	Addr string // host:port

	server *grpc.Server
	mu     sync.Mutex
	spans  []Span            // +checklocks:mu
	of     map[string]string // +checklocks:mu; the resource that has sent last
}

// Span is one span. Parent is "" for the first of a trace.
type Span struct {
	Trace, ID, Parent, Name string
	Attributes              map[string]string
	Failed                  string // text of its error; "" for success
	Begin, End              uint64 // nanoseconds since the epoch
}

// New starts a collector that ends with t.
func New(t testing.TB) *Collector {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &Collector{Addr: l.Addr().String(), server: grpc.NewServer()}
	collector.RegisterTraceServiceServer(c.server, c)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.server.Serve(l)
	}()
	t.Cleanup(func() {
		c.server.Stop()
		<-done
	})
	return c
}

// Export implements OTLP's service.
func (c *Collector) Export(_ context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rs := range r.GetResourceSpans() {
		c.of = attributes(rs.GetResource().GetAttributes())
		for _, ss := range rs.GetScopeSpans() {
			for _, s := range ss.GetSpans() {
				c.spans = append(c.spans, Span{
					Trace: hex.EncodeToString(s.GetTraceId()), ID: hex.EncodeToString(s.GetSpanId()),
					Parent: hex.EncodeToString(s.GetParentSpanId()), Name: s.GetName(),
					Attributes: attributes(s.GetAttributes()), Failed: s.GetStatus().GetMessage(),
					Begin: s.GetStartTimeUnixNano(), End: s.GetEndTimeUnixNano(),
				})
			}
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

func attributes(all []*common.KeyValue) map[string]string {
	m := make(map[string]string, len(all))
	for _, kv := range all {
		m[kv.GetKey()] = kv.GetValue().GetStringValue()
	}
	return m
}

// Spans is what has come so far, and the attributes of who has sent it.
func (c *Collector) Spans() (_ []Span, resource map[string]string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.spans), c.of
}

// Tree is the steps below the span, which are in no order in spans: one line each, deeper ones
// further in, sorted by name among their siblings.
func Tree(spans []Span, root Span) string {
	var b strings.Builder
	var walk func(of Span, depth int)
	walk = func(of Span, depth int) {
		fmt.Fprintf(&b, "%s%s", strings.Repeat("  ", depth), of.Name)
		for _, key := range []string{"plugin", "verb", "step"} {
			if v := of.Attributes[key]; v != "" {
				fmt.Fprintf(&b, " %s", v)
			}
		}
		b.WriteByte('\n')
		var below []Span
		for _, s := range spans {
			if s.Trace == of.Trace && s.Parent == of.ID {
				below = append(below, s)
			}
		}
		slices.SortFunc(below, func(x, y Span) int {
			return strings.Compare(x.Name+x.Attributes["plugin"]+x.Attributes["step"], y.Name+y.Attributes["plugin"]+y.Attributes["step"])
		})
		for _, s := range below {
			walk(s, depth+1)
		}
	}
	walk(root, 0)
	return b.String()
}
