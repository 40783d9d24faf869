package main

import (
	"context"
	"net"
	"os"
	"syscall"

	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/sys"
)

// What systemd is to crid, where it runs it as a service (sd_notify(3),
// sd_listen_fds(3)): it is told of crid's state, and keeps the CRI socket while crid
// is restarted or has crashed, so that whoever connects meanwhile waits instead of
// being refused.

// keptSocket is the name under which systemd keeps the CRI socket.
const keptSocket = "cri"

// mostPassed is more descriptors than systemd keeps for crid, or an operator passes.
const mostPassed = 64

// notify tells systemd about crid's state, such as "READY=1", with a descriptor for it
// to keep unless keep is nil. Without systemd it does nothing.
func notify(state string, keep syscall.Conn) error {
	socket := os.Getenv("NOTIFY_SOCKET")
	if socket == "" {
		return nil
	}
	return sys.NotifyService(socket, state, keep)
}

// passedSocket is the socket of path that systemd has kept since an earlier crid served
// it; nil if there is none. It is good for one call: the descriptors and the variables
// that announce them are gone afterwards, since they are not for children.
//
// Preconditions: as for listen.
func passedSocket(ctx context.Context, path string) *net.UnixListener {
	var found *net.UnixListener
	for name, f := range sys.PassedFiles(mostPassed) {
		if l, err := net.FileListener(f); err == nil {
			unix, ok := l.(*net.UnixListener)
			if ok && name == keptSocket && l.Addr().String() == path && tryConnect(ctx, path) == nil {
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
	err := notify("FDSTOREREMOVE=1\nFDNAME="+keptSocket, nil)
	if err == nil {
		err = notify("FDSTORE=1\nFDNAME="+keptSocket, l)
	}
	if err != nil {
		klog.FromContext(ctx).Error(err, "Requests that come while crid is restarted will be refused, not held back")
		return
	}
	l.SetUnlinkOnClose(false)
}
