package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/cridproject/crid/monitor"
)

// Size of a terminal, in characters.
type Size struct{ Rows, Columns uint16 }

// Streams are a client's ends of a process's standard files. Who gives them away
// closes what is under them when the method has returned: a Read of Stdin may
// last until then.
type Streams struct {
	Stdin          io.Reader // its end is the end of the process's stdin; nil: no stdin
	Stdout, Stderr io.Writer // nil: not wanted
	TTY            bool
	Resize         <-chan Size // of the client's terminal, closed when no more come; nil: none
}

// Limits of streams.
const (
	bufferSize = 64 << 10 // as much as a pipe holds
	// restMax is how much is taken out of a pipe that somebody still writes to
	// when its time is over: more than pipes hold.
	restMax = 1 << 20
	// sizeGrace is how long an exec waits for its client's first terminal size.
	sizeGrace = 100 * time.Millisecond
)

// buffers are those of the streams under way.
var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }} //nolint:gochecknoglobals // a cache

// copyTo copies until r ends or one of them fails, and says which. It does not
// let the two agree on a way of their own: those make buffers of their own.
func copyTo(w io.Writer, r io.Reader) (readErr, writeErr error) {
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	for {
		n, err := r.Read(buf[:])
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return nil, err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		if err != nil {
			return err, nil
		}
	}
}

// pipes are crid's side of the standard files of an exec or an attachment. The
// goroutines of feed and pump end with close.
type pipes struct {
	theirs [3]*os.File // what the monitor gets; nil where there is none
	stdin  *os.File    // nil without
	fed    chan struct{}
	outs   []*output
}

// output copies what a process writes to a client.
type output struct {
	r    *os.File
	w    io.Writer
	done chan struct{}
}

// newPipes makes a pipe for each stream of s.
func newPipes(s Streams) (*pipes, error) {
	p := &pipes{fed: make(chan struct{})}
	if s.Stdin == nil {
		close(p.fed)
	} else {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, fmt.Errorf("make pipe for stdin: %w", err)
		}
		p.theirs[0], p.stdin = r, w
	}
	for i, w := range []io.Writer{1: s.Stdout, 2: s.Stderr} {
		if w == nil {
			continue
		}
		r, theirs, err := os.Pipe()
		if err != nil {
			p.closeTheirs()
			p.close()
			return nil, fmt.Errorf("make pipe for output: %w", err)
		}
		p.theirs[i] = theirs
		p.outs = append(p.outs, newOutput(r, w))
	}
	return p, nil
}

// newConsolePipes is newPipes for the master of an exec's terminal, of which it
// takes ownership. Without Stdout what comes from it is thrown away: a terminal
// that nobody reads would stop its programs.
func newConsolePipes(console *os.File, s Streams) *pipes {
	p := &pipes{fed: make(chan struct{}), stdin: console}
	w := s.Stdout
	if w == nil {
		w = io.Discard
	}
	p.outs = []*output{newOutput(console, w)}
	return p
}

func newOutput(r *os.File, w io.Writer) *output {
	return &output{r: r, w: w, done: make(chan struct{})}
}

// run starts the copying. The end of stdin is passed on, except to a terminal,
// which has none: there it is a character that a user types.
func (p *pipes) run(s Streams) {
	if s.Stdin != nil {
		go p.feed(s.Stdin, !s.TTY)
	}
	for _, o := range p.outs {
		go o.pump()
	}
}

func (p *pipes) feed(in io.Reader, end bool) {
	_, err := copyTo(p.stdin, in)
	close(p.fed) // before those at the other end can act on it
	if end {
		_ = p.stdin.Close()
	}
	if err != nil {
		// Nobody reads it any more. What the client still sends must not be in the
		// way of its other streams.
		_, _ = io.Copy(io.Discard, in)
	}
}

// pump copies until nobody writes any more, or finish says so. Who writes when
// the client takes no more gets SIGPIPE, as in a shell's pipeline.
func (o *output) pump() {
	defer close(o.done)
	defer o.r.Close()
	if err, _ := copyTo(o.w, o.r); errors.Is(err, os.ErrDeadlineExceeded) {
		o.rest()
	}
}

// rest copies what is in the pipe at this moment. The runtime's poller refuses
// to read after a deadline, also what has been there before it.
func (o *output) rest() {
	raw, err := o.r.SyscallConn()
	if err != nil {
		return
	}
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	for sum := 0; sum < restMax; {
		n := 0
		err := raw.Control(func(fd uintptr) { n, _ = syscall.Read(int(fd), buf[:]) })
		if err != nil || n <= 0 {
			return
		}
		if _, err := o.w.Write(buf[:n]); err != nil {
			return
		}
		sum += n
	}
}

// ended reports whether the client's stdin has come to its end and is passed on.
func (p *pipes) ended() bool {
	select {
	case <-p.fed:
		return p.stdin != nil
	default:
		return false
	}
}

// drained is closed when all outputs have ended. Never without any.
func (p *pipes) drained() <-chan struct{} {
	if len(p.outs) == 0 {
		return nil
	}
	all := make(chan struct{})
	go func() { // ends with close
		defer close(all)
		for _, o := range p.outs {
			<-o.done
		}
	}()
	return all
}

// finish is for when the process has ended: it waits until all that it has
// written is with the client, also with a slow one, but not longer than limit for
// those who hold the pipe open and write nothing, and not longer than ctx.
func (p *pipes) finish(ctx context.Context, limit time.Duration) {
	deadline := time.Now().Add(limit)
	for _, o := range p.outs {
		if err := o.r.SetReadDeadline(deadline); err != nil && !errors.Is(err, os.ErrClosed) {
			_ = o.r.Close() // not a file that can be polled
		}
		select {
		case <-o.done:
		case <-ctx.Done():
			return
		}
	}
}

// closeTheirs closes crid's copies of what the monitor has been given.
func (p *pipes) closeTheirs() {
	for i, f := range p.theirs {
		if f != nil {
			_ = f.Close()
			p.theirs[i] = nil
		}
	}
}

// close closes crid's ends. Safe twice.
func (p *pipes) close() {
	if p.stdin != nil {
		_ = p.stdin.Close()
	}
	for _, o := range p.outs {
		_ = o.r.Close()
	}
}

// firstSize waits a moment for the size of the client's terminal: programs look
// at it when they start. The zero Size means that none came.
func (s Streams) firstSize(ctx context.Context) Size {
	if !s.TTY || s.Resize == nil {
		return Size{}
	}
	t := time.NewTimer(sizeGrace)
	defer t.Stop()
	select {
	case size := <-s.Resize:
		return size
	case <-t.C:
	case <-ctx.Done():
	}
	return Size{}
}

// resize follows the client's terminal until sizes is closed or ctx ends.
func resize(ctx context.Context, mon Monitor, r monitor.ResizeRequest, sizes <-chan Size) {
	for {
		select {
		case size, ok := <-sizes:
			if !ok {
				return
			}
			r.Rows, r.Columns = size.Rows, size.Columns
			if err := mon.Resize(ctx, r); err != nil && ctx.Err() == nil {
				klog.FromContext(ctx).V(4).Info("Did not resize terminal", "exec", r.ExecID, "err", err)
			}
		case <-ctx.Done():
			return
		}
	}
}
