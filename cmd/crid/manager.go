package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"

	"k8s.io/klog/v2"
)

// What systemd is to crid, where it runs it as a service (sd_notify(3),
// sd_listen_fds(3)): it is told of crid's state, and keeps the CRI socket while crid
// is restarted or has crashed, so that whoever connects meanwhile waits instead of
// being refused.

// keptSocket is the name under which systemd keeps the CRI socket.
const keptSocket = "cri"

// firstPassed is the first descriptor that systemd passes.
const firstPassed = 3

// notify tells systemd about crid's state, such as "READY=1", with descriptors for it
// to keep. Without systemd it does nothing.
func notify(state string, fds ...int) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	if rest, ok := strings.CutPrefix(path, "@"); ok {
		path = "\x00" + rest // the abstract name space
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	defer conn.Close()
	var rights []byte
	if len(fds) > 0 {
		rights = syscall.UnixRights(fds...)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	// WriteMsgUnix is not for a connected socket of datagrams.
	var sent error
	err = raw.Write(func(fd uintptr) bool {
		sent = syscall.Sendmsg(int(fd), []byte(state), rights, nil, 0)
		return !errors.Is(sent, syscall.EAGAIN)
	})
	if err := errors.Join(err, sent); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}

// passedSocket is the socket of path that systemd has kept since an earlier crid served
// it; nil if there is none. It is good for one call: the descriptors and the variables
// that announce them are gone afterwards, since they are not for children.
//
// Preconditions: as for listen.
func passedSocket(ctx context.Context, path string) *net.UnixListener {
	n, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	ours := os.Getenv("LISTEN_PID") == strconv.Itoa(os.Getpid())
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for _, v := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(v)
	}
	var found *net.UnixListener
	for i := 0; ours && i < min(n, len(names)); i++ {
		syscall.CloseOnExec(firstPassed + i)
		f := os.NewFile(uintptr(firstPassed+i), names[i])
		if l, err := net.FileListener(f); err == nil {
			unix, ok := l.(*net.UnixListener)
			if ok && found == nil && names[i] == keptSocket && l.Addr().String() == path && tryConnect(ctx, path) == nil {
				found = unix
			} else {
				_ = l.Close()
			}
		}
		_ = f.Close()
	}
	return found
}

// keepSocket has systemd keep l in place of what it kept before. The socket's file stays
// when crid ends: systemd goes on listening there if it starts crid again, and otherwise
// the next crid replaces it.
func keepSocket(ctx context.Context, l *net.UnixListener) {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return
	}
	err := notify("FDSTOREREMOVE=1\nFDNAME=" + keptSocket)
	if err == nil {
		err = sendSocket(l)
	}
	if err != nil {
		klog.FromContext(ctx).Error(err, "Requests that come while crid is restarted will be refused, not held back")
		return
	}
	l.SetUnlinkOnClose(false)
}

func sendSocket(l *net.UnixListener) error {
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Control(func(fd uintptr) { sent = notify("FDSTORE=1\nFDNAME="+keptSocket, int(fd)) })
	return errors.Join(err, sent)
}
