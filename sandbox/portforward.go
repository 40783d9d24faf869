package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/sys"
)

// halfCloseGrace is how long a client that sends nothing is waited for when the pod
// has ended its side.
const halfCloseGrace = 5 * time.Second

// MayForward says why PortForward to the sandbox could not be done now, nil if it
// could, and the whole ID.
func (m *Manager) MayForward(id string) (string, error) {
	s, err := m.findSandbox(id)
	if err != nil {
		return "", err
	}
	return string(s.id), s.mayForward()
}

func (s *sandbox) mayForward() error {
	if st := *s.state.Load(); st != SandboxReady {
		return errkind.Errorf(errkind.BadState, "forward a port of sandbox %s: it is %s, not ready", s.id.Short(), st.public())
	}
	return nil
}

// PortForward connects to port on the loopback interface of a pod, first by IPv4,
// then by IPv6, and copies both ways until both have ended. Each way ends by
// itself: stream.Close ends the one to the client and not the other.
//
// A server that does not read for Options.ForwardStall what the client has sent gets
// a reset, and the client an end: what waits for it would hold up the client's other
// connections, which come over the same one.
//
// An error means that there was no connection. One that breaks later just ends:
// that is between the client and its server, and clients would take an error for
// one of all their connections. ctx ends when the client has gone.
func (m *Manager) PortForward(ctx context.Context, id string, port uint16, stream io.ReadWriteCloser) error {
	s, err := m.findSandbox(id)
	if err != nil {
		return err
	}
	if err := s.mayForward(); err != nil {
		return err
	}
	log := klog.FromContext(ctx).WithValues("sandbox", s.id, "pod", podRef(&s.config), "port", port)
	rec := s.record()
	conn, err := dialPod(ctx, rec.NetNS, port, m.o.ForwardDial)
	if err != nil {
		return fmt.Errorf("forward port %d of sandbox %s: %w", port, s.id.Short(), err)
	}
	defer conn.Close()
	began := time.Now()
	up, down := forward(ctx, conn, stream, m.o.ForwardStall)
	log.V(4).Info("Forwarded a connection", "duration", time.Since(began), "sent", up, "received", down)
	return nil
}

// dialPod connects within the network namespace at path; "" is the node's. Each address
// has limit to take the connection. The socket belongs to the namespace and may be used
// from anywhere.
func dialPod(ctx context.Context, path string, port uint16, limit time.Duration) (*net.TCPConn, error) {
	var conn *net.TCPConn
	dial := func() error {
		var all []string
		for _, host := range []string{"127.0.0.1", "::1"} {
			d := net.Dialer{Timeout: limit}
			// With an address and no name, this goroutine makes the socket.
			c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
			if err == nil {
				conn = c.(*net.TCPConn)
				return nil
			}
			all = append(all, err.Error())
		}
		return errkind.Errorf(errkind.Unavailable, "nothing in the pod accepts connections there: %s", strings.Join(all, "; "))
	}
	var err error
	if path == "" {
		err = dial()
	} else {
		err = sys.DoInNetNS(path, dial)
	}
	return conn, err
}

// forward copies both ways and returns the bytes sent to and received from conn.
func forward(ctx context.Context, conn *net.TCPConn, stream io.ReadWriteCloser, stall time.Duration) (up, down int64) {
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	var sent, received atomic.Int64
	ended := make(chan struct{})
	// Ends with the stream at the latest, which is its giver's to close.
	go func() {
		_, err := copyTo(counted{impatient{conn, stall}, &sent}, stream)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			// A reset and not an end: the server must not take what it has got for all.
			_ = conn.SetLinger(0)
			_ = conn.Close()
		} else {
			_ = conn.CloseWrite()
		}
		close(ended)
		// What nobody takes any more must not be in the way of other streams.
		_, _ = io.Copy(io.Discard, stream)
	}()
	_, _ = copyTo(counted{stream, &received}, conn)
	_ = stream.Close()
	tick := time.NewTicker(halfCloseGrace)
	defer tick.Stop()
	for before := int64(-1); ; {
		select {
		case <-ended:
			return sent.Load(), received.Load()
		case <-ctx.Done():
			return sent.Load(), received.Load()
		case <-tick.C:
			if before == sent.Load() {
				return before, received.Load()
			}
			before = sent.Load()
		}
	}
}

// impatient writes to a connection as long as the other side takes anything at all.
type impatient struct {
	*net.TCPConn
	stall time.Duration
}

func (c impatient) Write(p []byte) (sum int, err error) {
	for {
		if err := c.SetWriteDeadline(time.Now().Add(c.stall)); err != nil {
			return sum, err
		}
		n, err := c.TCPConn.Write(p[sum:])
		sum += n
		if n == 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return sum, err
		}
	}
}

// counted counts what is written.
type counted struct {
	io.Writer
	n *atomic.Int64
}

func (c counted) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.n.Add(int64(n))
	return n, err
}
