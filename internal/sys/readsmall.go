package sys

import (
	"io/fs"

	"golang.org/x/sys/unix"
)

// ReadSmall reads a file of /proc or of a cgroup into buf, which grows if it must.
// It is os.ReadFile at half the cost: such files are pollable, and os would make each
// of them known to the runtime's poller.
func ReadSmall(path string, buf []byte) ([]byte, error) { return readSmall(path, buf, false) }

// ReadCgroupFile is ReadSmall for the figures of a cgroup, which the kernel hands out
// in one piece: less than was asked for is all.
func ReadCgroupFile(path string, buf []byte) ([]byte, error) { return readSmall(path, buf, true) }

func readSmall(path string, buf []byte, onePiece bool) ([]byte, error) {
	fd, err := openRetry(path, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	if cap(buf) == 0 {
		buf = make([]byte, 0, 4096)
	}
	buf = buf[:0]
	for {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		room := cap(buf) - len(buf)
		n, err := unix.Read(fd, buf[len(buf):cap(buf)])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return nil, &fs.PathError{Op: "read", Path: path, Err: err}
		case n == 0:
			return buf, nil
		default:
			buf = buf[:len(buf)+n]
			if onePiece && n < room {
				return buf, nil
			}
		}
	}
}

func openRetry(path string, flags int) (int, error) {
	for {
		fd, err := unix.Open(path, flags, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}
