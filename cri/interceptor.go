package cri

import (
	"context"
	"fmt"
	"path"
	"runtime/debug"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"k8s.io/klog/v2"
)

// Observer is told of each request: by its RPC's name when it begins, and with gRPC's
// code and the error when it has ended. The context that it returns is the request's.
// It must not wait.
type Observer func(ctx context.Context, rpc string) (_ context.Context, ended func(code string, err error))

// UnaryInterceptor gives each request a logger with its RPC's name and a number
// of its own, and turns errors and panics into gRPC's status. log is what the
// requests' loggers derive from.
func UnaryInterceptor(log klog.Logger, observers ...Observer) grpc.UnaryServerInterceptor {
	var count atomic.Uint64
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		c := begin(log, info.FullMethod, &count)
		c.payload("Received request", req)
		var resp any
		err := c.run(ctx, observers, func(ctx context.Context) (err error) {
			resp, err = handler(klog.NewContext(ctx, c.log), req)
			return err
		})
		if err != nil {
			return nil, err
		}
		c.payload("Sent response", resp)
		return resp, nil
	}
}

// StreamInterceptor is UnaryInterceptor for streams; it does not log what they
// carry.
func StreamInterceptor(log klog.Logger, observers ...Observer) grpc.StreamServerInterceptor {
	var count atomic.Uint64
	return func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		c := begin(log, info.FullMethod, &count)
		return c.run(stream.Context(), observers, func(ctx context.Context) error {
			return handler(srv, loggedStream{stream, klog.NewContext(ctx, c.log)})
		})
	}
}

// loggedStream is a stream whose context has the request's logger. gRPC has no
// other way to hand a context to a stream's handler. It lives as long as the call.
type loggedStream struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // gRPC asks the stream for it
}

func (s loggedStream) Context() context.Context { return s.ctx }

// call is one RPC under way.
type call struct {
	log    klog.Logger
	rpc    string
	number uint64
	began  time.Time
}

func begin(log klog.Logger, method string, count *atomic.Uint64) call {
	n, rpc := count.Add(1), path.Base(method)
	return call{log: klog.LoggerWithValues(log, "rpc", rpc, "request", n), rpc: rpc, number: n, began: time.Now()}
}

// run calls the handler and returns its error as gRPC sends it.
func (c call) run(ctx context.Context, observers []Observer, handler func(context.Context) error) error {
	ended := make([]func(string, error), len(observers))
	for i, o := range observers {
		ctx, ended[i] = o(ctx, c.rpc)
	}
	err := c.guard(ctx, handler)
	code := codes.OK
	if err != nil {
		code = codeOf(err)
	}
	for _, f := range ended {
		f(code.String(), err)
	}
	return toStatus(err)
}

// guard ends this call only when the handler panics: that is a bug, but one that the
// other pods of the node are not to pay for.
func (c call) guard(ctx context.Context, handler func(context.Context) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			c.log.Error(fmt.Errorf("panic: %v", p), "Request ended in a bug of crid", "stack", string(debug.Stack()))
			err = fmt.Errorf("a bug in crid ended this request; its log has the details at request=%d", c.number)
		}
	}()
	err = handler(ctx)
	c.finished(err)
	return err
}

// finished writes the one line about the call's end. Clients ask for what is gone
// and for RPCs that are not there in the normal course of things.
func (c call) finished(err error) {
	duration := time.Since(c.began)
	if err == nil {
		c.log.V(4).Info("Handled request", "duration", duration)
		return
	}
	switch code := codeOf(err); code {
	case codes.Internal:
		c.log.Error(err, "Request failed", "duration", duration)
	case codes.NotFound, codes.Unimplemented, codes.Canceled:
		c.log.V(4).Info("Refused request", "duration", duration, "code", code.String(), "err", err.Error())
	default:
		c.log.V(2).Info("Refused request", "duration", duration, "code", code.String(), "err", err.Error())
	}
}

// payload logs a message, without what is secret in it.
func (c call) payload(text string, m any) {
	log := c.log.V(6)
	if !log.Enabled() {
		return
	}
	if m, ok := m.(proto.Message); ok {
		log.Info(text, "message", redacted(m))
	}
}
