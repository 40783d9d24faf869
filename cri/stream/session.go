package stream

import (
	"context"
	"net/http"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/sandbox"
)

// session is one connection.
type session struct {
	runtime Runtime
	request request
	idle    time.Duration // after which a session on which nothing moves ends
	create  time.Duration // for a client to open its streams when it has connected

	// work is the session's goroutines that end with the connection.
	work sync.WaitGroup
}

// run runs what an exec or attachment is for. An exit code other than 0 is an
// exitError.
func (x *session) run(ctx context.Context, e ends) error {
	s := x.streams(ctx, e)
	if x.request.kind == kindAttach {
		return x.outcome(ctx, x.runtime.Attach(ctx, x.request.id, s))
	}
	code, err := x.runtime.Exec(ctx, x.request.id, x.request.args, s)
	if err == nil && code != 0 {
		return exitError(code)
	}
	return x.outcome(ctx, err)
}

// streams is what the request wants of what the client has opened.
func (x *session) streams(ctx context.Context, e ends) sandbox.Streams {
	w := x.request.wanted
	s := sandbox.Streams{TTY: w.TTY}
	if w.Stdin {
		s.Stdin = e.in
	}
	if w.Stdout {
		s.Stdout = e.out
	}
	if w.Stderr {
		s.Stderr = e.errOut
	}
	if e.resize != nil {
		s.Resize = sizes(ctx, e.resize)
	}
	return s
}

// outcome logs how a session's work has failed, and returns it for the client, who
// gets it in any case. Only what no kind is known of is for an operator to look at:
// the others are that the container has ended, nothing listens on the port, the
// client went away, crid is being stopped.
func (x *session) outcome(ctx context.Context, err error) error {
	log := klog.FromContext(ctx).WithValues("kind", x.request.kind, "id", x.request.id)
	switch {
	case err == nil:
	case ctx.Err() != nil, errkind.Of(err) != errkind.Other:
		log.V(2).Info("Could not serve a stream", "err", err)
	default:
		log.Error(err, "Could not serve a stream")
	}
	return err
}

// refused logs that a client could not be talked to.
func (x *session) refused(ctx context.Context, err error) {
	klog.FromContext(ctx).V(2).Info("Refused a client", "kind", x.request.kind, "id", x.request.id, "err", err)
}

// quiet is r for the protocols' libraries. Their log calls an error what clients do.
func quiet(r *http.Request) *http.Request {
	log := klog.FromContext(r.Context())
	return r.WithContext(klog.NewContext(r.Context(), log.WithSink(quietSink{log.GetSink()})))
}

// quietSink logs errors as detail.
type quietSink struct{ klog.LogSink }

// detail is the level of what quietSink makes of an error.
const detail = 4

// Error implements klog.LogSink.
func (s quietSink) Error(err error, message string, pairs ...any) {
	if s.Enabled(detail) {
		s.Info(detail, message, append(pairs, "err", err)...)
	}
}

// WithValues implements klog.LogSink.
func (s quietSink) WithValues(pairs ...any) klog.LogSink {
	return quietSink{s.LogSink.WithValues(pairs...)}
}

// WithName implements klog.LogSink.
func (s quietSink) WithName(name string) klog.LogSink {
	return quietSink{s.LogSink.WithName(name)}
}
