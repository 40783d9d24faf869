// Package stream serves the streams of CRI's Exec, Attach and PortForward: an HTTP
// server whose URLs the RPCs give out.
//
// A URL holds a token that cannot be guessed, is good for one connection and for a
// minute. That is the whole of its protection, so without TLS the server listens
// on loopback addresses only; kubelet connects to it on behalf of its clients.
//
// A connection speaks one of the protocols of Kubernetes: remotecommand over SPDY
// (v1 to v4) or WebSocket (v1, v4, v5), port-forward over SPDY, SPDY within
// WebSocket, or WebSocket. The server turns it into plain readers and writers for
// its Runtime. It knows nothing of containers.
//
// A connection is a session, with a context that ends when the client has gone or
// the server ends. What runs for a session ends with it.
package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/cridproject/crid/sandbox"
)

// Runtime is what sessions are for. ctx ends when the client has gone. A Read of
// a stream may last until some time after the method has returned.
type Runtime interface {
	Exec(ctx context.Context, id string, args []string, s sandbox.Streams) (code int, err error)
	Attach(ctx context.Context, id string, s sandbox.Streams) error
	PortForward(ctx context.Context, id string, port uint16, stream io.ReadWriteCloser) error
}

// Options of a Server.
type Options struct {
	Runtime Runtime // required

	Address     string        // IP address to listen on; "" means 127.0.0.1
	Port        uint16        // 0 means any that is free
	Certificate string        // file in PEM; "" means no TLS, which only a loopback address may have
	Key         string        // of Certificate, file in PEM
	IdleTimeout time.Duration // for a session on which nothing moves; 0 means 4 h
	// RequestTimeout is for a client that is no session to say what it wants, and to
	// take an error; 0 means 10 s. Anybody can connect.
	RequestTimeout time.Duration
	// CreateTimeout is for a session's client to open its streams when it has
	// connected; 0 means 30 s.
	CreateTimeout time.Duration

	Now func() time.Time // nil means time.Now
}

const (
	defaultAddress = "127.0.0.1"
	defaultIdle    = 4 * time.Hour
	defaultCreate  = 30 * time.Second
	defaultRequest = 10 * time.Second
	// headerMax is much more than clients send before anybody knows who they are.
	headerMax = 64 << 10
	// nobodyMax is how many connections that are no session may be open. kubelet has
	// one for moments only.
	nobodyMax = 256
)

// Server gives out URLs and serves them. Its methods may be called concurrently.
type Server struct {
	o        Options
	listener *listener
	tls      *tls.Config // nil without TLS
	base     url.URL
	tokens   tokens
}

// CheckAddress says what is wrong with an address to listen on, or "".
func CheckAddress(address string, withTLS bool) string {
	ip, err := netip.ParseAddr(address)
	switch {
	case err != nil:
		return fmt.Sprintf("is %q, must be an IP address", address)
	case ip.IsUnspecified():
		return fmt.Sprintf("is %q, must be one address: it becomes part of the URLs that kubelet connects to", address)
	case !ip.IsLoopback() && !withTLS:
		return fmt.Sprintf("is %q, which others can reach: set tls_cert_file and tls_key_file too, or listen on 127.0.0.1", address)
	}
	return ""
}

// New opens the socket and reads the certificate. Nothing is answered before Serve.
func New(o Options) (*Server, error) {
	if o.Runtime == nil {
		return nil, errors.New("streaming server: Runtime is required")
	}
	if o.Address == "" {
		o.Address = defaultAddress
	}
	if o.IdleTimeout == 0 {
		o.IdleTimeout = defaultIdle
	}
	if o.RequestTimeout == 0 {
		o.RequestTimeout = defaultRequest
	}
	if o.CreateTimeout == 0 {
		o.CreateTimeout = defaultCreate
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if why := CheckAddress(o.Address, o.Certificate != ""); why != "" {
		return nil, fmt.Errorf("streaming server: address %s", why)
	}
	s := &Server{o: o, base: url.URL{Scheme: "http"}, tokens: tokens{now: o.Now}}
	if o.Certificate != "" {
		c := &certificate{cert: o.Certificate, key: o.Key}
		if _, err := c.get(nil); err != nil {
			return nil, fmt.Errorf("streaming server: %w", err)
		}
		s.base.Scheme = "https"
		// HTTP/2 has no connections to take over.
		s.tls = &tls.Config{GetCertificate: c.get, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	}
	var lc net.ListenConfig // looks for clients that have vanished, as net.Listen does
	l, err := lc.Listen(context.Background(), "tcp", net.JoinHostPort(o.Address, strconv.Itoa(int(o.Port))))
	if err != nil {
		return nil, fmt.Errorf("streaming server: %w", err)
	}
	s.listener, s.base.Host = &listener{Listener: l, most: nobodyMax}, l.Addr().String()
	return s, nil
}

// Addr is the address that it listens on.
func (s *Server) Addr() string { return s.base.Host }

// Close closes the socket of a server that was not served. Safe after Serve.
func (s *Server) Close() { _ = s.listener.Close() }

// Serve serves until ctx ends; then it ends all sessions and waits for them.
func (s *Server) Serve(ctx context.Context) error {
	var requests gate
	h := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if requests.enter() {
				defer requests.leave()
				s.serve(w, r)
			}
		}),
		BaseContext: func(net.Listener) context.Context { return ctx },
		ConnContext: connContext,
		ConnState:   connState,
		// Of headers, body and the time between requests. They end when a session
		// takes the connection over.
		ReadTimeout:    s.o.RequestTimeout,
		WriteTimeout:   s.o.RequestTimeout,
		MaxHeaderBytes: headerMax,
		ErrorLog:       klog.NewStandardLogger("WARNING"),
	}
	stop := context.AfterFunc(ctx, func() { _ = h.Close() })
	defer stop()
	var l net.Listener = s.listener
	if s.tls != nil {
		l = tls.NewListener(l, s.tls)
	}
	err := h.Serve(l)
	requests.close()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("streaming server: %w", err)
}

// gate counts requests under way. HTTP's server may begin one more while it is being
// closed.
type gate struct {
	mu     sync.Mutex
	closed bool // +checklocks:mu
	inside sync.WaitGroup
}

// enter reports whether the gate is open; then leave must follow.
func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.inside.Add(1)
	}
	return !g.closed
}

func (g *gate) leave() { g.inside.Done() }

// close closes the gate and waits until all have left.
func (g *gate) close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.inside.Wait()
}

// What a URL is for, and the beginning of its path.
const (
	kindExec    = "exec"
	kindAttach  = "attach"
	kindForward = "portforward"
)

// Wanted says which streams a client wants of an exec or a container.
type Wanted struct {
	Stdin, Stdout, Stderr bool
	TTY                   bool
}

// ExecURL is where a client that runs args in container id connects to.
func (s *Server) ExecURL(id string, args []string, w Wanted) (string, error) {
	return s.url(request{kind: kindExec, id: id, args: args, wanted: w})
}

// AttachURL is where a client that attaches to container id connects to.
func (s *Server) AttachURL(id string, w Wanted) (string, error) {
	return s.url(request{kind: kindAttach, id: id, wanted: w})
}

// PortForwardURL is where a client that forwards ports of sandbox id connects to.
// ports is only for the protocol that cannot name them by itself.
func (s *Server) PortForwardURL(id string, ports []int32) (string, error) {
	return s.url(request{kind: kindForward, id: id, ports: ports})
}

func (s *Server) url(r request) (string, error) {
	token, err := s.tokens.put(r)
	if err != nil {
		return "", err
	}
	return s.base.JoinPath(r.kind, token).String(), nil
}

// serve is one HTTP request: a session, or an error.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		http.Error(w, "only GET and POST are served", http.StatusMethodNotAllowed)
		return
	}
	kind, token, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	req, ok := s.tokens.take(token)
	if !ok || req.kind != kind {
		http.Error(w, "no such URL: each is good for one connection and for a minute; ask for another", http.StatusNotFound)
		return
	}
	ctx := r.Context()
	c := connOf(ctx)
	s.listener.known(c)
	// A WebSocket's client waits for the connection's end and not for the outcome.
	c.sends.Store(req.wanted.Stdin && !isWebSocket(r))
	x := &session{runtime: s.o.Runtime, request: req, idle: s.o.IdleTimeout, create: s.o.CreateTimeout}
	defer x.work.Wait()
	defer c.finish(ctx)
	// So that what is stuck in a write to the client ends.
	defer context.AfterFunc(ctx, func() { c.hangUp(context.Cause(ctx)) })()
	defer c.watch()()
	began := time.Now()
	switch {
	case kind == kindForward:
		x.serveForward(w, r)
	case isWebSocket(r):
		x.serveWebSocket(w, r)
	default:
		x.serveSPDY(w, r)
	}
	klog.FromContext(ctx).V(4).Info("Served a stream", "kind", kind, "id", req.id, "duration", time.Since(began))
}
