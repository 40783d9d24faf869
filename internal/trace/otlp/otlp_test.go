package otlp

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"

	"github.com/cridproject/crid/internal/testutil"
	"github.com/cridproject/crid/internal/trace"
	"github.com/cridproject/crid/internal/trace/otlp/otlptest"
)

func start(t *testing.T, endpoint string, perMillion int) *Exporter {
	t.Helper()
	e, err := Start(t.Context(), Options{Endpoint: endpoint, PerMillion: perMillion, Version: "1.2.3", Log: klog.Background()})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// A request becomes part of its client's trace, with its steps below it.
func TestSteps(t *testing.T) {
	c := otlptest.New(t)
	e := start(t, c.Addr, 0)
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	ctx, end := e.Start(t.Context(), "cri.RunPodSandbox", parent, "rpc.method", "RunPodSandbox")
	in, endAttach := trace.Start(ctx, "cni.attach")
	_, endPlugin := trace.Start(in, "cni.plugin", "plugin", "bridge", "verb", "ADD")
	endPlugin(errors.New("no address"))
	endAttach(nil)
	// What goes on when the client has gone is part of the request all the same.
	after := context.WithoutCancel(ctx)
	end(nil, "rpc.grpc.status_code", "OK")
	_, endLate := trace.Start(after, "sandbox.record", "step", "sandbox.run.ready")
	endLate(nil)
	e.Close(t.Context())

	spans, resource := c.Spans()
	if len(spans) != 4 {
		t.Fatalf("the collector has %d spans, want 4: %v", len(spans), spans)
	}
	for _, s := range spans {
		if s.Trace != "0af7651916cd43dd8448eb211c80319c" || s.End < s.Begin {
			t.Errorf("span %+v is not of the client's trace, or ends before it begins", s)
		}
		switch s.Name {
		case "cri.RunPodSandbox":
			if s.Parent != "b7ad6b7169203331" || s.Attributes["rpc.grpc.status_code"] != "OK" || s.Attributes["rpc.method"] != "RunPodSandbox" {
				t.Errorf("request = %+v", s)
			}
			const want = "cri.RunPodSandbox\n  cni.attach\n    cni.plugin bridge ADD\n  sandbox.record sandbox.run.ready\n"
			if got := otlptest.Tree(spans, s); got != want {
				t.Errorf("steps:\n%swant:\n%s", got, want)
			}
		case "cni.plugin":
			if s.Failed != "no address" {
				t.Errorf("a step that failed = %+v", s)
			}
		}
	}
	if resource["service.name"] != "crid" || resource["service.version"] != "1.2.3" || resource["host.name"] == "" {
		t.Errorf("resource = %v", resource)
	}
}

// Which requests are traced: what the client says counts, then the rate.
func TestSampling(t *testing.T) {
	const (
		traced   = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
		untraced = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
	)
	for _, tt := range []struct {
		name, parent string
		perMillion   int
		want         int // spans
	}{
		{"rate 0", "", 0, 0},
		{"rate 0, traced by the client", traced, 0, 2},
		{"all", "", perMillion, 2},
		{"all, but the client does not", untraced, perMillion, 0},
		{"malformed", "00-zz-01", perMillion, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := otlptest.New(t)
			e := start(t, c.Addr, tt.perMillion)
			ctx, end := e.Start(t.Context(), "cri.Version", tt.parent)
			_, endStep := trace.Start(ctx, "step")
			endStep(nil)
			end(nil)
			e.Close(t.Context())
			if spans, _ := c.Spans(); len(spans) != tt.want {
				t.Errorf("%d spans, want %d", len(spans), tt.want)
			}
		})
	}
}

// A collector that is away costs the spans, one line in the log, and nobody's time.
func TestCollectorAway(t *testing.T) {
	testutil.LeakCheck(t)
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	logger := ktesting.NewLogger(t, ktesting.NewConfig(ktesting.BufferLogs(true)))
	e, err := Start(t.Context(), Options{Endpoint: addr, PerMillion: perMillion, Log: logger})
	if err != nil {
		t.Fatal(err)
	}
	// More than the queue holds: a call that waited for room would wait for ever.
	for range 3 * queueSpans {
		_, end := e.Start(t.Context(), "cri.Version", "")
		end(nil)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	e.Close(ctx)
	said := logger.GetSink().(ktesting.Underlier).GetBuffer().String()
	if n := strings.Count(said, "Lost traces"); n > 1 {
		t.Errorf("the loss was said %d times, want at most once:\n%s", n, said)
	}
}

// Without a request that is watched a step is nothing, and costs no memory.
func TestNobodyWatches(t *testing.T) {
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() {
		_, end := trace.Start(ctx, "cni.plugin", "plugin", "bridge", "verb", "ADD")
		end(nil)
	}); n > 0 {
		t.Errorf("a step makes %v allocations, want 0", n)
	}
}
