package sys

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// ProcFiles counts the open descriptors of a process, and those of them that are
// sockets. It looks at links, and never at what they lead to, which might hang.
func ProcFiles(pid int) (files, sockets int, err error) {
	dir, err := os.Open(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return 0, 0, err
	}
	defer dir.Close()
	fd := int(dir.Fd())
	var target [8]byte
	for {
		names, err := dir.Readdirnames(256)
		for _, name := range names {
			files++
			n, err := unix.Readlinkat(fd, name, target[:])
			if err == nil && strings.HasPrefix(string(target[:n]), "socket:") {
				sockets++
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return files, sockets, nil
		case err != nil:
			return 0, 0, err
		}
	}
}

// OpenFilesLimit is the soft limit of a process on its open descriptors;
// limited is false when there is none.
func OpenFilesLimit(pid int) (soft uint64, limited bool, err error) {
	var l unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &l); err != nil {
		return 0, false, fmt.Errorf("limit of open files of process %d: %w", pid, err)
	}
	return l.Cur, l.Cur != unix.RLIM_INFINITY, nil
}
