package server

import (
	"os"
	"slices"
	"sync"
	"syscall"

	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/monitor"
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

// openStore takes over what systemd has passed, and the variables that say where it
// listens: they are not for the processes of containers.
func openStore() *Store {
	s := &Store{passed: sys.PassedFiles(monitor.MaxFiles), socket: os.Getenv("NOTIFY_SOCKET")}
	most := os.Getenv("FDSTORE") // how many may be kept; not set by old versions
	for _, v := range []string{"NOTIFY_SOCKET", "FDSTORE"} {
		_ = os.Unsetenv(v)
	}
	if s.socket == "" || most == "0" {
		return nil
	}
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
func (s *Store) tell(text string, f syscall.Conn) {
	err := sys.NotifyService(s.socket, text, f)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && !s.failed {
		klog.Background().Error(err, "Could not keep descriptors with systemd; a container would lose its output if this program and crid were killed at once")
	}
	s.failed = err != nil
}
