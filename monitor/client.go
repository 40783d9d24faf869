package monitor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/cridproject/crid/internal/errkind"
)

// handshakeTimeout is how long a monitor may take to answer Hello. It answers
// before it takes any lock, so more than this means that it is stuck.
const handshakeTimeout = 10 * time.Second

// ErrVersion is wrapped by Connect's and Start's error when the monitor speaks
// a version of the protocol that this program does not.
var ErrVersion = errors.New("protocol version not supported")

// ClientOptions are options of a connection to the monitor.
type ClientOptions struct {
	// OnExit gets the exits of containers, each container's in order, from one
	// goroutine: what it does delays the exits after it, and nothing else. It may
	// call the client, but not Close. Nil drops them; they stay journalled.
	OnExit func(Exit)
	// Build is the version of this program, for the monitor's log. May be "".
	Build string
}

// Client is crid's half of a connection. Its methods may be called concurrently
// and do not wait for each other.
//
// A method whose context ends returns the context's error at once, and the
// monitor goes on with the request: it may or may not be carried out. When the
// connection is lost, all return an error of kind Unavailable.
type Client struct {
	conn   *Conn
	peer   Hello
	onExit func(Exit)
	done   chan struct{} // closed when the reader has ended
	wg     sync.WaitGroup

	mu      sync.Mutex // never held across I/O
	next    uint64
	pending map[uint64]*call
	execs   map[execKey]chan Exit
	lost    error // why the connection ended; nil while it lives
	exits   exitQueue
}

// call is a request without a reply so far.
type call struct {
	makes    string        // what it makes, see subject; "" for nothing
	answered chan struct{} // closed with the reply; nil if it makes nothing
	reply    chan Frame    // has room for the one reply
	// late deals with a reply that nobody waits for any more. Nil while somebody
	// does. Called by the reader, which then closes the reply's files.
	late func(Frame)
}

type execKey struct{ id, execID string }

// Connect connects to the monitor that listens on socket and exchanges Hello.
// The error has kind Unavailable. It wraps ErrVersion if the two programs'
// versions do not fit, and ENOENT or ECONNREFUSED when no monitor runs there.
func Connect(ctx context.Context, socket string, o ClientOptions) (*Client, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, errkind.Errorf(errkind.Unavailable, "connect to crid-monitor: %w", err)
	}
	c, err := newClient(ctx, nc.(*net.UnixConn), o)
	if err != nil {
		return nil, errkind.Errorf(errkind.Unavailable, "connect to crid-monitor at %s: %w", socket, err)
	}
	return c, nil
}

// newClient does the handshake. It takes ownership of nc, also on error.
func newClient(ctx context.Context, nc *net.UnixConn, o ClientOptions) (*Client, error) {
	conn := NewConn(nc)
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	// A Read knows no context, but ends with its connection.
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	peer, err := handshake(conn, o.Build)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = checkVersion(peer)
	}
	if err != nil {
		_ = conn.Close()
		if ctx.Err() != nil {
			return nil, fmt.Errorf("it does not answer; see its log: %w", context.Cause(ctx))
		}
		return nil, err
	}
	c := &Client{
		conn:    conn,
		peer:    peer,
		onExit:  o.OnExit,
		done:    make(chan struct{}),
		pending: map[uint64]*call{},
		execs:   map[execKey]chan Exit{},
	}
	c.exits.init()
	c.wg.Add(2)
	go c.read()
	go c.dispatch()
	return c, nil
}

func handshake(conn *Conn, build string) (Hello, error) {
	f, err := NewFrame(1, OpHello, Hello{Version: Version, Build: build, PID: os.Getpid()})
	if err != nil {
		return Hello{}, err
	}
	if err := conn.Write(f); err != nil {
		return Hello{}, err
	}
	reply, err := conn.Read()
	if err != nil {
		return Hello{}, err
	}
	reply.CloseFiles()
	if reply.Op != OpHello || reply.ID != f.ID {
		return Hello{}, fmt.Errorf("monitor protocol: it answers %q instead of %q", reply.Op, OpHello)
	}
	if err := reply.Error.Err(); err != nil {
		return Hello{}, err
	}
	var peer Hello
	return peer, reply.Decode(&peer)
}

// checkVersion says whether this program can speak to the monitor, and if not
// what an operator has to do.
func checkVersion(peer Hello) error {
	switch {
	case peer.Version > Version:
		return fmt.Errorf("%w: crid-monitor (pid %d, %s) speaks version %d, this crid at most %d; install the crid that belongs to that monitor, or a newer one",
			ErrVersion, peer.PID, peer.Build, peer.Version, Version)
	case peer.Version < Version-1:
		return fmt.Errorf("%w: crid-monitor (pid %d, %s) speaks version %d, this crid at least %d; drain the node and restart the monitor, or upgrade by way of the releases between",
			ErrVersion, peer.PID, peer.Build, peer.Version, Version-1)
	}
	return nil
}

// Peer is what the monitor said of itself when the connection was made.
func (c *Client) Peer() Hello { return c.peer }

// Done is closed when the connection is lost or closed.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close ends the connection and waits until OnExit has returned; from its start
// OnExit is not called again. Requests under way end with kind Unavailable; containers go
// on, execs are killed. Safe twice, but not from OnExit.
func (c *Client) Close() {
	// In this order: Done says that OnExit will not be called once more.
	c.exits.drop()
	c.fail(errors.New("the connection was closed"))
	c.wg.Wait()
}

// fail ends the connection for the reason why, unless it has ended already.
func (c *Client) fail(why error) {
	c.mu.Lock()
	if c.lost == nil {
		c.lost = why
	}
	c.mu.Unlock()
	_ = c.conn.Close()
}

// unavailable is the error of a request whose connection is lost.
func (c *Client) unavailable(op string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return errkind.Errorf(errkind.Unavailable, "%s: crid-monitor: %w", op, c.lost)
}

// ask is what a call asks.
type ask struct {
	op    string
	req   any
	files []*os.File
	// late, which may be nil, is called with a reply without an error that came
	// after the caller had gone. Its files are closed thereafter.
	late func(Frame)
}

// call sends a request and waits for the reply. The error has the kind that the
// monitor gave it. The reply's files are the caller's, unless there is an error.
func (c *Client) call(ctx context.Context, a ask) (Frame, error) {
	op := a.op
	if err := ctx.Err(); err != nil {
		return Frame{}, fmt.Errorf("%s: crid-monitor was not asked: %w", op, err)
	}
	f, err := NewFrame(0, op, a.req, a.files...)
	if err != nil {
		return Frame{}, err
	}
	p := &call{reply: make(chan Frame, 1)}
	makes, removes := subject(a.req)
	if p.makes = makes; makes != "" {
		p.answered = make(chan struct{})
	}
	if err := c.settle(ctx, op, removes); err != nil {
		return Frame{}, err
	}
	if f.ID, err = c.register(op, p); err != nil {
		return Frame{}, err
	}
	if err := c.conn.Write(f); errors.Is(err, ErrFrame) {
		c.forget(f.ID)
		return Frame{}, errkind.New(errkind.Invalid, err)
	} else if err != nil {
		c.fail(err)
	}
	select {
	case r := <-p.reply:
		return c.answered(op, r)
	case <-c.done:
		// The reader delivers what it has read before it ends.
		select {
		case r := <-p.reply:
			return c.answered(op, r)
		default:
			return Frame{}, c.unavailable(op)
		}
	case <-ctx.Done():
		if r, ok := c.abandon(p, a.late); ok {
			return c.answered(op, r)
		}
		return Frame{}, fmt.Errorf("%s: waiting for crid-monitor: %w", op, ctx.Err())
	}
}

// answered turns the reply's error into a Go error.
func (c *Client) answered(op string, r Frame) (Frame, error) {
	if r.Op != op {
		r.CloseFiles()
		err := fmt.Errorf("monitor protocol: %q answered with %q", op, r.Op)
		c.fail(err)
		return Frame{}, errkind.New(errkind.Unavailable, err)
	}
	if err := r.Error.Err(); err != nil {
		r.CloseFiles()
		return Frame{}, err
	}
	return r, nil
}

// subject is what a request makes or removes.
func subject(req any) (makes, removes string) {
	switch r := req.(type) {
	case CreateRequest:
		return "container " + r.ID, ""
	case DeleteRequest:
		return "", "container " + r.ID
	case HoldRequest:
		return "holder " + r.ID, ""
	case ReleaseRequest:
		return "", "holder " + r.ID
	}
	return "", ""
}

// settle waits until no request that makes what is under way. The monitor may
// carry out what is sent at the same time in any order, and a Create whose
// caller has gone must not come after the Delete that clears up behind it.
func (c *Client) settle(ctx context.Context, op, what string) error {
	for what != "" {
		answered := c.making(what)
		if answered == nil {
			return nil
		}
		select {
		case <-answered:
		case <-c.done:
			return c.unavailable(op)
		case <-ctx.Done():
			return fmt.Errorf("%s: waiting for crid-monitor to make %s, which was given up: %w", op, what, ctx.Err())
		}
	}
	return nil
}

func (c *Client) register(op string, p *call) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lost != nil {
		return 0, errkind.Errorf(errkind.Unavailable, "%s: crid-monitor: %w", op, c.lost)
	}
	c.next++
	c.pending[c.next] = p
	return c.next, nil
}

func (c *Client) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.takeLocked(id)
}

// takeLocked removes a request from those under way. Nil if it is none.
func (c *Client) takeLocked(id uint64) *call {
	p := c.pending[id]
	delete(c.pending, id)
	if p != nil && p.answered != nil {
		close(p.answered)
	}
	return p
}

// abandon stops waiting for the reply to p. If it has come, it is returned.
func (c *Client) abandon(p *call, late func(Frame)) (Frame, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case r := <-p.reply: // delivered under mu
		return r, true
	default:
	}
	if late == nil {
		late = func(Frame) {}
	}
	p.late = late
	return Frame{}, false
}

// read is the reader's goroutine. It ends with the connection.
func (c *Client) read() {
	defer c.wg.Done()
	for {
		f, err := c.conn.Read()
		if err == nil {
			err = c.received(f)
		}
		if err != nil {
			c.fail(fmt.Errorf("the connection was lost: %w", err))
			c.end()
			return
		}
	}
}

// received hands on one frame. An error means that the monitor does not speak
// the protocol.
func (c *Client) received(f Frame) error {
	if f.Op == OpExit && f.ID == 0 {
		f.CloseFiles()
		var e Exit
		if err := f.Decode(&e); err != nil {
			return err
		}
		c.exited(e)
		return nil
	}
	c.mu.Lock()
	p := c.takeLocked(f.ID)
	if p != nil && p.late == nil {
		p.reply <- f
		c.mu.Unlock()
		return nil
	}
	c.mu.Unlock()
	defer f.CloseFiles()
	if p == nil {
		return fmt.Errorf("monitor protocol: a reply %q to request %d, which was not made", f.Op, f.ID)
	}
	if f.Error == nil {
		p.late(f)
	}
	return nil
}

// exited hands an exit to the exec's waiter or queues it for OnExit.
func (c *Client) exited(e Exit) {
	if e.ExecID == "" {
		c.exits.put(e)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	k := execKey{e.ID, e.ExecID}
	if done, ok := c.execs[k]; ok {
		delete(c.execs, k)
		done <- e
	}
}

// end runs when the reader has ended: every exec gets its one Exit, then Done
// is closed, which ends the requests under way.
func (c *Client) end() {
	c.mu.Lock()
	for k, done := range c.execs {
		done <- Exit{ID: k.id, ExecID: k.execID, Code: -1, At: time.Now(), Lost: true}
	}
	clear(c.execs)
	clear(c.pending)
	c.mu.Unlock()
	c.exits.end()
	close(c.done)
}

// dispatch is the goroutine that calls OnExit. When the connection is lost it
// still hands over the exits that had come.
func (c *Client) dispatch() {
	defer c.wg.Done()
	for {
		e, ok := c.exits.take()
		if !ok {
			return
		}
		if c.onExit != nil {
			c.onExit(e)
		}
	}
}
