package server

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/cridproject/crid/monitor"
)

// Variables by which systemd tells a service of descriptors that it keeps for it.
const (
	notifyEnv   = "NOTIFY_SOCKET"
	storeMaxEnv = "FDSTORE" // how many may be kept; not set by old versions
	listenPID   = "LISTEN_PID"
	listenFDs   = "LISTEN_FDS"
	listenNames = "LISTEN_FDNAMES"
)

const (
	firstPassed  = 3           // descriptor
	storeTimeout = time.Second // for one message
)

// Store is systemd's descriptor store, where it runs this program as a service
// with FileDescriptorStoreMax. Copies of the containers' pipes and terminals are
// kept there: when this program and crid die at the same moment, nobody else has
// the other ends, and the next write would end a container by SIGPIPE.
//
// Nil is a store that keeps nothing.
type Store struct {
	socket string

	mu     sync.Mutex
	passed map[string]*os.File // +checklocks:mu; kept since before this program started
	failed bool                // +checklocks:mu; which has been said
}

// passedCount is how many descriptors systemd has passed to this program.
func passedCount() int {
	if os.Getenv(listenPID) != strconv.Itoa(os.Getpid()) {
		return 0
	}
	n, err := strconv.Atoi(os.Getenv(listenFDs))
	if err != nil || n < 0 || n > monitor.MaxFiles {
		return 0
	}
	return n
}

// openStore takes over what systemd has passed, and the variables that say so:
// they are not for the processes of containers.
func openStore() *Store {
	s := &Store{passed: map[string]*os.File{}}
	names := strings.Split(os.Getenv(listenNames), ":")
	for i := range passedCount() {
		unix.CloseOnExec(firstPassed + i)
		name := fmt.Sprint("unnamed ", i)
		if i < len(names) {
			name = names[i]
		}
		f := os.NewFile(uintptr(firstPassed+i), name)
		if s.passed[name] != nil {
			_ = f.Close()
			continue
		}
		s.passed[name] = f
	}
	path, most := os.Getenv(notifyEnv), os.Getenv(storeMaxEnv)
	for _, v := range []string{notifyEnv, storeMaxEnv, listenPID, listenFDs, listenNames} {
		_ = os.Unsetenv(v)
	}
	if path == "" || most == "0" {
		return nil
	}
	s.socket = path
	return s
}

func storeName(id, file string) string { return id + "." + file }

// put keeps copies of those of a container's files that are in keep. When that
// fails, they are not kept.
func (s *Store) put(id string, keep, names []string, files []*os.File) {
	if s == nil {
		return
	}
	for i, f := range files {
		if slices.Contains(keep, names[i]) {
			// Not watched by systemd: what is in a pipe is of use after its last writer has gone.
			s.tell("FDSTORE=1\nFDPOLL=0\nFDNAME="+storeName(id, names[i]), f)
		}
	}
}

// remove forgets the files of a container that are named.
func (s *Store) remove(id string, names ...string) {
	if s == nil {
		return
	}
	for _, name := range names {
		if f := s.take(id, name); f != nil {
			_ = f.Close()
		}
		s.tell("FDSTOREREMOVE=1\nFDNAME="+storeName(id, name), nil)
	}
}

// kept names what the store keeps of a container. A stdin that is to be closed
// must have no other holder than this program, once a client has come for it.
func (o *stdio) kept() []string {
	switch {
	case o.tty:
		return []string{monitor.FDConsole}
	case o.reads && !o.once:
		return []string{monitor.FDStdout, monitor.FDStderr, monitor.FDStdin}
	}
	return []string{monitor.FDStdout, monitor.FDStderr}
}

// allFiles are those of a container that may be kept.
var allFiles = []string{monitor.FDStdin, monitor.FDStdout, monitor.FDStderr, monitor.FDConsole}

// take is a file that was kept for an earlier monitor, nil if there is none. It
// goes on being kept.
func (s *Store) take(id, name string) *os.File {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.passed[storeName(id, name)]
	delete(s.passed, storeName(id, name))
	return f
}

// complete fills in what h lacks of an adopted container's files.
func (s *Store) complete(id string, h *monitor.Hold) {
	for name, to := range map[string]**os.File{
		monitor.FDStdin: &h.Stdin, monitor.FDStdout: &h.Stdout, monitor.FDStderr: &h.Stderr, monitor.FDConsole: &h.Console,
	} {
		f := s.take(id, name)
		if *to == nil {
			*to = f
		} else if f != nil {
			_ = f.Close()
		}
	}
}

// tell sends systemd one message, with f unless it is nil.
func (s *Store) tell(text string, f *os.File) {
	err := s.send(text, f)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && !s.failed {
		klog.Background().Error(err, "Could not keep descriptors with systemd; a container would lose its output if this program and crid were killed at once")
	}
	s.failed = err != nil
}

// send does not use package net, whose datagram sockets take descriptors only
// while they are not connected.
func (s *Store) send(text string, f *os.File) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	limit := unix.NsecToTimeval(storeTimeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit); err != nil {
		return err
	}
	to := &unix.SockaddrUnix{Name: s.socket}
	if f == nil {
		return unix.Sendmsg(fd, []byte(text), nil, to, unix.MSG_NOSIGNAL)
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	err = raw.Control(func(kept uintptr) {
		sendErr = unix.Sendmsg(fd, []byte(text), unix.UnixRights(int(kept)), to, unix.MSG_NOSIGNAL)
	})
	return errors.Join(err, sendErr)
}
