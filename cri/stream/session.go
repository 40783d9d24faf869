package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/klog/v2"
	utilexec "k8s.io/utils/exec"

	"github.com/cridproject/crid/sandbox"
)

// session is one connection. Its methods are what the protocols call when they
// have the client's streams.
type session struct {
	runtime Runtime
	request request
	idle    time.Duration
}

// ExecInContainer implements remotecommand.Executor.
func (x *session) ExecInContainer(ctx context.Context, _, _, id string, args []string, in io.Reader, out, errOut io.WriteCloser,
	_ bool, resize <-chan remotecommand.TerminalSize, _ time.Duration,
) error {
	code, err := x.runtime.Exec(ctx, id, args, x.streams(ctx, in, out, errOut, resize))
	if err == nil && code != 0 {
		// A type and value that the protocols know.
		return utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: code}
	}
	return x.outcome(ctx, err)
}

// AttachContainer implements remotecommand.Attacher.
func (x *session) AttachContainer(ctx context.Context, _, _, id string, in io.Reader, out, errOut io.WriteCloser,
	_ bool, resize <-chan remotecommand.TerminalSize,
) error {
	return x.outcome(ctx, x.runtime.Attach(ctx, id, x.streams(ctx, in, out, errOut, resize)))
}

// outcome keeps from the log of the protocols' library, where all is an error,
// that a client has gone.
func (x *session) outcome(ctx context.Context, err error) error {
	if err != nil && errors.Is(context.Cause(ctx), errGone) {
		klog.FromContext(ctx).V(4).Info("Ended a stream", "kind", x.request.kind, "id", x.request.id, "err", err)
		return nil
	}
	return err
}

// streams is what the client wants of what the protocol has: WebSocket has
// always all.
func (x *session) streams(ctx context.Context, in io.Reader, out, errOut io.Writer, resize <-chan remotecommand.TerminalSize) sandbox.Streams {
	w := x.request.wanted
	s := sandbox.Streams{TTY: w.TTY}
	if w.Stdin {
		s.Stdin = in
	}
	if w.Stdout {
		s.Stdout = out
	}
	if w.Stderr {
		s.Stderr = errOut
	}
	if w.TTY && resize != nil {
		s.Resize = sizes(ctx, resize)
	}
	return s
}

// sizes translates the sizes of a terminal. Ends with in and with ctx.
func sizes(ctx context.Context, in <-chan remotecommand.TerminalSize) <-chan sandbox.Size {
	out := make(chan sandbox.Size)
	go func() {
		defer close(out)
		for {
			select {
			case size, ok := <-in:
				if !ok {
					return
				}
				select {
				case out <- sandbox.Size{Rows: size.Height, Columns: size.Width}:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}
