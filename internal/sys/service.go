package sys

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What systemd is to the programs that it runs as services: it is told of their state,
// and keeps descriptors for them while they are down.

const (
	firstPassed   = 3           // descriptor
	notifyTimeout = time.Second // for one message
)

// PassedCount is how many descriptors, from 3 on, systemd has passed to this program; 0
// if they are more than most.
func PassedCount(most int) int {
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || n < 0 || n > most || os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return 0
	}
	return n
}

// PassedFiles are the descriptors that systemd has passed to this program, none if they
// are more than most, by the names under which it keeps them (sd_listen_fds(3)); of
// several with one name the first. They are the caller's, and do not go to children.
//
// It is good for one call at the start of a program: it unsets the variables that
// announce the descriptors, which are not for children either.
func PassedFiles(most int) map[string]*os.File {
	n := PassedCount(most)
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for _, v := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(v)
	}
	passed := map[string]*os.File{}
	for i := range n {
		unix.CloseOnExec(firstPassed + i)
		name := fmt.Sprint("unnamed ", i)
		if i < len(names) {
			name = names[i]
		}
		f := os.NewFile(uintptr(firstPassed+i), name)
		if passed[name] != nil {
			_ = f.Close()
			continue
		}
		passed[name] = f
	}
	return passed
}

// NotifyService sends text, such as "READY=1", to the service manager that listens on
// socket (sd_notify(3)), the value of NOTIFY_SOCKET, with a descriptor for it to keep
// unless keep is nil. It waits for a second at most.
func NotifyService(socket, text string, keep syscall.Conn) error {
	if err := notifyService(socket, text, keep); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}

// notifyService does not use package net, whose datagram sockets take descriptors only
// while they are not connected.
func notifyService(socket, text string, keep syscall.Conn) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	limit := unix.NsecToTimeval(notifyTimeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit); err != nil {
		return err
	}
	send := func(rights []byte) error {
		return unix.Sendmsg(fd, []byte(text), rights, &unix.SockaddrUnix{Name: socket}, unix.MSG_NOSIGNAL)
	}
	if keep == nil {
		return send(nil)
	}
	return control(keep, func(kept int) error { return send(unix.UnixRights(kept)) })
}
