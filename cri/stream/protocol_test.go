package stream_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/cridproject/crid/cri/stream"
	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/sandbox"
)

// Streams that the request does not have are ended, whenever they come, and are in
// nobody's way.
func TestStreamsThatWereNotAskedFor(t *testing.T) {
	goOn := make(chan struct{})
	s := serve(t, stream.Options{Runtime: runtime{func(_ context.Context, _ []string, s sandbox.Streams) (int, error) {
		if s.Stdin != nil || s.Stderr != nil {
			return 0, errors.New("streams that the request does not have")
		}
		_, err := io.WriteString(s.Stdout, "hello")
		<-goOn
		return 0, err
	}}})
	u, err := s.ExecURL("c", []string{"x"}, stream.Wanted{Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	conn := dial(t, u, "v4.channel.k8s.io")
	defer conn.Close()
	got := map[string]httpstream.Stream{}
	open := func(kinds ...string) {
		for _, kind := range kinds {
			h := http.Header{}
			h.Set("streamType", kind)
			if got[kind], err = conn.CreateStream(h); err != nil {
				t.Fatalf("open %s: %v", kind, err)
			}
		}
	}
	open("stdin", "stderr", "nonsense", "error", "stdout")
	hello := make([]byte, 5)
	if _, err := io.ReadFull(got["stdout"], hello); err != nil || string(hello) != "hello" {
		t.Errorf("stdout = %q, %v, want hello", hello, err)
	}
	open("resize", "stdin")
	for _, kind := range []string{"stdin", "stderr", "nonsense", "resize"} {
		if text, err := io.ReadAll(got[kind]); err != nil || len(text) > 0 {
			t.Errorf("%s = %q, %v, want its end", kind, text, err)
		}
	}
	close(goOn)
	if text, err := io.ReadAll(got["error"]); err != nil || !strings.Contains(string(text), "Success") {
		t.Errorf("the end = %q, %v", text, err)
	}
}

// queue are sizes of a terminal, which are all said before stdin says anything.
type queue struct {
	left int
	said chan struct{}
}

func (q *queue) Next() *remotecommand.TerminalSize {
	if q.left--; q.left < 0 {
		close(q.said)
		return nil
	}
	return &remotecommand.TerminalSize{Width: 80, Height: 25}
}

// late is what is read after a channel is closed.
type late struct {
	io.Reader
	after <-chan struct{}
}

func (l late) Read(p []byte) (int, error) {
	<-l.after
	return l.Reader.Read(p)
}

// Sizes of a terminal, which an attachment to a container without one takes from
// nobody, are not in the way of stdin.
func TestSizesThatNobodyTakes(t *testing.T) {
	s := serve(t, stream.Options{Runtime: runtime{cat}})
	for _, transport := range []string{"SPDY", "WebSocket"} {
		w := all
		w.TTY = true
		u, err := s.AttachURL("c", w)
		if err != nil {
			t.Fatal(err)
		}
		q := &queue{left: 100, said: make(chan struct{})}
		var out bytes.Buffer
		o := remotecommand.StreamOptions{Stdin: late{strings.NewReader("hello"), q.said}, Stdout: &out, Tty: true, TerminalSizeQueue: q}
		if err := run(t, transport, u, &rest.Config{}, o); err != nil || out.String() != "hello" {
			t.Errorf("%s: attach = %q, %v, want hello", transport, &out, err)
		}
	}
}

// Each version tells its clients how it has ended.
func TestVersions(t *testing.T) {
	fails := errkind.Errorf(errkind.BadState, "it is exited, not running")
	s := serve(t, stream.Options{Runtime: runtime{func(_ context.Context, args []string, s sandbox.Streams) (int, error) {
		_, _ = io.WriteString(s.Stdout, "out")
		switch args[0] {
		case "fail":
			return 0, fails
		case "seven":
			return 7, nil
		}
		return 0, nil
	}}})
	for _, c := range []struct{ transport, version string }{
		{"SPDY", "v4.channel.k8s.io"},
		{"SPDY", "v3.channel.k8s.io"},
		{"SPDY", "v2.channel.k8s.io"},
		{"SPDY", "channel.k8s.io"},
		{"WebSocket", "v5.channel.k8s.io"},
		{"WebSocket", "v4.channel.k8s.io"},
	} {
		for args, want := range map[string]string{"true": "", "fail": "it is exited, not running", "seven": "exit code 7"} {
			if c.transport == "SPDY" && c.version == "channel.k8s.io" && want != "" {
				continue // its clients do not wait for it
			}
			u, err := s.ExecURL("c", []string{args}, stream.Wanted{Stdout: true})
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			err = executor(t, c.transport, c.version, u).StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &out})
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) || out.String() != "out" {
				t.Errorf("%s %s %s = %q, %v, want out and %q", c.transport, c.version, args, &out, err, want)
			}
		}
	}
	for _, transport := range []string{"SPDY", "WebSocket"} {
		u, err := s.ExecURL("c", []string{"true"}, stream.Wanted{Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := executor(t, transport, "v9.channel.k8s.io", u).StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard}); err == nil {
			t.Errorf("%s: version 9 was spoken", transport)
		}
	}
}

func executor(t *testing.T, transport, version, target string) remotecommand.Executor {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	var e remotecommand.Executor
	if transport == "SPDY" {
		rt, upgrader, rerr := spdy.RoundTripperFor(&rest.Config{})
		if rerr != nil {
			t.Fatal(rerr)
		}
		e, err = remotecommand.NewSPDYExecutorForProtocols(rt, upgrader, http.MethodPost, u, version)
	} else {
		e, err = remotecommand.NewWebSocketExecutorForProtocols(&rest.Config{}, http.MethodGet, target, version)
	}
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// A client that does not open all its streams is told, and not waited for.
func TestStreamsThatDoNotCome(t *testing.T) {
	s := serve(t, stream.Options{Runtime: ports{runtime{cat}}, CreateTimeout: 500 * time.Millisecond})
	u, err := s.ExecURL("c", []string{"x"}, all)
	if err != nil {
		t.Fatal(err)
	}
	conn := dial(t, u, "v4.channel.k8s.io")
	defer conn.Close()
	failure, err := conn.CreateStream(http.Header{"Streamtype": {"error"}})
	if err != nil {
		t.Fatal(err)
	}
	if text, _ := io.ReadAll(failure); !strings.Contains(string(text), `[\"stdin\" \"stdout\"]`) {
		t.Errorf("the client is told %q, want the names of the streams", text)
	}
	<-conn.CloseChan()
	if u, err = s.PortForwardURL("s", nil); err != nil {
		t.Fatal(err)
	}
	conn = dial(t, u, "portforward.k8s.io")
	defer conn.Close()
	if failure, err = conn.CreateStream(http.Header{"Streamtype": {"error"}, "Port": {"80"}, "Requestid": {"alone"}}); err != nil {
		t.Fatal(err)
	}
	if text, _ := io.ReadAll(failure); !strings.Contains(string(text), `connection "alone"`) {
		t.Errorf("who has opened one stream is told %q, want what is missing", text)
	}
}

func dial(t *testing.T, target, version string) httpstream.Connection {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	rt, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	conn, _, err := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: rt}, http.MethodPost, u).Dial(version)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// logs are what the server and the libraries of the protocols log. Those know no
// logger for some of it, and take that of the process.
type logs struct {
	own     ktesting.Buffer
	process syncBuffer
}

// keepLogs keeps logs until the test ends. The server takes them by its context.
func keepLogs(t *testing.T) (context.Context, *logs) {
	t.Helper()
	state, l := klog.CaptureState(), new(logs)
	t.Cleanup(state.Restore)
	klog.LogToStderr(false)
	klog.SetOutput(&l.process)
	logger := ktesting.NewLogger(ktesting.NopTL{}, ktesting.NewConfig(ktesting.BufferLogs(true), ktesting.Verbosity(9)))
	l.own = logger.GetSink().(ktesting.Underlier).GetBuffer()
	return klog.NewContext(context.Background(), logger), l
}

// errors are those that were logged.
func (l *logs) errors() (found []string) {
	klog.Flush()
	for _, e := range l.own.Data() {
		if e.Type == ktesting.LogError {
			found = append(found, fmt.Sprintf("%s: %v", e.Message, e.Err))
		}
	}
	for line := range strings.Lines(l.process.String()) {
		if strings.Contains(line, "Unhandled Error") { // the clients in this process have others
			found = append(found, line)
		}
	}
	return found
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// What users and their clients do wrong is not an error of crid.
func TestUsersErrorsAreNotLogged(t *testing.T) {
	began := make(chan struct{}, 2)
	ctx, logs := keepLogs(t)
	impatient := serveIn(ctx, t, stream.Options{Runtime: ports{}, CreateTimeout: 50 * time.Millisecond})
	s := serveIn(ctx, t, stream.Options{Runtime: ports{runtime{func(ctx context.Context, args []string, _ sandbox.Streams) (int, error) {
		switch args[0] {
		case "seven":
			return 7, nil
		case "gone":
			return 0, errkind.Errorf(errkind.BadState, "the container has exited")
		case "wait":
			began <- struct{}{}
			<-ctx.Done()
			return 0, context.Cause(ctx)
		}
		return 0, errors.New("the machine is broken")
	}}}})
	exec := func(ctx context.Context, transport, what string) {
		u, err := s.ExecURL("c", []string{what}, stream.Wanted{Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := executor(t, transport, "v4.channel.k8s.io", u).StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: io.Discard}); err == nil {
			t.Errorf("%s %s has ended well", transport, what)
		}
	}
	forward := func(s *stream.Server, port string) {
		u, err := s.PortForwardURL("s", nil)
		if err != nil {
			t.Fatal(err)
		}
		conn := dial(t, u, "portforward.k8s.io")
		defer conn.Close()
		h := http.Header{"Port": {port}, "Requestid": {"1"}, "Streamtype": {"error"}}
		failure, err := conn.CreateStream(h)
		if err != nil {
			t.Fatal(err)
		}
		if s != impatient {
			h.Set("streamType", "data")
			if _, err := conn.CreateStream(h); err != nil {
				t.Fatal(err)
			}
		}
		if text, _ := io.ReadAll(failure); len(text) == 0 {
			t.Errorf("port %s: no error", port)
		}
	}
	for _, transport := range []string{"SPDY", "WebSocket"} {
		exec(t.Context(), transport, "seven")
		exec(t.Context(), transport, "gone")
	}
	gone, vanish := context.WithCancel(t.Context())
	go func() {
		<-began
		vanish()
	}()
	exec(gone, "SPDY", "wait")
	forward(s, "9")
	forward(s, "70000")
	forward(impatient, "80")
	url := func(s *stream.Server, what string) string {
		u, err := s.ExecURL("c", []string{what}, all)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	// No upgrade, no streams, and nonsense.
	if r, err := http.Get(url(s, "x")); err == nil {
		_ = r.Body.Close()
	}
	conn := dial(t, url(impatient, "x"), "v4.channel.k8s.io")
	<-conn.CloseChan()
	_ = conn.Close()
	ws, err := websocket.Dial("ws"+strings.TrimPrefix(url(s, "wait"), "http"), "v5.channel.k8s.io", "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	<-began
	_, _ = ws.Write([]byte{255, 99})
	_, _ = io.Copy(io.Discard, ws) // until the server ends it
	_ = ws.Close()
	if errs := logs.errors(); len(errs) > 0 {
		t.Errorf("logged as errors:\n%s", strings.Join(errs, "\n"))
	}
	exec(t.Context(), "SPDY", "broken")
	forward(s, "500")
	if errs := logs.errors(); len(errs) != 2 || !strings.Contains(errs[0], "the machine is broken") {
		t.Errorf("logged of two errors of crid's own:\n%s", strings.Join(errs, "\n"))
	}
}

// Those who open connections and say nothing do not keep others out.
func TestManyConnectionsOfNobody(t *testing.T) {
	s := serve(t, stream.Options{Runtime: runtime{cat}, RequestTimeout: time.Hour})
	const many = 300
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	for range many {
		c, err := net.Dial("tcp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	u, err := s.ExecURL("c", []string{"cat"}, all)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := run(t, "SPDY", u, &rest.Config{}, remotecommand.StreamOptions{Stdin: strings.NewReader("hello"), Stdout: &out}); err != nil || out.String() != "hello" {
		t.Errorf("a session among them = %q, %v", &out, err)
	}
	// The oldest has been closed, the newest is answered.
	if _, err := conns[0].Read(make([]byte, 1)); err == nil {
		t.Error("the oldest connection was answered")
	}
	if _, err := fmt.Fprint(conns[many-1], "GET /exec/x HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Error(err)
	}
	answer := make([]byte, len("HTTP/1.1 404"))
	if _, err := io.ReadFull(conns[many-1], answer); err != nil || string(answer) != "HTTP/1.1 404" {
		t.Errorf("the newest connection = %q, %v, want 404", answer, err)
	}
}
