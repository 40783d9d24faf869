package stream

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// The protocols of WebSocket's clients that send text instead of bytes.
const (
	webSocketV1Base64 = wsstream.Base64ChannelWebSocketProtocol
	webSocketV4Base64 = "v4." + wsstream.Base64ChannelWebSocketProtocol
)

func isWebSocket(r *http.Request) bool { return wsstream.IsWebSocketRequest(r) }

// asksFor reports whether a WebSocket's client offers a protocol.
func asksFor(r *http.Request, protocol string) bool {
	if !isWebSocket(r) {
		return false
	}
	for _, header := range r.Header.Values(wsstream.WebSocketProtocolHeader) {
		for offer := range strings.SplitSeq(header, ",") {
			if strings.TrimSpace(offer) == protocol {
				return true
			}
		}
	}
	return false
}

// choose is a WebSocket handshake that takes one protocol out of the client's.
func choose(protocol string) func(*websocket.Config, *http.Request) error {
	return func(c *websocket.Config, _ *http.Request) error {
		if !slices.Contains(c.Protocol, protocol) {
			return fmt.Errorf("the only protocol is %q", protocol)
		}
		c.Protocol = []string{protocol}
		return nil
	}
}

// openWebSocket upgrades the connection and returns the protocol that client and server
// share, with its channels. The caller closes ws; nil means that the client was refused,
// which it knows.
func (x *session) openWebSocket(w http.ResponseWriter, r *http.Request, protocols map[string]wsstream.ChannelProtocolConfig) (
	ws *wsstream.Conn, protocol string, streams []io.ReadWriteCloser,
) {
	ws = wsstream.NewConn(protocols)
	ws.SetIdleTimeout(x.idle)
	protocol, streams, err := ws.Open(w, quiet(r))
	if err != nil {
		x.refused(r.Context(), fmt.Errorf("upgrade to a WebSocket of %q: %w", r.Header.Values(wsstream.WebSocketProtocolHeader), err))
		return nil, "", nil
	}
	return ws, protocol, streams
}

// serveWebSocket serves an exec or attachment over a WebSocket, in versions 1, 4 and
// 5 of remotecommand. In the last a client can end its stdin and still listen.
func (x *session) serveWebSocket(w http.ResponseWriter, r *http.Request) {
	wanted := x.request.wanted
	channels := make([]wsstream.ChannelType, remotecommand.StreamResize+1)
	for i, c := range map[int]struct {
		is wsstream.ChannelType
		on bool
	}{
		remotecommand.StreamStdIn:  {wsstream.ReadChannel, wanted.Stdin},
		remotecommand.StreamStdOut: {wsstream.WriteChannel, wanted.Stdout},
		remotecommand.StreamStdErr: {wsstream.WriteChannel, wanted.Stderr},
		remotecommand.StreamErr:    {wsstream.WriteChannel, true},
		remotecommand.StreamResize: {wsstream.ReadChannel, true},
	} {
		channels[i] = wsstream.IgnoreChannel
		if c.on {
			channels[i] = c.is
		}
	}
	binary := wsstream.ChannelProtocolConfig{Binary: true, Channels: channels}
	text := wsstream.ChannelProtocolConfig{Channels: channels}
	ws, protocol, streams := x.openWebSocket(w, r, map[string]wsstream.ChannelProtocolConfig{
		"":                                 binary,
		remotecommand.StreamProtocolV1Name: binary,
		webSocketV1Base64:                  text,
		remotecommand.StreamProtocolV4Name: binary,
		webSocketV4Base64:                  text,
		remotecommand.StreamProtocolV5Name: binary,
	})
	if ws == nil {
		return
	}
	defer ws.Close()
	if protocol != remotecommand.StreamProtocolV5Name {
		// Older clients wait for a message that tells them that they are connected.
		for _, i := range []int{remotecommand.StreamStdOut, remotecommand.StreamStdErr, remotecommand.StreamErr} {
			if channels[i] == wsstream.WriteChannel {
				_, _ = streams[i].Write(nil)
				break
			}
		}
	}
	err := x.run(r.Context(), ends{
		in: streams[remotecommand.StreamStdIn], out: streams[remotecommand.StreamStdOut],
		errOut: streams[remotecommand.StreamStdErr], resize: streams[remotecommand.StreamResize],
	})
	tell(streams[remotecommand.StreamErr], protocol, err)
}

// ends are the client's ends of what a session is for. Those that the request does
// not name are not used.
type ends struct {
	in, resize  io.Reader
	out, errOut io.Writer
}
