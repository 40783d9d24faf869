package monitor

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/sys"
)

// The operations. OpExit is the only one that the monitor sends unasked.
const (
	OpHello     = "hello"
	OpCreate    = "create"
	OpStart     = "start"
	OpExec      = "exec"
	OpAttach    = "attach"
	OpSignal    = "signal"
	OpResize    = "resize"
	OpReopenLog = "reopen-log"
	OpUpdate    = "update"
	OpDelete    = "delete"
	OpHold      = "hold"
	OpRelease   = "release"
	OpAdopt     = "adopt"
	OpList      = "list"
	OpAck       = "ack"
	OpDump      = "dump"
	OpShutdown  = "shutdown"
	OpExit      = "exit"
)

const (
	// MaxFrame is the length of the longest frame, in bytes, without its prefix.
	MaxFrame = 4 << 20
	// MaxFiles is the largest number of descriptors with one frame.
	MaxFiles = 1 << 14

	// writeTimeout is how long a peer may leave its socket full. Then it is
	// stuck or stopped, and must not stop the side that writes.
	writeTimeout = 30 * time.Second

	prefixLen   = 4        // big-endian length before each frame
	keepBuffer  = 64 << 10 // a read buffer that has grown beyond is let go
	firstBuffer = 4 << 10
)

// Frame is one message. A request has an ID of the sender's choice, not 0, and
// an Op; its one reply has the same ID and Op, and either Error or Body. OpExit
// has ID 0 and no reply.
type Frame struct {
	ID    uint64
	Op    string
	Error *WireError
	Body  json.RawMessage
	// Files travel beside the JSON. Read hands them over to the caller; Write
	// leaves them the caller's.
	Files []*os.File
}

// CloseFiles closes the frame's files, for a receiver that has no use for them.
func (f *Frame) CloseFiles() {
	for _, file := range f.Files {
		_ = file.Close()
	}
	f.Files = nil
}

// Decode reads the frame's body into v. The error has kind Invalid.
func (f *Frame) Decode(v any) error {
	if err := json.Unmarshal(f.Body, v); err != nil {
		return errkind.Errorf(errkind.Invalid, "monitor protocol: body of %q: %w", f.Op, err)
	}
	return nil
}

// NewFrame is a frame with v, which may be nil, as its body. Its error means
// that v holds raw JSON which is none.
func NewFrame(id uint64, op string, v any, files ...*os.File) (Frame, error) {
	f := Frame{ID: id, Op: op, Files: files}
	if v == nil {
		return f, nil
	}
	body, err := json.Marshal(v)
	if err != nil {
		return Frame{}, errkind.Errorf(errkind.Invalid, "monitor protocol: body of %q: %w", op, err)
	}
	f.Body = body
	return f, nil
}

// envelope is a frame as JSON.
type envelope struct {
	ID    uint64          `json:"id,omitempty"`
	Op    string          `json:"op"`
	Error *WireError      `json:"error,omitempty"`
	Body  json.RawMessage `json:"body,omitempty"`
	FDs   int             `json:"fds,omitempty"`
}

// ErrFrame is wrapped by the error of a Write that wrote nothing because the
// frame cannot be sent as it is. The connection goes on.
var ErrFrame = errors.New("frame cannot be sent")

// Conn sends and receives frames. One goroutine may Read while any number Write.
type Conn struct {
	c   *net.UnixConn
	in  *sys.MsgReader
	br  *bufio.Reader
	buf []byte // Read's

	wmu sync.Mutex // held for the whole of a frame: it is what keeps frames apart
}

// NewConn takes ownership of c.
func NewConn(c *net.UnixConn) *Conn {
	in := sys.NewMsgReader(c)
	return &Conn{c: c, in: in, br: bufio.NewReaderSize(in, firstBuffer)}
}

// Read waits for the next frame; its Files become the caller's. io.EOF means
// that the peer closed between two frames. After any error the connection is of
// no more use, and descriptors that had come have been closed.
func (c *Conn) Read() (Frame, error) {
	f, err := c.read()
	if err != nil {
		c.in.Close()
	}
	return f, err
}

func (c *Conn) read() (Frame, error) {
	payload, err := readPayload(c.br, c.buf)
	if err != nil {
		return Frame{}, err
	}
	if c.buf = payload[:0]; cap(payload) > keepBuffer {
		c.buf = nil
	}
	e, err := decode(payload)
	if err != nil {
		return Frame{}, err
	}
	files, err := c.in.Take(e.FDs)
	if err != nil {
		return Frame{}, fmt.Errorf("monitor protocol: frame %q: %w", e.Op, err)
	}
	// Descriptors come with the first bytes of their frame. With nothing read
	// ahead, one that is left over belongs to no frame.
	if n := c.in.Pending(); n > 0 && c.br.Buffered() == 0 || n > MaxFiles {
		for _, f := range files {
			_ = f.Close()
		}
		return Frame{}, fmt.Errorf("monitor protocol: frame %q: %d descriptors more than announced", e.Op, n)
	}
	return Frame{ID: e.ID, Op: e.Op, Error: e.Error, Body: e.Body, Files: files}, nil
}

// readPayload reads one frame's JSON, into buf if that is large enough.
func readPayload(r io.Reader, buf []byte) ([]byte, error) {
	var prefix [prefixLen]byte
	if _, err := io.ReadFull(r, prefix[:]); err != nil {
		if err == io.EOF {
			return nil, err
		}
		return nil, fmt.Errorf("monitor protocol: read a frame: %w", err)
	}
	n := binary.BigEndian.Uint32(prefix[:])
	if n == 0 || n > MaxFrame {
		return nil, fmt.Errorf("monitor protocol: a frame of %d bytes, allowed are 1 to %d", n, MaxFrame)
	}
	if int(n) > cap(buf) {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(r, buf); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("monitor protocol: read a frame of %d bytes: %w", n, err)
	}
	return buf, nil
}

// decode checks what the peer may not get wrong. The result does not refer to
// payload. Fields it does not know are a newer version's and are passed over.
func decode(payload []byte) (envelope, error) {
	var e envelope
	if err := json.Unmarshal(payload, &e); err != nil {
		return e, fmt.Errorf("monitor protocol: decode a frame: %w", err)
	}
	switch {
	case e.Op == "":
		return e, errors.New("monitor protocol: a frame without op")
	case e.FDs < 0 || e.FDs > MaxFiles:
		return e, fmt.Errorf("monitor protocol: frame %q announces %d descriptors, allowed are 0 to %d", e.Op, e.FDs, MaxFiles)
	}
	return e, nil
}

// Write sends one frame. It may be called concurrently and does not close
// f.Files. After an error that is not ErrFrame the connection is of no more use,
// and Write has closed it so that Read ends too.
func (c *Conn) Write(f Frame) error {
	if len(f.Files) > MaxFiles {
		return fmt.Errorf("%w: %q with %d descriptors, allowed are %d", ErrFrame, f.Op, len(f.Files), MaxFiles)
	}
	payload, err := json.Marshal(envelope{f.ID, f.Op, f.Error, f.Body, len(f.Files)})
	if err != nil {
		return fmt.Errorf("%w: encode %q: %w", ErrFrame, f.Op, err)
	}
	if len(payload) > MaxFrame {
		return fmt.Errorf("%w: %q of %d bytes, allowed are %d", ErrFrame, f.Op, len(payload), MaxFrame)
	}
	msg := make([]byte, prefixLen, prefixLen+len(payload))
	binary.BigEndian.PutUint32(msg, uint32(len(payload)))
	msg = append(msg, payload...)

	c.wmu.Lock()
	defer c.wmu.Unlock()
	if err = c.c.SetWriteDeadline(time.Now().Add(writeTimeout)); err == nil {
		err = sys.WriteMsg(c.c, msg, f.Files...)
	}
	if err != nil {
		_ = c.c.Close()
		return fmt.Errorf("monitor protocol: write %q: %w", f.Op, err)
	}
	return nil
}

// Close ends the connection, and a Read and Writes that wait on it. Descriptors
// that came and were not read are closed by the Read that ends. Safe twice.
func (c *Conn) Close() error { return c.c.Close() }

// WireError is an error on its way: what errkind keeps of it.
type WireError struct {
	Kind string `json:"kind"`
	Text string `json:"text"`
}

// ErrorToWire is nil for nil.
func ErrorToWire(err error) *WireError {
	if err == nil {
		return nil
	}
	return &WireError{errkind.Of(err).String(), err.Error()}
}

// Err is the error with its kind. A kind that is not known here is Other. Nil
// for nil.
func (e *WireError) Err() error {
	if e == nil {
		return nil
	}
	for _, k := range errkind.Kinds {
		if k.String() == e.Kind {
			return errkind.New(k, errors.New(e.Text))
		}
	}
	return errkind.New(errkind.Other, errors.New(e.Text))
}
