package stream

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/cridproject/crid/internal/errkind"
)

// pair is what a client of SPDY opens for each connection to a port.
type pair struct {
	name          string            // of the connection, by the client
	data, failure httpstream.Stream // nil until it has come
	late          *time.Timer       // for the second of them
}

// take takes a stream of a type that has not come yet.
func (p *pair) take(s opened) bool {
	place := &p.data
	switch s.Headers().Get(portforward.StreamType) {
	case portforward.StreamTypeData:
	case portforward.StreamTypeError:
		place = &p.failure
	default:
		return false
	}
	if *place != nil {
		return false
	}
	*place = s
	return true
}

// servePairs serves port-forward over SPDY until the client goes: any number of
// connections to ports, side by side.
func (x *session) servePairs(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	conn, _, streams := x.upgradeSPDY(w, r, portforward.SupportedProtocols...)
	if conn == nil {
		return
	}
	defer conn.Close()
	waiting, late := map[string]*pair{}, make(chan *pair)
	defer func() {
		for _, p := range waiting {
			p.late.Stop()
		}
	}()
	for {
		select {
		case s := <-streams:
			p := waiting[nameOf(s)]
			if p == nil {
				p = &pair{name: nameOf(s)}
			}
			if !p.take(s) {
				x.refused(ctx, fmt.Errorf("stream of type %q for connection %q", s.Headers().Get(portforward.StreamType), p.name))
				go drop(ctx, conn, s)
				continue
			}
			if p.data != nil && p.failure != nil {
				p.late.Stop()
				delete(waiting, p.name)
				x.work.Go(func() { x.servePair(ctx, conn, p) })
				continue
			}
			waiting[p.name] = p
			p.late = time.AfterFunc(x.create, func() {
				select {
				case late <- p:
				case <-ctx.Done():
				}
			})
		case p := <-late:
			if waiting[p.name] != p {
				continue // its second stream has come at the last moment
			}
			delete(waiting, p.name)
			err := errkind.Errorf(errkind.Timeout, "connection %q has not got both its streams within %v", p.name, x.create)
			x.refused(ctx, err)
			x.work.Go(func() { p.end(conn, err) })
		case <-conn.CloseChan():
			return
		case <-ctx.Done():
			return
		}
	}
}

// servePair serves one connection to a port.
func (x *session) servePair(ctx context.Context, conn httpstream.Connection, p *pair) {
	// What does not fit is no port, as forward says.
	port, err := strconv.ParseInt(p.data.Headers().Get(portforward.PortHeader), 10, 32)
	if err != nil {
		port = 0
	}
	p.end(conn, x.forward(ctx, int32(port), p.data))
}

// end ends the streams that have come, and tells the client what has failed.
func (p *pair) end(conn httpstream.Connection, err error) {
	if err != nil && p.failure != nil {
		_, _ = p.failure.Write([]byte(err.Error())) // the client may have gone
	}
	for _, s := range []httpstream.Stream{p.data, p.failure} {
		if s == nil {
			continue
		}
		_ = s.Close()
		if err != nil {
			_ = s.Reset() // the client stops to write, too
		}
		conn.RemoveStreams(s)
	}
}

// nameOf says which connection a stream is for. Old clients give none a name and
// open one after the other, so that the streams' numbers tell: the one for failures
// first, and the data's has the next odd number.
func nameOf(s httpstream.Stream) string {
	name := s.Headers().Get(portforward.PortForwardRequestIDHeader)
	if name == "" {
		n := int64(s.Identifier())
		if s.Headers().Get(portforward.StreamType) == portforward.StreamTypeData {
			n -= 2
		}
		name = strconv.FormatInt(n, 10)
	}
	return name
}
