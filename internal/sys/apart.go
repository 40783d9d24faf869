package sys

import (
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// GoApart is go f(), on a thread that ends with f and holds none of the files
// that this process has open but the standard ones.
//
// It is for system calls that may never return, such as on a file system whose
// server is gone. A thread in one outlives even a SIGKILL of the process, and
// with it all files that it shares with the others: locks and sockets, without
// which no successor can start. f may open files, but they are not those of the
// rest of the process, and must be closed before it returns. It must not use
// those that the rest has open.
func GoApart(f func()) { go apart(f) }

func apart(f func()) {
	runtime.LockOSThread() // never unlocked: the thread goes with the goroutine
	if unix.Gettid() == unix.Getpid() {
		// The first thread does not end, and its files are those that /proc shows
		// of the process. Keep it busy, so that f lands on another.
		defer runtime.UnlockOSThread()
		done := make(chan struct{})
		go func() {
			defer close(done)
			apart(f)
		}()
		<-done
		return
	}
	letGo()
	f()
}

// RealPath is an absolute path with all links followed. What is there has
// answered: a network file system is alive.
func RealPath(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	link := "/proc/thread-self/fd/" + strconv.Itoa(fd)
	real := make([]byte, unix.PathMax)
	n, err := unix.Readlink(link, real)
	if err == nil && (n == len(real) || n == 0 || real[0] != '/') {
		err = unix.ENAMETOOLONG
	}
	if err != nil {
		return "", &fs.PathError{Op: "find the path of", Path: path, Err: err}
	}
	return string(real[:n]), nil
}

// letGo closes the thread's copy of all files but those that Go's scheduler uses
// on any thread. Where the kernel cannot do that, before Linux 5.9, it does nothing.
func letGo() {
	keep := pollerFiles()
	if keep == nil || unix.Unshare(unix.CLONE_FILES) != nil {
		return
	}
	first := uint(3)
	for _, fd := range append(keep, math.MaxInt32) {
		if last := uint(fd) - 1; first <= last {
			_ = unix.CloseRange(first, last, 0)
		}
		first = uint(fd) + 1
	}
}

// pollerFiles is the files of Go's poller, in order; nil when they are not known.
// They stay the same as long as the process lives.
var pollerFiles = sync.OnceValue(func() []int {
	// With a file that can be waited for, there is a poller.
	r, w, err := os.Pipe()
	if err != nil {
		return nil
	}
	defer r.Close()
	defer w.Close()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil
	}
	var found []int
	polls := false
	for _, e := range entries {
		to, _ := os.Readlink(filepath.Join("/proc/self/fd", e.Name()))
		fd, err := strconv.Atoi(e.Name())
		if err != nil || !strings.HasPrefix(to, "anon_inode:[event") { // eventpoll and eventfd
			continue
		}
		found = append(found, fd)
		polls = polls || strings.Contains(to, "eventpoll")
	}
	if !polls {
		return nil
	}
	slices.Sort(found)
	return found
})
