package sys

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// maxFDs is how many descriptors the kernel takes in one message (SCM_MAX_FD).
const maxFDs = 253

// WriteMsg writes data to c with files as ancillary data. The caller goes on
// owning its files; the receiver gets duplicates, in this order.
//
// Any number of files goes: they are split over several messages, each of which
// must carry at least one byte, so data must be at least one byte for each 253
// files. All of them are on their way before the last byte of data is. After an
// error an unknown part has been written and c is of no more use.
//
// Calls for one connection must not overlap.
func WriteMsg(c *net.UnixConn, data []byte, files ...*os.File) error {
	batches := (len(files) + maxFDs - 1) / maxFDs
	if len(data) < batches {
		return fmt.Errorf("send %d descriptors: %d bytes of data are too few to carry them", len(files), len(data))
	}
	for len(files) > 0 {
		n := min(len(files), maxFDs)
		// All but the last batch take one byte with them.
		part := data[:1]
		if n == len(files) {
			part = data
		}
		sent, err := sendBatch(c, part, files[:n])
		if err != nil {
			return err
		}
		data, files = data[sent:], files[n:]
	}
	if len(data) == 0 {
		return nil
	}
	_, err := c.Write(data) // goes on after partial writes itself
	return err
}

// sendBatch sends at most maxFDs files and as much of data as the socket takes
// at once, at least a byte. The kernel attaches the files to that first byte.
func sendBatch(c *net.UnixConn, data []byte, files []*os.File) (sent int, err error) {
	fds := make([]int, 0, len(files))
	err = withFDs(files, fds, func(fds []int) error {
		sent, _, err = c.WriteMsgUnix(data, unix.UnixRights(fds...), nil)
		if errors.Is(err, unix.ETOOMANYREFS) {
			return fmt.Errorf("send %d descriptors: more are under way than this process may have open; raise its limit of open files: %w", len(files), err)
		}
		return err
	})
	return sent, err
}

// withFDs calls f with the descriptors of all files while none of them can be
// closed. It does not use Fd, which may change the file's mode.
func withFDs(files []*os.File, fds []int, f func([]int) error) error {
	if len(files) == 0 {
		return f(fds)
	}
	raw, err := files[0].SyscallConn()
	if err != nil {
		return fmt.Errorf("send a descriptor: %w", err)
	}
	var inner error
	if err := raw.Control(func(fd uintptr) {
		inner = withFDs(files[1:], append(fds, int(fd)), f)
	}); err != nil {
		return fmt.Errorf("send the descriptor of %s: %w", files[0].Name(), err)
	}
	return inner
}

// MsgReader reads a stream that WriteMsg wrote, and collects the descriptors
// that come with it in the order sent. They are close-on-exec and belong to the
// reader until taken. Not safe for concurrent use.
type MsgReader struct {
	c     *net.UnixConn
	oob   []byte
	files []*os.File
}

// NewMsgReader reads from c, which stays the caller's to close.
func NewMsgReader(c *net.UnixConn) *MsgReader {
	return &MsgReader{c: c, oob: make([]byte, unix.CmsgSpace(maxFDs*4))}
}

// Read is io.Reader's. The end of the stream is io.EOF itself. An error can
// also mean that descriptors were lost; the stream is then of no more use.
func (r *MsgReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	// The net package asks for MSG_CMSG_CLOEXEC, and the kernel hands over at
	// most one message's descriptors per call, so oob always has room.
	n, oobn, flags, _, err := r.c.ReadMsgUnix(p, r.oob)
	n, oobn = max(n, 0), max(oobn, 0) // -1 with an error
	if oobn > 0 {
		// Collected also on error, so that Close finds them.
		if cerr := r.collect(r.oob[:oobn]); cerr != nil {
			return n, cerr
		}
	}
	switch {
	case errors.Is(err, io.EOF):
		return n, io.EOF
	case err != nil:
		return n, err
	case flags&unix.MSG_CTRUNC != 0:
		return n, errors.New("receive descriptors: some were lost because this process has too many files open; raise its limit of open files")
	}
	return n, nil
}

// collect appends the descriptors in one message's ancillary data.
func (r *MsgReader) collect(oob []byte) error {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return fmt.Errorf("receive descriptors: %w", err)
	}
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			return fmt.Errorf("receive descriptors: %w", err)
		}
		for _, fd := range fds {
			r.files = append(r.files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return nil
}

// Pending is the number of descriptors received and not taken.
func (r *MsgReader) Pending() int { return len(r.files) }

// Take hands over the n descriptors received first. With fewer received it is
// an error and takes none. nil for n = 0.
func (r *MsgReader) Take(n int) ([]*os.File, error) {
	if n < 0 || n > len(r.files) {
		return nil, fmt.Errorf("receive descriptors: %d announced, %d came", n, len(r.files))
	}
	if n == 0 {
		return nil, nil
	}
	files := append([]*os.File(nil), r.files[:n]...)
	rest := copy(r.files, r.files[n:])
	clear(r.files[rest:])
	r.files = r.files[:rest]
	if rest == 0 {
		r.files = nil // a list of 2000 is rare; do not keep its array
	}
	return files, nil
}

// Close closes the descriptors that were not taken, and not the connection.
func (r *MsgReader) Close() {
	for _, f := range r.files {
		_ = f.Close()
	}
	r.files = nil
}

// Passive returns a file for f's descriptor that the runtime's poller does not
// watch, and closes f, also on error. A process that only keeps the read end of
// a busy pipe for another would else be woken by each byte in it: os.NewFile
// registers whatever is in non-blocking mode, and that mode is shared with the
// process that reads. Nothing should be read from or written to the result.
func Passive(f *os.File) (*os.File, error) {
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	// os.File decides when it is made, so it is made of a place holder, over
	// which the descriptor is then put.
	place, err := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("keep the descriptor of %s: open /: %w", f.Name(), err)
	}
	passive := os.NewFile(uintptr(place), f.Name())
	var dup error
	ctl := raw.Control(func(fd uintptr) {
		dup = unix.Dup3(int(fd), place, unix.O_CLOEXEC)
	})
	if err := errors.Join(ctl, dup); err != nil {
		_ = passive.Close()
		return nil, fmt.Errorf("keep the descriptor of %s: %w", f.Name(), err)
	}
	return passive, nil
}

// Dup is a copy of a file's descriptor, so that the original may be closed meanwhile. It
// is never one of the standard three, and does not go to children.
func Dup(f *os.File) (*os.File, error) {
	var own *os.File
	err := control(f, func(fd int) error {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err == nil {
			own = os.NewFile(uintptr(n), f.Name())
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("copy the descriptor of %s: %w", f.Name(), err)
	}
	return own, nil
}
