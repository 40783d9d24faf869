package stream

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cridproject/crid/internal/sys"
)

// hungUpGrace is how long a client that has gone is written to, and what it has
// sent before is read; and how long one is waited for that was told the end.
const hungUpGrace = 2 * time.Second

// silence is how long nothing comes from a client that has nothing more to send.
const silence = 50 * time.Millisecond

// conn is a client's connection that knows when the client has gone. HTTP does
// not tell once a connection has been taken over, and streams tell only those
// who read them.
type conn struct {
	net.Conn
	gone  atomic.Bool
	taken atomic.Bool             // HTTP's server has given it away
	end   context.CancelCauseFunc // of the connection's context
	of    *listener
	place *list.Element // of.nobody's; guarded by its mu

	sends   atomic.Bool // the client may be sending, and ends when it has the outcome
	ending  atomic.Bool // nothing that comes is of use
	closing sync.Mutex  // held by Close, also while the client is waited for
}

// errGone is the cause of a context that ended because its client has gone.
var errGone = errors.New("the client has gone")

// listener bounds the connections that are no session: anybody on the node can
// connect, and each costs a descriptor and a goroutine. One too many ends the oldest
// of them, so that who has a token comes in also then.
type listener struct {
	net.Listener
	most int

	mu     sync.Mutex
	nobody list.List // +checklocks:mu; of *conn, the oldest first
}

func (l *listener) Accept() (net.Conn, error) {
	accepted, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: accepted, of: l}
	l.mu.Lock()
	c.place = l.nobody.PushBack(c)
	var oldest *conn
	if l.nobody.Len() > l.most {
		oldest = l.nobody.Remove(l.nobody.Front()).(*conn)
		oldest.place = nil
	}
	l.mu.Unlock()
	if oldest != nil {
		_ = oldest.Close()
	}
	return c, nil
}

// known says that c is a session from now on, or is closed.
func (l *listener) known(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.place != nil {
		l.nobody.Remove(c.place)
		c.place = nil
	}
}

type connKey struct{}

// connContext makes the context of all that happens on c.
func connContext(ctx context.Context, c net.Conn) context.Context {
	own := unwrap(c)
	ctx, own.end = context.WithCancelCause(ctx)
	return context.WithValue(ctx, connKey{}, own)
}

func unwrap(c net.Conn) *conn {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	return c.(*conn)
}

func connState(c net.Conn, state http.ConnState) {
	if state == http.StateHijacked {
		unwrap(c).taken.Store(true)
	}
}

func connOf(ctx context.Context) *conn { return ctx.Value(connKey{}).(*conn) }

// Read notices the end. A deadline is none: HTTP sets one to get its reader back.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.ending.Load() {
		return 0, io.EOF
	}
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.hangUp(fmt.Errorf("%w: %w", errGone, err))
	}
	return n, err
}

// Close is also what the protocols do to a client that is idle for too long. A
// client of a session, unless it has gone, is waited for to end its side too.
// Idempotent.
func (c *conn) Close() error {
	c.of.known(c)
	c.closing.Lock()
	defer c.closing.Unlock()
	if c.hangUp(errGone) && c.taken.Load() {
		c.linger()
	}
	if err := c.Conn.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// linger tells the client the end and takes what it still sends. If something of it
// were unread at Close, the kernel would send a reset, and the client would lose what
// it has not yet taken: the end of the output, the exit code. A proxy, which kubelet is,
// closes its own connection in that way when crid ends one: so a client that sends may
// end it first.
func (c *conn) linger() {
	tcp, ok := c.Conn.(*net.TCPConn)
	if !ok {
		return
	}
	defer time.AfterFunc(hungUpGrace, func() { _ = tcp.Close() }).Stop()
	c.ending.Store(true)
	if c.sends.Load() {
		_ = tcp.SetReadDeadline(time.Now()) // the protocol's reader leaves
		for rest := make([]byte, 32<<10); ; {
			_ = tcp.SetReadDeadline(time.Now().Add(silence))
			if _, err := tcp.Read(rest); errors.Is(err, os.ErrDeadlineExceeded) {
				break
			} else if err != nil {
				return
			}
		}
		_ = tcp.SetReadDeadline(time.Time{})
	}
	if tcp.CloseWrite() == nil {
		_, _ = io.Copy(io.Discard, tcp)
	}
}

// hangUp ends the connection's context and reports whether it had not yet ended. Who
// writes to it gets an error soon: a client that has gone takes nothing, and may leave
// a writer waiting for ever.
func (c *conn) hangUp(why error) bool {
	if c.gone.Swap(true) {
		return false
	}
	_ = c.limitWrites()
	if c.end != nil {
		c.end(why)
	}
	return true
}

func (c *conn) limitWrites() error { return c.Conn.SetWriteDeadline(time.Now().Add(hungUpGrace)) }

// finish closes a connection that is not HTTP's any more: the protocols forget it
// on some of their errors. Where they have said goodbye to the client, it has a
// moment to take that.
func (c *conn) finish(ctx context.Context) {
	if !c.taken.Load() {
		return
	}
	t := time.NewTimer(hungUpGrace)
	defer t.Stop()
	select {
	case <-ctx.Done(): // closed, most of the time
	case <-t.C:
	}
	_ = c.Close()
}

// SetDeadline and SetWriteDeadline do not undo what hangUp has set.
func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetWriteDeadline is net.Conn's.
func (c *conn) SetWriteDeadline(t time.Time) error {
	if c.gone.Load() {
		return nil
	}
	err := c.Conn.SetWriteDeadline(t)
	if c.gone.Load() { // meanwhile
		return c.limitWrites()
	}
	return err
}

// watch notices that the client has gone also while nobody reads, because a
// process does not take what was sent to it. The caller ends it with stop.
func (c *conn) watch() (stop func()) {
	tcp, ok := c.Conn.(*net.TCPConn)
	if !ok {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if sys.AwaitHangUp(ctx, tcp) != nil {
			return
		}
		// First those who read may come to the end by themselves.
		t := time.NewTimer(hungUpGrace)
		defer t.Stop()
		select {
		case <-t.C:
			c.hangUp(errGone)
		case <-ctx.Done():
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}
}

// certificate is a TLS certificate that is read again when its file has changed.
type certificate struct {
	cert, key string // files

	mu   sync.Mutex
	of   time.Time        // +checklocks:mu; change of cert
	last *tls.Certificate // +checklocks:mu
}

// get is tls.Config's GetCertificate. While the files are being replaced, it is
// the one before.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	st, err := os.Stat(c.cert)
	if err == nil && c.last != nil && st.ModTime().Equal(c.of) {
		return c.last, nil
	}
	var pair tls.Certificate
	if err == nil {
		pair, err = tls.LoadX509KeyPair(c.cert, c.key)
	}
	switch {
	case err == nil:
		c.last, c.of = &pair, st.ModTime()
	case c.last == nil:
		return nil, fmt.Errorf("read tls_cert_file and tls_key_file: %w", err)
	}
	return c.last, nil
}
