package sys

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// AwaitHangUp waits until the peer of c has ended its side, or the connection has
// broken, also while nobody reads what was sent before that. It blocks no thread.
// When ctx ends first, that is the error. c must not be closed before it returns.
func AwaitHangUp(ctx context.Context, c *net.TCPConn) error {
	// The runtime's poller does not tell this apart from data. An epoll of its own
	// does, and can be polled itself.
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("watch connection: %w", err)
	}
	if err := unix.SetNonblock(epoll, true); err != nil {
		return errors.Join(fmt.Errorf("watch connection: %w", err), unix.Close(epoll))
	}
	f := os.NewFile(uintptr(epoll), "epoll")
	defer f.Close()
	conn, err := c.SyscallConn()
	if err != nil {
		return fmt.Errorf("watch connection: %w", err)
	}
	var addErr error
	err = conn.Control(func(fd uintptr) {
		addErr = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, int(fd), &unix.EpollEvent{Events: unix.EPOLLRDHUP, Fd: int32(fd)})
	})
	if err := errors.Join(err, addErr); err != nil {
		return fmt.Errorf("watch connection: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })()
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("watch connection: %w", err)
	}
	var waitErr error
	err = raw.Read(func(fd uintptr) bool {
		var events [1]unix.EpollEvent
		n, err := unix.EpollWait(int(fd), events[:], 0)
		if err != nil && !errors.Is(err, unix.EINTR) {
			waitErr = fmt.Errorf("watch connection: %w", err)
		}
		return n > 0 || waitErr != nil
	})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return context.Cause(ctx)
	}
	return errors.Join(err, waitErr)
}
