package sys_test

import (
	"context"
	"errors"
	"net"
	"testing"

	"github.com/cridproject/crid/internal/sys"
)

// tcpPair is the two ends of a connection.
func tcpPair(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	d, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = c.Close(), d.Close() })
	return c.(*net.TCPConn), d.(*net.TCPConn)
}

func TestAwaitHangUp(t *testing.T) {
	for name, leave := range map[string]func(*net.TCPConn){
		"end":       func(c *net.TCPConn) { _ = c.Close() },
		"half":      func(c *net.TCPConn) { _ = c.CloseWrite() },
		"reset":     func(c *net.TCPConn) { _, _ = c.SetLinger(0), c.Close() },
		"with data": func(c *net.TCPConn) { _, _ = c.Write([]byte("unread")); _ = c.Close() },
	} {
		ours, theirs := tcpPair(t)
		done := make(chan error, 1)
		go func() { done <- sys.AwaitHangUp(t.Context(), ours) }()
		if _, err := theirs.Write([]byte("data is no end")); err != nil {
			t.Fatal(err)
		}
		leave(theirs)
		if err := <-done; err != nil {
			t.Errorf("%s: AwaitHangUp = %v, want nil", name, err)
		}
	}
	ours, _ := tcpPair(t)
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if err := sys.AwaitHangUp(ctx, ours); !errors.Is(err, why) {
		t.Errorf("AwaitHangUp = %v, want the cause of the context's end", err)
	}
}
