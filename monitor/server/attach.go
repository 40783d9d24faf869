package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/monitor"
)

// attachStall is how long an attached client may read nothing while there is
// something for it. Its container waits meanwhile.
const attachStall = 10 * time.Second

// attachRoom is how much is read from a client at once.
const attachRoom = 16 << 10

var attachPool = sync.Pool{New: func() any { return new([attachRoom]byte) }}

// errSealed: there is nothing to attach to any more.
var errSealed = errkind.New(errkind.BadState, errors.New("its first process has exited"))

// handleAttach takes the files that come with the request.
func (s *Server) handleAttach(ctx context.Context, _ *conn, f *monitor.Frame) (reply, error) {
	var r monitor.AttachRequest
	if err := f.Decode(&r); err != nil {
		return reply{}, err
	}
	files, err := attachFiles(r, f.Files)
	if err != nil {
		return reply{}, errkind.Errorf(errkind.Invalid, "attach to container %s: %w", r.ID, err)
	}
	c, err := s.table.container(r.ID)
	if err != nil {
		return reply{}, err
	}
	if err := c.wants("attach to", stateCreated, stateRunning); err != nil {
		return reply{}, err
	}
	if c.io.tty && files[2] != nil {
		return reply{}, errkind.Errorf(errkind.Invalid, "attach to container %s: it has a terminal, which has no stderr", r.ID)
	}
	f.Files = nil // attach closes what it does not keep
	ctx = klog.NewContext(context.WithoutCancel(ctx), klog.LoggerWithValues(klog.FromContext(ctx), "container", c.id))
	if err := c.io.attach(ctx, files, s.attachStall()); err != nil {
		return reply{}, fmt.Errorf("attach to container %s: %w", c.id, err)
	}
	klog.FromContext(ctx).V(2).Info("Attached a client", "streams", r.Streams)
	return reply{}, nil
}

func (s *Server) attachStall() time.Duration {
	if s.o.AttachStall > 0 {
		return s.o.AttachStall
	}
	return attachStall
}

// attachFiles are the descriptors that came, as stdin, stdout and stderr.
func attachFiles(r monitor.AttachRequest, came []*os.File) (files [3]*os.File, err error) {
	if len(r.Streams) == 0 || len(r.Streams) != len(came) {
		return files, errkind.Errorf(errkind.Invalid, "%d descriptors came, want one for each of %q", len(came), r.Streams)
	}
	places := map[string]**os.File{"stdin": &files[0], "stdout": &files[1], "stderr": &files[2]}
	for i, name := range r.Streams {
		to := places[name]
		if to == nil || *to != nil {
			return files, errkind.Errorf(errkind.Invalid, "stream %q is unknown or there twice", name)
		}
		if !waitable(came[i]) {
			return files, errkind.Errorf(errkind.Invalid, "%s is neither a pipe nor a socket", name)
		}
		*to = came[i]
	}
	return files, nil
}

// waitable says whether one can wait for a file and give up.
func waitable(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && st.Mode()&(os.ModeNamedPipe|os.ModeSocket) != 0
}

// attachment is one client of a container.
type attachment struct {
	io   *stdio
	in   *os.File   // what the container is to read; nil without
	taps [2]*tap    // of stdout and stderr; nil without
	of   [2]*stream // where they are
}

// attach connects a client. It takes ownership of files, also on error.
func (o *stdio) attach(ctx context.Context, files [3]*os.File, stall time.Duration) (err error) {
	a := &attachment{io: o}
	defer func() {
		if err != nil {
			a.end()
		}
		for _, f := range files {
			if f != nil {
				_ = f.Close()
			}
		}
	}()
	for i, f := range files[1:] {
		if f == nil {
			continue
		}
		if a.taps[i], err = newTap(f, stall); err != nil {
			return err
		}
		files[i+1] = nil
	}
	if files[0] != nil {
		if a.in, err = pollable(files[0]); err != nil {
			return err
		}
		files[0] = nil
	}
	feeding, err := o.admit(a.in)
	if err != nil {
		return err
	}
	for i, t := range a.taps {
		if t == nil {
			continue
		}
		if a.of[i] = o.stream(i); a.of[i] == nil {
			t.end() // lost with a monitor
		} else {
			a.of[i].join(t)
		}
		go a.watch(ctx, i)
	}
	switch {
	case feeding:
		go a.feed()
	case a.in != nil:
		// Nobody reads it: writing to it fails.
		_ = a.in.Close()
	}
	return nil
}

// watch waits until one of a client's taps has ended.
func (a *attachment) watch(ctx context.Context, i int) {
	err := a.taps[i].watch()
	if a.of[i] != nil {
		a.of[i].leave(a.taps[i])
	}
	if errors.Is(err, errStalled) {
		klog.FromContext(ctx).Info("Detached a client", "err", err, "stall", a.taps[i].stall)
		a.end()
	}
}

// end detaches the client. What its taps have queued is still written.
func (a *attachment) end() {
	for i, t := range a.taps {
		if t == nil {
			continue
		}
		if a.of[i] != nil {
			a.of[i].leave(t)
		}
		t.end()
	}
	if a.in != nil {
		_ = a.in.Close() // ends feed
	}
}

// feed copies what the client writes to the container. The end of it is the end
// of the container's stdin with StdinOnce, and else of the attachment, as under
// Docker and containerd; a terminal is not closed.
func (a *attachment) feed() {
	o := a.io
	out, client := o.input(), true // client: it is the client's end that ended it
	raw, err := a.in.SyscallConn()
	for err == nil {
		var buf *[attachRoom]byte
		var n int
		// Only what there is to read costs a buffer.
		err = raw.Read(func(fd uintptr) bool {
			buf = attachPool.Get().(*[attachRoom]byte)
			n = tryRead(int(fd), buf[:])
			if n < 0 {
				attachPool.Put(buf)
			}
			return n >= 0
		})
		if err != nil {
			break
		}
		if n > 0 {
			_, err = out.Write(buf[:n])
			client = err == nil
		}
		attachPool.Put(buf)
		if n == 0 {
			break
		}
	}
	o.release(a.in)
	switch {
	case !client:
		// The container reads no more; what it writes goes on.
	case o.once && !o.tty:
		o.endStdin()
	default:
		a.end()
	}
}

// tryRead is one read that does not wait: -1 when there is nothing now, 0 at the
// end or after an error.
func tryRead(fd int, p []byte) int {
	for {
		n, err := unix.Read(fd, p)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return -1
		case err != nil:
			return 0
		default:
			return n
		}
	}
}

// input is where a container reads from; nil without stdin.
func (o *stdio) input() *os.File {
	switch {
	case !o.reads:
		return nil
	case o.tty:
		return o.console
	}
	return o.stdin
}

// admit lets a client in as long as the first process lives, and says whether
// anyone reads what comes from in, which may be nil.
func (o *stdio) admit(in *os.File) (feeds bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.sealed {
		return false, errSealed
	}
	if in == nil || o.input() == nil || o.inEnded {
		return false, nil
	}
	o.inTaken = true
	o.inputs[in] = struct{}{}
	return true, nil
}

// release closes a client's stdin.
func (o *stdio) release(in *os.File) {
	o.mu.Lock()
	delete(o.inputs, in)
	o.mu.Unlock()
	_ = in.Close()
}

// endStdin closes a container's stdin for good.
func (o *stdio) endStdin() {
	o.mu.Lock()
	o.inEnded = true
	o.mu.Unlock()
	if o.stdin != nil {
		_ = o.stdin.Close() // wakes those that write to it
	}
}

// seal detaches all clients and lets no more in: the first process has exited
// and its last words have been read. What is queued for clients is still
// written, and nobody waits for that.
func (o *stdio) seal() {
	for _, s := range o.streams {
		s.seal()
	}
	o.mu.Lock()
	o.sealed = true
	inputs := slices.Collect(maps.Keys(o.inputs))
	o.mu.Unlock()
	if o.tty && o.console != nil {
		_ = o.console.SetWriteDeadline(time.Unix(1, 0)) // wakes those that write to it
	}
	o.endStdin()
	for _, in := range inputs {
		o.release(in)
	}
}

// stream is the container's stdout (0) or stderr (1); nil if it was lost.
func (o *stdio) stream(i int) *stream {
	for _, s := range o.streams {
		if s.rec.stream == [...]string{"stdout", "stderr"}[i] {
			return s
		}
	}
	return nil
}

// join gives t what is read from now on.
func (s *stream) join(t *tap) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.closed || s.sealed {
		t.end()
		return
	}
	s.taps = append(s.taps, t)
}

func (s *stream) leave(t *tap) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taps = slices.DeleteFunc(s.taps, func(other *tap) bool { return other == t })
}

// seal ends all taps, and is the last that is heard of them.
func (s *stream) seal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endTaps()
	if !s.sealed {
		s.sealed = true
		close(s.hurry)
	}
}

// endTaps ends all taps. Preconditions: mu is held.
func (s *stream) endTaps() {
	for _, t := range s.taps {
		t.end()
	}
	s.taps = nil
}

// await returns when all clients have room for what is read next, or are gone.
func (s *stream) await() {
	for {
		var behind <-chan struct{}
		s.mu.Lock()
		for _, t := range s.taps {
			if behind = t.waiting(); behind != nil {
				break
			}
		}
		s.mu.Unlock()
		if behind == nil {
			return
		}
		select {
		case <-behind:
		case <-s.hurry:
			return
		}
	}
}
