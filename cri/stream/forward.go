package stream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime/debug"

	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/cridproject/crid/internal/errkind"
)

// serveForward serves port-forward by the protocol that the client asks for.
func (x *session) serveForward(w http.ResponseWriter, r *http.Request) {
	switch {
	case asksFor(r, portforward.WebsocketsSPDYTunnelingPortForwardV1):
		x.serveTunnel(w, r)
	case isWebSocket(r) && len(x.request.ports) == 0:
		http.Error(w, "this protocol names no ports of its own: they must be in the CRI request", http.StatusBadRequest)
	default:
		x.servePorts(r.Context(), w, r)
	}
}

func (x *session) servePorts(ctx context.Context, w http.ResponseWriter, r *http.Request) {
	portforward.ServePortForward(w, r, forwarder{x, ctx}, x.request.id, "", &portforward.V4Options{Ports: x.request.ports},
		x.idle, createTimeout, portforward.SupportedProtocols)
}

// forwarder implements portforward.PortForwarder, whose context does not end
// with its client.
type forwarder struct {
	*session
	ctx context.Context //nolint:containedctx // see above; it lives as long as the connection
}

// PortForward runs on a goroutine of the protocol's library, for each of a
// session's connections.
func (f forwarder) PortForward(_ context.Context, id, _ string, port int32, stream io.ReadWriteCloser) (err error) {
	defer func() {
		if bug := recover(); bug != nil {
			klog.FromContext(f.ctx).Error(fmt.Errorf("%v", bug), "Recovered from a bug in a port-forward", "stack", string(debug.Stack()))
			err = errors.New("crid has a bug here, see its log")
		}
	}()
	if port < 1 || port > 65535 {
		return errkind.Errorf(errkind.Invalid, "port %d: must be between 1 and 65535", port)
	}
	return f.outcome(f.ctx, f.runtime.PortForward(f.ctx, id, uint16(port), stream))
}

// serveTunnel serves SPDY within a WebSocket: what the client says after the
// handshake is a SPDY connection's bytes in binary messages.
func (x *session) serveTunnel(w http.ResponseWriter, r *http.Request) {
	websocket.Server{
		Handshake: choose(portforward.WebsocketsSPDYTunnelingPortForwardV1),
		Handler: func(ws *websocket.Conn) {
			ws.PayloadType = websocket.BinaryFrame
			inner := r.Clone(r.Context())
			inner.Header = http.Header{}
			inner.Header.Set(httpstream.HeaderConnection, httpstream.HeaderUpgrade)
			inner.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
			inner.Header.Set(httpstream.HeaderProtocolVersion, portforward.PortForwardV1Name)
			x.servePorts(r.Context(), &upgraded{ws, http.Header{}}, inner)
		},
	}.ServeHTTP(w, r)
}

// upgraded is the http.ResponseWriter of a connection that has been taken over
// already: there is no response any more.
type upgraded struct {
	conn   net.Conn
	header http.Header
}

func (u *upgraded) Header() http.Header         { return u.header }
func (u *upgraded) WriteHeader(int)             {}
func (u *upgraded) Write(p []byte) (int, error) { return len(p), nil }

// Hijack implements http.Hijacker.
func (u *upgraded) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return u.conn, bufio.NewReadWriter(bufio.NewReader(u.conn), bufio.NewWriter(u.conn)), nil
}
