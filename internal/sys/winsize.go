package sys

import (
	"os"

	"golang.org/x/sys/unix"
)

// WindowSize is the size of the terminal that f is, in characters; 0 where the
// terminal does not know. ok is false when f is no terminal.
func WindowSize(f *os.File) (rows, columns int, ok bool) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, 0, false
	}
	err = raw.Control(func(fd uintptr) {
		if w, err := unix.IoctlGetWinsize(int(fd), unix.TIOCGWINSZ); err == nil {
			rows, columns, ok = int(w.Row), int(w.Col), true
		}
	})
	return rows, columns, ok && err == nil
}
