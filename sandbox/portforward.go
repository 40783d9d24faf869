package sandbox

import (
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/sys"
)

const (
	// dialTimeout is for a connection within the pod: only one whose backlog is
	// full takes any time.
	dialTimeout = 10 * time.Second
	// halfCloseGrace is how long a client that sends nothing is waited for when
	// the pod has ended its side.
	halfCloseGrace = 5 * time.Second
)

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
	conn, err := dialPod(ctx, rec.NetNS, port)
	if err != nil {
		return fmt.Errorf("forward port %d of sandbox %s: %w", port, s.id.Short(), err)
	}
	defer conn.Close()
	began := time.Now()
	up, down := forward(ctx, conn, stream)
	log.V(4).Info("Forwarded a connection", "duration", time.Since(began), "sent", up, "received", down)
	return nil
}

// dialPod connects within the network namespace at path; "" is the node's. The
// socket belongs to the namespace and may be used from anywhere.
func dialPod(ctx context.Context, path string, port uint16) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var conn *net.TCPConn
	dial := func() error {
		var all []string
		for _, host := range []string{"127.0.0.1", "::1"} {
			var d net.Dialer
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
func forward(ctx context.Context, conn *net.TCPConn, stream io.ReadWriteCloser) (up, down int64) {
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	var sent, received atomic.Int64
	ended := make(chan struct{})
	// Ends with the stream at the latest, which is its giver's to close.
	go func() {
		_, _ = copyTo(counted{conn, &sent}, stream)
		_ = conn.CloseWrite()
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
