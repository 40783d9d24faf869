package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/monitor"
)

// readSize is how much is read from a pipe at once.
const readSize = 64 << 10

// pipeSize is the room in a container's output pipes: larger than the default so
// that a container that logs much is not woken for each 64 KiB. The kernel
// allocates it only as it fills.
const pipeSize = 256 << 10

// buffers are lent to a stream for as long as it has something to read.
type buffers struct {
	in  [readSize]byte
	out [logBatch]byte
}

var bufferPool = sync.Pool{New: func() any { return new(buffers) }}

// stream copies one output of a container to its log, from the first byte
// until nobody can write any more or it is closed. It never makes the container
// fail: it reads whether or not there is a log.
type stream struct {
	f    *os.File // read end of a pipe or a pty's master; non-blocking
	log  *criLog
	done chan struct{} // closed when run has returned

	// hurry is closed by seal: nobody is waited for any more.
	hurry chan struct{}

	// mu is held from a read until what it read is in the log and with the taps.
	mu     sync.Mutex
	rec    recorder // +checklocks:mu
	lost   lost     // +checklocks:mu
	taps   []*tap   // +checklocks:mu; of clients that are attached
	ended  bool     // +checklocks:mu; nothing will come any more
	closed bool     // +checklocks:mu
	sealed bool     // +checklocks:mu; no more clients
}

func newStream(f *os.File, name string, log *criLog) *stream {
	return &stream{f: f, log: log, done: make(chan struct{}), hurry: make(chan struct{}), rec: recorder{stream: name}}
}

// run copies until the end and closes the file. While there is nothing to read
// it holds no buffer and no thread.
func (s *stream) run(ctx context.Context) {
	defer close(s.done)
	defer s.f.Close()
	raw, err := s.f.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool {
		return s.copy(ctx, int(fd), -1)
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.flush(ctx)
	s.endTaps()
}

// copy reads and logs until the pipe is empty or, with limit >= 0, that many
// bytes have been copied; then it does not wait for clients that are attached.
// It reports whether the stream has ended.
func (s *stream) copy(ctx context.Context, fd, limit int) bool {
	b := bufferPool.Get().(*buffers)
	defer bufferPool.Put(b)
	for copied := 0; limit < 0 || copied < limit; {
		n, ended := s.step(ctx, fd, b)
		if ended {
			return true
		}
		if n == 0 {
			break
		}
		copied += n
		if limit < 0 {
			s.await()
		}
	}
	return false
}

// step is one read and the writes of what it read. n = 0 means that there is
// nothing now.
func (s *stream) step(ctx context.Context, fd int, b *buffers) (n int, ended bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.closed {
		return 0, true
	}
	for {
		var err error
		n, err = unix.Read(fd, b.in[:])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			s.rec.idle()
			return 0, false
		case err != nil || n == 0:
			// EIO is how a pty says that its last user is gone.
			return 0, true
		}
		break
	}
	for _, t := range s.taps {
		t.give(b.in[:n])
	}
	if s.log.path == "" {
		return n, false
	}
	write := func(p []byte) { s.put(ctx, p) }
	write(s.rec.add(b.out[:0], b.in[:n], time.Now(), write))
	return n, false
}

// flush writes what is left of a line, and what was lost. Preconditions: mu is held.
func (s *stream) flush(ctx context.Context) {
	defer s.confess(ctx)
	if len(s.rec.rest) == 0 {
		return
	}
	b := bufferPool.Get().(*buffers)
	defer bufferPool.Put(b)
	write := func(p []byte) { s.put(ctx, p) }
	write(s.rec.end(b.out[:0], time.Now(), write))
}

// drain copies what is in the pipe at the time of the call, which may be held
// open by others for ever, and ends the line that it leaves open.
func (s *stream) drain(ctx context.Context) {
	raw, err := s.f.SyscallConn()
	if err != nil {
		return
	}
	// Control, because run may hold the file's read lock for as long as others
	// keep writing.
	_ = raw.Control(func(fd uintptr) {
		// Whatever another read has taken is in the log once mu is free.
		s.mu.Lock()
		n, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
		s.mu.Unlock()
		if err != nil {
			n = pipeSize
		}
		if n > 0 {
			s.copy(ctx, int(fd), n)
		}
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.flush(ctx)
	}
}

// close stops the copying and waits until it has stopped.
func (s *stream) close(ctx context.Context) {
	s.drain(ctx)
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	_ = s.f.Close()
	<-s.done
}

// stdio is the monitor's ends of a container's standard files.
type stdio struct {
	log     *criLog
	streams []*stream // stdout and stderr, or the terminal
	stdin   *os.File
	console *os.File // the terminal's master; its stream reads from the same file
	tty     bool
	reads   bool // it was created with Stdin
	once    bool // stdin ends with the first client that writes to it

	mu      sync.Mutex
	inputs  map[*os.File]struct{} // +checklocks:mu; from which clients' input comes
	inTaken bool                  // +checklocks:mu; a client has had it
	inEnded bool                  // +checklocks:mu; stdin is closed
	sealed  bool                  // +checklocks:mu; no more clients
}

func newStdio(log *criLog, r *monitor.CreateRequest) *stdio {
	return &stdio{log: log, tty: r.TTY, reads: r.Stdin, once: r.StdinOnce, inputs: map[*os.File]struct{}{}}
}

// keepsStdin says whether crid gets a copy of stdin. With StdinOnce it has none from
// the first client on: the container would not see its end.
func (o *stdio) keepsStdin() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return !o.inEnded && (!o.once || !o.inTaken)
}

// childFiles are the container's ends, to be closed once it has them.
type childFiles struct {
	stdin, stdout, stderr *os.File
}

func (c *childFiles) close() {
	for _, f := range []*os.File{c.stdin, c.stdout, c.stderr} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// newPipes makes the standard files of a container without a terminal.
func newPipes(log *criLog, req *monitor.CreateRequest) (io *stdio, child *childFiles, err error) {
	io, child = newStdio(log, req), &childFiles{}
	defer func() {
		if err != nil {
			child.close()
			io.closeUnstarted()
		}
	}()
	if req.Stdin {
		child.stdin, io.stdin, err = pipeTo()
	} else {
		child.stdin, err = os.OpenFile(os.DevNull, os.O_RDWR, 0)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("make stdin: %w", err)
	}
	for _, out := range []struct {
		name string
		w    **os.File
	}{{"stdout", &child.stdout}, {"stderr", &child.stderr}} {
		var r *os.File
		if r, *out.w, err = pipeFrom(); err != nil {
			return nil, nil, fmt.Errorf("make %s: %w", out.name, err)
		}
		io.streams = append(io.streams, newStream(r, out.name, log))
	}
	return io, child, nil
}

// pipeFrom makes a pipe that a container writes to. Our end does not block, the
// container's does: the mode belongs to each end.
func pipeFrom() (r, w *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, err
	}
	// More room is for speed only, and the user may be at its limit.
	_, _ = unix.FcntlInt(uintptr(p[1]), unix.F_SETPIPE_SZ, pipeSize)
	_ = unix.SetNonblock(p[0], true)
	return os.NewFile(uintptr(p[0]), "pipe"), os.NewFile(uintptr(p[1]), "pipe"), nil
}

// pipeTo makes a pipe that a container reads from.
func pipeTo() (r, w *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, err
	}
	_ = unix.SetNonblock(p[1], true)
	return os.NewFile(uintptr(p[0]), "pipe"), os.NewFile(uintptr(p[1]), "pipe"), nil
}

// start begins to copy.
func (o *stdio) start(ctx context.Context) {
	for _, s := range o.streams {
		go s.run(ctx)
	}
}

// drain writes the last words of a process that has exited.
func (o *stdio) drain(ctx context.Context) {
	for _, s := range o.streams {
		s.drain(ctx)
	}
}

// close ends everything after start.
func (o *stdio) close(ctx context.Context) {
	o.seal()
	for _, s := range o.streams {
		s.close(ctx)
	}
	o.log.close()
}

// closeUnstarted ends everything when start was not called.
func (o *stdio) closeUnstarted() {
	for _, s := range o.streams {
		_ = s.f.Close()
	}
	if o.stdin != nil {
		_ = o.stdin.Close()
	}
	o.log.close()
}

// files are copies of the descriptors that crid keeps, with their names as in
// monitor.ListItem. What has ended is left out.
func (o *stdio) files() (names []string, files []*os.File) {
	add := func(name string, f *os.File) {
		if f == nil {
			return
		}
		if d, err := sys.Dup(f); err == nil {
			names, files = append(names, name), append(files, d)
		}
	}
	if o.console != nil {
		add("console", o.console)
		return names, files
	}
	for _, s := range o.streams {
		add(s.rec.stream, s.f)
	}
	if o.keepsStdin() {
		add("stdin", o.stdin)
	}
	return names, files
}

// adoptStdio takes over the descriptors of a container that another monitor
// made. Those that are missing are lost.
func adoptStdio(log *criLog, r *monitor.CreateRequest, h *monitor.Hold) (*stdio, error) {
	o := newStdio(log, r)
	take := func(f **os.File) (*os.File, error) {
		own, err := pollable(*f)
		*f = nil
		return own, err
	}
	var err error
	if h.Stdin != nil {
		if o.stdin, err = take(&h.Stdin); err != nil {
			return nil, err
		}
	}
	if r.TTY && h.Console != nil {
		if o.console, err = take(&h.Console); err != nil {
			o.closeUnstarted()
			return nil, err
		}
		o.streams = append(o.streams, newStream(o.console, "stdout", log))
	}
	for _, p := range []struct {
		name string
		f    **os.File
	}{{"stdout", &h.Stdout}, {"stderr", &h.Stderr}} {
		if *p.f == nil {
			continue
		}
		f, err := take(p.f)
		if err != nil {
			o.closeUnstarted()
			return nil, err
		}
		o.streams = append(o.streams, newStream(f, p.name, log))
	}
	return o, nil
}

// pollable takes ownership of f and returns a file for it that the runtime's
// poller watches.
func pollable(f *os.File) (*os.File, error) {
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var own *os.File
	var ctlErr error
	if err := raw.Control(func(old uintptr) {
		fd, err := unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			ctlErr = err
			return
		}
		if ctlErr = unix.SetNonblock(fd, true); ctlErr != nil {
			_ = unix.Close(fd)
			return
		}
		own = os.NewFile(uintptr(fd), f.Name())
	}); err != nil {
		return nil, err
	}
	if ctlErr != nil {
		return nil, fmt.Errorf("take over descriptor: %w", ctlErr)
	}
	return own, nil
}

// isClosed reports that a file was closed meanwhile. What a file's raw connection
// says then has no exported value.
func isClosed(err error) bool {
	return err != nil && (errors.Is(err, os.ErrClosed) || strings.Contains(err.Error(), "use of closed file"))
}

// readAll reads to the end, for small things such as an error text.
func readAll(f *os.File, most int64) string {
	b, _ := io.ReadAll(io.LimitReader(f, most))
	return string(b)
}
