package sandbox_test

import (
	"context"
	"runtime"
	"testing"
	"weak"

	"github.com/cridproject/crid/internal/testutil"
	"github.com/cridproject/crid/sandbox/sandboxtest"
)

// A request's context holds its client's stream: some KiB, which each sandbox and
// container would keep for its whole life.
func TestRequestsAreNotKept(t *testing.T) {
	n := sandboxtest.New(t)
	type key struct{}
	request := func() (context.Context, weak.Pointer[[1 << 10]byte]) {
		stream := new([1 << 10]byte)
		return context.WithValue(t.Context(), key{}, stream), weak.Make(stream)
	}
	ctx, ofRun := request()
	pod, err := n.Manager.Run(ctx, sandboxtest.Pod("web"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, ofCreate := request()
	id, err := n.Manager.Create(ctx, string(pod), sandboxtest.Container("main"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, ofStart := request()
	if err := n.Manager.Start(ctx, string(id)); err != nil {
		t.Fatal(err)
	}
	for name, kept := range map[string]weak.Pointer[[1 << 10]byte]{"Run": ofRun, "Create": ofCreate, "Start": ofStart} {
		testutil.WaitFor(t, "the request of "+name+" to be forgotten", func() bool {
			runtime.GC()
			return kept.Value() == nil
		})
	}
	runtime.KeepAlive(n)
}
