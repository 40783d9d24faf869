package e2e

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/cridproject/crid/internal/sys"
)

// Transports are the two ways in which Kubernetes' clients talk to a streaming server.
var Transports = []string{"SPDY", "WebSocket"}

// insecureTLS is for kubelet's streams, whose certificate is kubelet's own; crid's
// have none.
var insecureTLS = rest.TLSClientConfig{Insecure: true}

// Executor is a client of an exec's or attachment's URL.
func Executor(t testing.TB, transport, target string) remotecommand.Executor {
	t.Helper()
	var e remotecommand.Executor
	u, err := url.Parse(target)
	if err == nil && transport == "SPDY" {
		e, err = remotecommand.NewSPDYExecutor(&rest.Config{TLSClientConfig: insecureTLS}, http.MethodPost, u)
	} else if err == nil {
		e, err = remotecommand.NewWebSocketExecutor(&rest.Config{TLSClientConfig: insecureTLS}, http.MethodGet, target)
	}
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// ExecURL asks for an exec with the streams that o has.
func (n *Node) ExecURL(id string, o remotecommand.StreamOptions, args ...string) string {
	n.T.Helper()
	r, err := n.Runtime.Exec(n.Ctx(), &cri.ExecRequest{
		ContainerId: id, Cmd: args, Tty: o.Tty, Stdin: o.Stdin != nil, Stdout: o.Stdout != nil, Stderr: o.Stderr != nil,
	})
	if err != nil {
		n.T.Fatalf("Exec(%q) = %v", args, err)
	}
	return r.Url
}

// AttachURL asks for an attachment with the streams that o has.
func (n *Node) AttachURL(id string, o remotecommand.StreamOptions) string {
	n.T.Helper()
	r, err := n.Runtime.Attach(n.Ctx(), &cri.AttachRequest{
		ContainerId: id, Tty: o.Tty, Stdin: o.Stdin != nil, Stdout: o.Stdout != nil, Stderr: o.Stderr != nil,
	})
	if err != nil {
		n.T.Fatalf("Attach = %v", err)
	}
	return r.Url
}

// PortForwardURL asks for a session of port-forwards.
func (n *Node) PortForwardURL(pod string, ports ...int32) string {
	n.T.Helper()
	r, err := n.Runtime.PortForward(n.Ctx(), &cri.PortForwardRequest{PodSandboxId: pod, Port: ports})
	if err != nil {
		n.T.Fatalf("PortForward = %v", err)
	}
	return r.Url
}

// Dialer is a client of a port-forward's URL; WebSocket's has SPDY within.
func Dialer(t testing.TB, transport, target string) httpstream.Dialer {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	if transport == "WebSocket" {
		d, err := portforward.NewSPDYOverWebsocketDialerForStreaming(u, &rest.Config{TLSClientConfig: insecureTLS})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	rt, upgrader, err := spdy.RoundTripperFor(&rest.Config{TLSClientConfig: insecureTLS})
	if err != nil {
		t.Fatal(err)
	}
	return spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: rt}, http.MethodPost, u)
}

// Forward opens one connection of a session: its data, and its error stream.
func Forward(t testing.TB, c httpstream.Connection, request, port string) (data, failure httpstream.Stream) {
	t.Helper()
	h := http.Header{}
	h.Set("port", port)
	h.Set("requestID", request)
	h.Set("streamType", "error")
	failure, err := c.CreateStream(h)
	if err != nil {
		t.Fatalf("CreateStream: %v", err)
	}
	if err := failure.Close(); err != nil { // nothing is written to it
		t.Fatal(err)
	}
	h.Set("streamType", "data")
	if data, err = c.CreateStream(h); err != nil {
		t.Fatalf("CreateStream: %v", err)
	}
	return data, failure
}

// ListenInPod listens within a pod's network namespace, until the test ends.
func (n *Node) ListenInPod(pod, address string) net.Listener {
	n.T.Helper()
	return n.listenIn(n.path("netns", "crid-"+pod), address)
}

func (n *Node) listenIn(netns, address string) net.Listener {
	n.T.Helper()
	var l net.Listener
	err := sys.DoInNetNS(netns, func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		n.T.Fatal(err)
	}
	n.T.Cleanup(func() { _ = l.Close() })
	return l
}

// cleanupLimit is for what must end by itself. Nothing is timed by it.
const cleanupLimit = 30 * time.Second

// monitorLog is what crid-monitor has logged.
func (n *Node) monitorLog() string {
	b, _ := os.ReadFile(n.path("state", "monitor.log"))
	return string(b)
}

// Buffer is a bytes.Buffer for several goroutines, in which one can wait.
type Buffer struct {
	mu   sync.Mutex
	cond *sync.Cond
	b    bytes.Buffer
}

// Write is io.Writer's.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, err := b.b.Write(p)
	b.signal().Broadcast()
	return n, err
}

// String is what was written so far.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// signal makes the condition. Preconditions: mu is held.
func (b *Buffer) signal() *sync.Cond {
	if b.cond == nil {
		b.cond = sync.NewCond(&b.mu)
	}
	return b.cond
}

// Await waits until text has been written, at most half a minute, and reports
// whether it was.
func (b *Buffer) Await(text string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupLimit)
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.signal().Broadcast()
	})()
	b.mu.Lock()
	defer b.mu.Unlock()
	for !bytes.Contains(b.b.Bytes(), []byte(text)) {
		if ctx.Err() != nil {
			return false
		}
		b.signal().Wait()
	}
	return true
}

// endless is a stdin that says nothing until it is closed.
func endless(t testing.TB) *io.PipeReader {
	r, w := io.Pipe()
	t.Cleanup(func() { _ = w.Close() })
	return r
}
