package server

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cridproject/crid/internal/sys"
)

// consoleSocket is a pair of sockets over which libcontainer's init sends the
// master of the pty that it makes inside the container.
type consoleSocket struct {
	ours  *net.UnixConn
	child *os.File
}

func newConsoleSocket() (*consoleSocket, error) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make terminal: %w", err)
	}
	child := os.NewFile(uintptr(p[1]), "console")
	f := os.NewFile(uintptr(p[0]), "console")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		_ = child.Close()
		return nil, fmt.Errorf("make terminal: %w", err)
	}
	return &consoleSocket{c.(*net.UnixConn), child}, nil
}

func (s *consoleSocket) close() {
	_ = s.ours.Close()
	_ = s.child.Close()
}

// master is the pty's master, once init has started. When there was more than
// one attempt to start, it is the last one's.
func (s *consoleSocket) master() (*os.File, error) {
	// With this, the end of file comes after what init has sent.
	_ = s.child.Close()
	r := sys.NewMsgReader(s.ours)
	defer r.Close()
	for buf := make([]byte, 256); ; {
		if _, err := r.Read(buf); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("make terminal: %w", err)
		}
	}
	files, err := r.Take(r.Pending())
	if err != nil || len(files) == 0 {
		return nil, errors.New("make terminal: the container's init sent none")
	}
	for _, f := range files[:len(files)-1] {
		_ = f.Close()
	}
	return pollable(files[len(files)-1])
}

// resize sets a terminal's size. One whose users are gone has none to set.
func resize(console *os.File, rows, columns uint16) error {
	raw, err := console.SyscallConn()
	if err != nil {
		return err
	}
	var ioctlErr error
	err = raw.Control(func(fd uintptr) {
		ioctlErr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
	})
	if isClosed(err) {
		return nil
	}
	if err := errors.Join(err, ioctlErr); err != nil {
		return fmt.Errorf("resize terminal: %w", err)
	}
	return nil
}
