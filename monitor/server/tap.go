package server

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// errStalled ends a tap whose client has stopped to read.
var errStalled = errors.New("the client has not read for too long")

// tap is where an attached client gets a copy of one stream of a container.
//
// What the client has no room for waits in queue, and the stream is not read on
// meanwhile: so there is never more in it than one read, or at the container's
// end what was left in its pipe. A goroutine (pump) lives only as long as there
// is something in it.
type tap struct {
	f     *os.File // a pipe or socket; non-blocking
	raw   syscall.RawConn
	stall time.Duration // how long the client may read nothing

	mu     sync.Mutex
	queue  []byte        // +checklocks:mu; in order
	spare  []byte        // +checklocks:mu; memory for queue
	behind chan struct{} // +checklocks:mu; closed when pump ends; nil without one
	ended  bool          // +checklocks:mu; nothing more will come
	closed bool          // +checklocks:mu
	err    error         // +checklocks:mu; why it was closed, nil for the end
}

// newTap takes ownership of f, also on error.
func newTap(f *os.File, stall time.Duration) (*tap, error) {
	own, err := pollable(f)
	if err != nil {
		return nil, err
	}
	raw, err := own.SyscallConn()
	if err != nil {
		_ = own.Close()
		return nil, fmt.Errorf("attach: %w", err)
	}
	_ = raw.Control(func(fd uintptr) {
		// More room is for speed only, and what is no pipe has none to give.
		_, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize)
	})
	return &tap{f: own, raw: raw, stall: stall}, nil
}

// give writes p as far as there is room, and queues the rest. It never waits.
func (t *tap) give(p []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || t.ended {
		return
	}
	if t.behind == nil {
		n, err := t.writeSome(p)
		if err != nil {
			t.closeLocked(err)
			return
		}
		if p = p[n:]; len(p) == 0 {
			return
		}
		t.behind = make(chan struct{})
		go t.pump()
	}
	t.queue = append(t.queue, p...)
}

// writeSome is one write that does not wait. The file's own Write would.
func (t *tap) writeSome(p []byte) (n int, err error) {
	ctl := t.raw.Control(func(fd uintptr) { n, err = tryWrite(int(fd), p) })
	if errors.Is(err, unix.EAGAIN) {
		err = nil
	}
	return max(n, 0), errors.Join(ctl, err)
}

func tryWrite(fd int, p []byte) (int, error) {
	for {
		n, err := unix.Write(fd, p)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// pump writes what is queued until nothing is.
func (t *tap) pump() {
	for {
		t.mu.Lock()
		if t.closed || len(t.queue) == 0 {
			close(t.behind)
			t.behind = nil
			if t.ended {
				t.closeLocked(nil)
			}
			t.mu.Unlock()
			return
		}
		p := t.queue
		t.queue = t.spare[:0]
		t.mu.Unlock()
		err := t.write(p)
		t.mu.Lock()
		t.spare = p
		if err != nil {
			t.closeLocked(err)
		}
		t.mu.Unlock()
	}
}

// write writes all of p, as long as the client reads at all.
func (t *tap) write(p []byte) error {
	for len(p) > 0 {
		before := t.unread()
		if err := t.f.SetWriteDeadline(time.Now().Add(t.stall)); err != nil {
			return err
		}
		var n int
		var werr error
		err := t.raw.Write(func(fd uintptr) bool {
			n, werr = tryWrite(int(fd), p)
			return !errors.Is(werr, unix.EAGAIN)
		})
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			// A pipe has room only once a whole page of it has been read.
			if t.unread() >= before {
				return errStalled
			}
		case err != nil:
			return err
		case werr != nil:
			return werr
		default:
			p = p[n:]
		}
	}
	return nil
}

// unread is how many bytes the client has not read yet, more or less.
func (t *tap) unread() (n int) {
	_ = t.raw.Control(func(fd uintptr) {
		var err error
		if n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ); err != nil {
			n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) // a pipe
		}
	})
	return n
}

// waiting is closed when nothing is queued any more; nil when nothing is.
func (t *tap) waiting() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.behind
}

// watch returns when the client's end is closed, or the tap is, and why.
func (t *tap) watch() error {
	_ = t.raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd)}}
		_, err := unix.Poll(p, 0)
		return err == nil && p[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0
	})
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closeLocked(unix.EPIPE)
	return t.err
}

// end closes the tap once what is queued has been written.
func (t *tap) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended = true; t.behind == nil {
		t.closeLocked(nil)
	}
}

// closeLocked closes the tap at once. Preconditions: mu is held.
func (t *tap) closeLocked(why error) {
	if !t.closed {
		t.closed, t.err = true, why
		t.queue, t.spare = nil, nil
		_ = t.f.Close() // does not wait: nothing blocks in it, pump is woken
	}
}
