package stream

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime/debug"
	"sync"

	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"github.com/cridproject/crid/internal/errkind"
)

// serveForward serves port-forward by the protocol that the client asks for.
func (x *session) serveForward(w http.ResponseWriter, r *http.Request) {
	switch {
	case asksFor(r, portforward.WebsocketsSPDYTunnelingPortForwardV1):
		x.serveTunnel(w, r)
	case isWebSocket(r) && len(x.request.ports) == 0:
		http.Error(w, "this protocol names no ports of its own: they must be in the CRI request", http.StatusBadRequest)
	case isWebSocket(r):
		x.servePorts(w, r)
	default:
		x.servePairs(w, r)
	}
}

// forward forwards one connection to a port. An error says why there was none.
func (x *session) forward(ctx context.Context, port int32, data io.ReadWriteCloser) (err error) {
	defer func() {
		if bug := recover(); bug != nil {
			klog.FromContext(ctx).Error(fmt.Errorf("%v", bug), "Recovered from a bug in a port-forward", "stack", string(debug.Stack()))
			err = errors.New("crid has a bug here, see its log")
		}
	}()
	if port < 1 || port > 65535 {
		return errkind.Errorf(errkind.Invalid, "port %d: must be between 1 and 65535", port)
	}
	return x.outcome(ctx, x.runtime.PortForward(ctx, x.request.id, uint16(port), data))
}

// servePorts serves port-forward over a WebSocket without SPDY: one connection to each
// port of the request, with two channels, each of which begins with the port.
func (x *session) servePorts(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	var channels []wsstream.ChannelType
	for range x.request.ports {
		channels = append(channels, wsstream.ReadWriteChannel, wsstream.WriteChannel)
	}
	bytes := wsstream.ChannelProtocolConfig{Binary: true, Channels: channels}
	ws, _, streams := x.openWebSocket(w, r, map[string]wsstream.ChannelProtocolConfig{
		"":                                 bytes,
		remotecommand.StreamProtocolV4Name: bytes, // the names are those of an exec's
		webSocketV4Base64:                  {Channels: channels},
	})
	if ws == nil {
		return
	}
	defer ws.Close()
	var wg sync.WaitGroup
	for i, port := range x.request.ports {
		data, failure := streams[2*i], streams[2*i+1]
		for _, s := range []io.Writer{data, failure} {
			_, _ = s.Write(binary.LittleEndian.AppendUint16(nil, uint16(port)))
		}
		wg.Go(func() {
			defer failure.Close()
			defer data.Close()
			if err := x.forward(ctx, port, data); err != nil {
				_, _ = io.WriteString(failure, err.Error()) // the client may have gone
			}
		})
	}
	wg.Wait()
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
			x.servePairs(&upgraded{ws, http.Header{}}, inner)
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
