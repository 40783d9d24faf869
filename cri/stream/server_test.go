package stream_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"

	"github.com/cridproject/crid/cri/stream"
	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
	"github.com/cridproject/crid/sandbox"
)

// runtime answers sessions with functions.
type runtime struct {
	exec func(ctx context.Context, args []string, s sandbox.Streams) (int, error)
}

func (r runtime) Exec(ctx context.Context, _ string, args []string, s sandbox.Streams) (int, error) {
	return r.exec(ctx, args, s)
}

func (r runtime) Attach(ctx context.Context, id string, s sandbox.Streams) error {
	_, err := r.exec(ctx, []string{id}, s)
	return err
}

func (runtime) PortForward(context.Context, string, uint16, io.ReadWriteCloser) error { return nil }

// cat copies stdin to stdout.
func cat(_ context.Context, args []string, s sandbox.Streams) (int, error) {
	_, err := io.Copy(s.Stdout, s.Stdin)
	if len(args) > 1 {
		return 4, err
	}
	return 0, err
}

// serve serves until the test ends.
func serve(t *testing.T, o stream.Options) *stream.Server {
	t.Helper()
	return serveIn(context.Background(), t, o)
}

func serveIn(ctx context.Context, t *testing.T, o stream.Options) *stream.Server {
	t.Helper()
	testutil.LeakCheck(t)
	s, err := stream.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v, want nil", err)
		}
	})
	return s
}

func run(t *testing.T, transport, target string, c *rest.Config, o remotecommand.StreamOptions) error {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	e, err := remotecommand.NewWebSocketExecutor(c, http.MethodGet, target)
	if transport == "SPDY" {
		e, err = remotecommand.NewSPDYExecutor(c, http.MethodPost, u)
	}
	if err != nil {
		t.Fatal(err)
	}
	return e.StreamWithContext(t.Context(), o)
}

var all = stream.Wanted{Stdin: true, Stdout: true}

func TestSessions(t *testing.T) {
	s := serve(t, stream.Options{Runtime: runtime{cat}})
	for _, transport := range []string{"SPDY", "WebSocket"} {
		var out bytes.Buffer
		o := remotecommand.StreamOptions{Stdin: strings.NewReader("hello"), Stdout: &out}
		u, err := s.ExecURL("c", []string{"cat", "and fail"}, all)
		if err != nil {
			t.Fatal(err)
		}
		err = run(t, transport, u, &rest.Config{}, o)
		var exit utilexec.CodeExitError
		if !errors.As(err, &exit) || exit.Code != 4 || out.String() != "hello" {
			t.Errorf("%s: exec = %q, %v, want hello and exit code 4", transport, &out, err)
		}
		out.Reset()
		o.Stdin = strings.NewReader("again")
		if u, err = s.AttachURL("c", all); err != nil {
			t.Fatal(err)
		}
		if err := run(t, transport, u, &rest.Config{}, o); err != nil || out.String() != "again" {
			t.Errorf("%s: attach = %q, %v, want again", transport, &out, err)
		}
		// Good once.
		if err := run(t, transport, u, &rest.Config{}, o); err == nil {
			t.Errorf("%s: a URL was good twice", transport)
		}
	}
}

func TestErrorsReachClients(t *testing.T) {
	s := serve(t, stream.Options{Runtime: runtime{func(context.Context, []string, sandbox.Streams) (int, error) {
		return 0, errkind.Errorf(errkind.BadState, "it is exited, not running")
	}}})
	for _, transport := range []string{"SPDY", "WebSocket"} {
		u, err := s.ExecURL("c", []string{"x"}, stream.Wanted{Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		err = run(t, transport, u, &rest.Config{}, remotecommand.StreamOptions{Stdout: io.Discard})
		if err == nil || !strings.Contains(err.Error(), "it is exited, not running") {
			t.Errorf("%s: exec = %v, want the runtime's error", transport, err)
		}
	}
}

// What was begun is told when the server ends, and Serve waits for it.
func TestServerEnds(t *testing.T) {
	began, ended := make(chan struct{}), make(chan struct{})
	s, err := stream.New(stream.Options{Runtime: runtime{func(ctx context.Context, _ []string, _ sandbox.Streams) (int, error) {
		close(began)
		<-ctx.Done()
		close(ended)
		return 0, context.Cause(ctx)
	}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	u, err := s.ExecURL("c", []string{"x"}, stream.Wanted{Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	client := make(chan error, 1)
	go func() {
		client <- run(t, "SPDY", u, &rest.Config{}, remotecommand.StreamOptions{Stdout: io.Discard})
	}()
	<-began
	cancel(errors.New("closing time"))
	if err := <-done; err != nil {
		t.Errorf("Serve = %v, want nil", err)
	}
	select {
	case <-ended:
	default:
		t.Error("Serve has returned before its session")
	}
	if err := <-client; err == nil || !strings.Contains(err.Error(), "closing time") {
		t.Errorf("the client got %v, want the reason", err)
	}
}

func TestTokens(t *testing.T) {
	now := time.Unix(1000, 0)
	s := serve(t, stream.Options{Runtime: runtime{cat}, Now: func() time.Time { return now }})
	status := func(u string) int {
		r, err := http.Get(u)
		if err != nil {
			t.Fatal(err)
		}
		_ = r.Body.Close()
		return r.StatusCode
	}
	u, err := s.ExecURL("c", []string{"x"}, all)
	if err != nil {
		t.Fatal(err)
	}
	now = now.Add(time.Minute)
	if got := status(u); got != http.StatusNotFound {
		t.Errorf("a URL of a minute ago = %d, want 404", got)
	}
	seen := map[string]bool{}
	for range 1000 {
		if u, err = s.ExecURL("c", []string{"x"}, all); err != nil || seen[u] {
			t.Fatalf("ExecURL = %s, %v, want another each time", u, err)
		}
		seen[u] = true
	}
	if _, err := s.ExecURL("c", []string{"x"}, all); !errkind.Is(err, errkind.Unavailable) {
		t.Errorf("the 1001st URL = %v, want kind unavailable", err)
	}
	now = now.Add(time.Minute)
	if _, err := s.ExecURL("c", []string{"x"}, all); err != nil {
		t.Errorf("a minute later ExecURL = %v, want no error", err)
	}
	r, err := http.Head(u)
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Body.Close()
	if r.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("HEAD = %v, want 405", r.Status)
	}
}

// A client that says nothing after it has connected is not waited for.
func TestIdle(t *testing.T) {
	gone := make(chan struct{})
	s := serve(t, stream.Options{Runtime: runtime{func(ctx context.Context, _ []string, _ sandbox.Streams) (int, error) {
		<-ctx.Done()
		close(gone)
		return 0, ctx.Err()
	}}, IdleTimeout: 50 * time.Millisecond})
	u, err := s.ExecURL("c", []string{"x"}, stream.Wanted{Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	_ = run(t, "SPDY", u, &rest.Config{}, remotecommand.StreamOptions{Stdout: io.Discard})
	<-gone
}

// Who is no session keeps no connection, whatever it does not do.
func TestNoSession(t *testing.T) {
	s := serve(t, stream.Options{Runtime: runtime{cat}, RequestTimeout: 50 * time.Millisecond})
	for name, request := range map[string]string{
		"says nothing":       "",
		"ends no header":     "GET /exec/x HTTP/1.1\r\nHost: x\r\n",
		"comes back never":   "GET /exec/x HTTP/1.1\r\nHost: x\r\n\r\n",
		"sends no body":      "POST /exec/x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n",
		"has a large header": "GET /exec/x HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 100<<10) + "\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", s.Addr())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, _ = io.WriteString(c, request)
			_, _ = io.Copy(io.Discard, c) // until the server closes it
		})
	}
}

// The time that a request may take is none for a session.
func TestSessionOutlastsRequestTimeout(t *testing.T) {
	const limit = time.Second
	s := serve(t, stream.Options{Runtime: runtime{cat}, RequestTimeout: limit})
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, transport := range []string{"SPDY", "WebSocket"} {
		u, err := s.ExecURL("c", []string{"cat"}, all)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			in, typed := io.Pipe()
			time.AfterFunc(2*limit, func() {
				_, _ = io.WriteString(typed, "late")
				_ = typed.Close()
			})
			var out bytes.Buffer
			err := run(t, transport, u, &rest.Config{}, remotecommand.StreamOptions{Stdin: in, Stdout: &out})
			if err != nil || out.String() != "late" {
				t.Errorf("%s: a session = %q, %v, want it to outlast the time of a request", transport, &out, err)
			}
		})
	}
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	first := writeCertificate(t, cert, key)
	s := serve(t, stream.Options{Runtime: runtime{cat}, Certificate: cert, Key: key})
	use := func(ca []byte) error {
		t.Helper()
		u, err := s.ExecURL("c", []string{"cat"}, all)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(u, "https://") {
			t.Fatalf("URL = %s, want https", u)
		}
		var out bytes.Buffer
		c := &rest.Config{TLSClientConfig: rest.TLSClientConfig{CAData: ca}}
		err = run(t, "SPDY", u, c, remotecommand.StreamOptions{Stdin: strings.NewReader("x"), Stdout: &out})
		if err == nil && out.String() != "x" {
			t.Errorf("cat = %q, want x", &out)
		}
		return err
	}
	if err := use(first); err != nil {
		t.Error(err)
	}
	second := writeCertificate(t, cert, key)
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(cert, later, later); err != nil {
		t.Fatal(err)
	}
	if err := use(second); err != nil {
		t.Errorf("with the certificate's successor: %v", err)
	}
	// A broken file does not take the server down.
	if err := os.WriteFile(cert, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := use(second); err != nil {
		t.Errorf("while the certificate is being replaced: %v", err)
	}
	if _, err := stream.New(stream.Options{Runtime: runtime{cat}, Certificate: cert, Key: key}); err == nil || !strings.Contains(err.Error(), "tls_cert_file") {
		t.Errorf("New with a broken certificate = %v, want an error that names the key", err)
	}
}

func TestCheckAddress(t *testing.T) {
	for _, test := range []struct {
		address string
		tls     bool
		want    string // in what is wrong
	}{
		{"127.0.0.1", false, ""},
		{"::1", false, ""},
		{"192.0.2.1", true, ""},
		{"192.0.2.1", false, "tls_cert_file"},
		{"0.0.0.0", true, "must be one address"},
		{"::", false, "must be one address"},
		{"localhost", false, "must be an IP address"},
		{"127.0.0.1:80", false, "must be an IP address"},
		{"", false, "must be an IP address"},
	} {
		got := stream.CheckAddress(test.address, test.tls)
		if test.want == "" && got != "" || !strings.Contains(got, test.want) {
			t.Errorf("CheckAddress(%q, %t) = %q, want %q", test.address, test.tls, got, test.want)
		}
	}
	if _, err := stream.New(stream.Options{Runtime: runtime{cat}, Address: "192.0.2.1"}); err == nil {
		t.Error("New listens on an address that others reach, without TLS")
	}
}

// writeCertificate makes a certificate for 127.0.0.1 and returns it.
func writeCertificate(t *testing.T, cert, key string) []byte {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for file, data := range map[string][]byte{cert: public, key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})} {
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tls.X509KeyPair(public, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})); err != nil {
		t.Fatal(err)
	}
	return public
}
