package stream

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/cridproject/crid/internal/errkind"
)

// opened is a stream that a client has opened. It is part of the connection when
// replied is closed.
type opened struct {
	httpstream.Stream
	replied <-chan struct{}
}

// upgradeSPDY takes r's connection over for the first of protocols that the client
// speaks too. Streams that it opens come from the channel, which somebody must read
// until ctx ends: SPDY's library does nothing else meanwhile. A nil connection means
// that the client has been told why there is none.
func (x *session) upgradeSPDY(w http.ResponseWriter, r *http.Request, protocols ...string) (conn httpstream.Connection, protocol string, streams <-chan opened) {
	protocol, err := httpstream.Handshake(r, w, protocols)
	if err != nil {
		x.refused(r.Context(), err)
		return nil, "", nil
	}
	ctx, came := r.Context(), make(chan opened)
	conn = spdy.NewResponseUpgrader().UpgradeResponse(w, quiet(r), func(s httpstream.Stream, replied <-chan struct{}) error {
		select {
		case came <- opened{s, replied}:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	if conn == nil {
		x.refused(ctx, fmt.Errorf("upgrade to SPDY from %q", r.Header.Get(httpstream.HeaderUpgrade)))
		return nil, "", nil
	}
	conn.SetIdleTimeout(x.idle)
	return conn, protocol, came
}

// drop ends a stream that nobody has asked for.
func drop(ctx context.Context, conn httpstream.Connection, s opened) {
	select {
	case <-s.replied:
	case <-ctx.Done(): // the connection goes as a whole
	}
	_ = s.Reset()
	conn.RemoveStreams(s)
}

// serveSPDY serves an exec or attachment over SPDY.
func (x *session) serveSPDY(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	conn, protocol, streams := x.upgradeSPDY(w, r, remotecommand.SupportedStreamingProtocols...)
	if conn == nil {
		return
	}
	defer conn.Close()
	got, err := x.collect(ctx, conn, protocol, streams)
	failure := got[remotecommand.StreamTypeError]
	if err != nil {
		x.refused(ctx, err)
		if failure != nil {
			tell(failure, protocol, err)
		}
		return
	}
	// What comes now is not wanted. Ends with the connection.
	go func() {
		for {
			select {
			case s := <-streams:
				drop(ctx, conn, s)
			case <-ctx.Done():
				return
			}
		}
	}()
	tell(failure, protocol, x.run(ctx, ends{
		in: got[remotecommand.StreamTypeStdin], out: got[remotecommand.StreamTypeStdout],
		errOut: got[remotecommand.StreamTypeStderr], resize: got[remotecommand.StreamTypeResize],
	}))
}

// collect waits for the streams that the session is for and the one for its end.
func (x *session) collect(ctx context.Context, conn httpstream.Connection, protocol string, streams <-chan opened) (map[string]httpstream.Stream, error) {
	wanted := x.request.wanted
	missing := map[string]bool{
		remotecommand.StreamTypeError:  true,
		remotecommand.StreamTypeStdin:  wanted.Stdin,
		remotecommand.StreamTypeStdout: wanted.Stdout,
		remotecommand.StreamTypeStderr: wanted.Stderr,
		remotecommand.StreamTypeResize: wanted.TTY && knowsResize(protocol),
	}
	maps.DeleteFunc(missing, func(_ string, needed bool) bool { return !needed })
	got := map[string]httpstream.Stream{}
	late := time.NewTimer(x.create)
	defer late.Stop()
	for len(missing) > 0 {
		select {
		case s := <-streams:
			kind := s.Headers().Get(remotecommand.StreamType)
			if !missing[kind] {
				go drop(ctx, conn, s)
				continue
			}
			select {
			case <-s.replied:
			case <-ctx.Done():
			}
			got[kind] = s.Stream
			delete(missing, kind)
		case <-late.C:
			return got, errkind.Errorf(errkind.Timeout, "the client has not opened the streams %q within %v", slices.Sorted(maps.Keys(missing)), x.create)
		case <-ctx.Done():
			return got, context.Cause(ctx)
		}
	}
	return got, nil
}

// knowsResize reports whether clients of a protocol tell the size of their terminal.
func knowsResize(protocol string) bool {
	return protocol == remotecommand.StreamProtocolV3Name || protocol == remotecommand.StreamProtocolV4Name
}
