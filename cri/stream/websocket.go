package stream

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	utilexec "k8s.io/utils/exec"
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

// serveV5 serves an exec or attachment over version 5 of remotecommand, in which
// a client can end its stdin and still listen. The library's server ends at 4.
func (x *session) serveV5(w http.ResponseWriter, r *http.Request) {
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
		if c.on {
			channels[i] = c.is
		}
	}
	ws := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		remotecommand.StreamProtocolV5Name: {Binary: true, Channels: channels},
	})
	ws.SetIdleTimeout(x.idle)
	_, streams, err := ws.Open(w, r)
	if err != nil {
		klog.FromContext(r.Context()).V(4).Info("Could not open a WebSocket", "kind", x.request.kind, "id", x.request.id, "err", err)
		return
	}
	defer ws.Close()
	err = x.run(r, streams)
	if text, merr := json.Marshal(statusOf(err)); merr == nil {
		_, _ = streams[remotecommand.StreamErr].Write(text) // the client may have gone
	}
}

// run runs what the session is for.
func (x *session) run(r *http.Request, streams []io.ReadWriteCloser) error {
	ctx := r.Context()
	in, out, errOut := streams[remotecommand.StreamStdIn], streams[remotecommand.StreamStdOut], streams[remotecommand.StreamStdErr]
	resize := make(chan remotecommand.TerminalSize)
	go func() { // ends with the connection
		defer close(resize)
		sizes := json.NewDecoder(streams[remotecommand.StreamResize])
		for {
			var size remotecommand.TerminalSize
			if sizes.Decode(&size) != nil {
				return
			}
			select {
			case resize <- size:
			case <-ctx.Done():
				return
			}
		}
	}()
	if x.request.kind == kindAttach {
		return x.AttachContainer(ctx, "", "", x.request.id, in, out, errOut, x.request.wanted.TTY, resize)
	}
	return x.ExecInContainer(ctx, "", "", x.request.id, x.request.args, in, out, errOut, x.request.wanted.TTY, resize, 0)
}

// status is what clients read of Kubernetes' metav1.Status.
type status struct {
	Status  string   `json:"status"`
	Message string   `json:"message,omitempty"`
	Reason  string   `json:"reason,omitempty"`
	Details *details `json:"details,omitempty"`
	Code    int      `json:"code,omitempty"`
}

type details struct {
	Causes []cause `json:"causes"`
}

type cause struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// statusOf is what a client is told of the end.
func statusOf(err error) status {
	var exit utilexec.CodeExitError
	switch {
	case err == nil:
		return status{Status: "Success"}
	case errors.As(err, &exit):
		return status{
			Status: "Failure", Reason: remotecommand.NonZeroExitCodeReason, Message: exit.Error(),
			Details: &details{[]cause{{remotecommand.ExitCodeCauseType, fmt.Sprint(exit.Code)}}},
		}
	}
	return status{Status: "Failure", Reason: "InternalError", Message: err.Error(), Code: http.StatusInternalServerError}
}
