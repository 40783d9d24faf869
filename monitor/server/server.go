// Package server is the monitor's half of package monitor: it runs containers
// with libcontainer and is linked into crid-monitor only.
//
// A request's way: conn.go reads it, the table of handlers in it names the
// method of Server, which is in the file of that name (create.go, exec.go,
// delete.go, …); runtime.go alone talks to libcontainer, reap.go alone waits.
//
// What runs is in table.go. For each container there is one goroutine that waits
// for its first process (watch) and one for each output stream; all of them
// wait in the runtime's poller and hold neither a thread nor a buffer.
//
// Locks, in the order in which they are taken: Server.ops (one per container,
// held across everything slow), container.gate, then one of the mutexes, each of
// which is held for a moment and never with another.
package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/keylock"
	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/monitor"
	"github.com/cridproject/crid/monitor/server/filter"
)

// Options of a Server.
type Options struct {
	Socket   string // path of the unix socket; its folder is made if needed
	StateDir string // libcontainer's state, the exit journal, mount points of rootfs
	Build    string // version of the program, for people
	Log      klog.Logger
	Store    *Store // of descriptors that outlive this program; may be nil

	// AttachStall is how long an attached client may read nothing before it is
	// detached; 0 means 10 s.
	AttachStall time.Duration

	MakeLimit time.Duration // for the first process of a container to be ready to start; 0 means 2 minutes
}

// Server runs the containers of a node.
type Server struct {
	o        Options
	listener *net.UnixListener
	lock     *os.File // its flock keeps a second monitor away from StateDir
	runtime  *ociRuntime
	reaper   *reaper
	journal  *journal
	table    *table
	ops      keylock.Map[string] // by container or sandbox
	making   sync.Map            // container → *guard, while libcontainer makes it

	logs  logCounts
	execs atomic.Int64 // that run

	stop chan struct{} // closed by a Shutdown that was granted
	once sync.Once     // closes stop

	mu    sync.Mutex
	conns map[*conn]struct{} // +checklocks:mu
}

// New prepares the folders, makes this process the subreaper and listens; the
// socket answers once Serve runs. A second Server for the same StateDir, in
// whatever process, is refused with kind Exists.
func New(o Options) (_ *Server, err error) {
	s := &Server{o: o, table: newTable(), reaper: newReaper(), conns: map[*conn]struct{}{}, stop: make(chan struct{})}
	for _, dir := range []string{o.StateDir, s.dir("runc"), s.dir("rootfs")} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, fmt.Errorf("make state folder: %w", err)
		}
	}
	if s.lock, err = lockState(s.dir("lock")); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = s.lock.Close()
		}
	}()
	if s.journal, err = openJournal(s.dir("journal")); s.journal == nil || s.journal.entries == nil {
		return nil, err
	} else if err != nil {
		o.Log.Error(err, "Lost exits of containers: the journal is damaged")
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become subreaper: %w", err)
	}
	routeLogrus(o.Log)
	s.runtime = &ociRuntime{
		root: s.dir("runc"),
		// A session keyring for each container counts against its user's
		// quota, which is large for root and 200 for anyone else.
		noNewKeyring: inUserNamespace(),
		limits:       readLimits(o.Log),
		filters:      filter.Cache{Command: recordCommand},
		reaper:       s.reaper,
		slots:        make(chan struct{}, max(4, 2*runtime.NumCPU())),
	}
	s.listener, err = listen(o.Socket)
	return s, err
}

func (s *Server) dir(name string) string { return filepath.Join(s.o.StateDir, name) }

// lockState takes the lock of a state folder for the life of the process.
func lockState(path string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(context.Background(), sys.LockGrace)
	defer cancel()
	f, err := sys.LockFile(ctx, path)
	if errors.Is(err, sys.ErrLocked) {
		return nil, errkind.Errorf(errkind.Exists, "another monitor uses the state folder: %w", err)
	}
	return f, err
}

// listen makes the socket for root alone. It gets its name only when it has its
// mode, and takes the name from a socket that a dead monitor left.
func listen(path string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, fmt.Errorf("make folder of socket: %w", err)
	}
	temp := fmt.Sprintf("%s.%d", path, os.Getpid())
	_ = os.Remove(temp)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false) // it would be the temporary name
	if err = os.Chmod(temp, 0o600); err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		_ = l.Close()
		_ = os.Remove(temp)
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

// Serve answers requests until ctx ends or a Shutdown is granted. Containers
// live on; the next monitor adopts them.
func (s *Server) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(klog.NewContext(ctx, s.o.Log))
	var wg sync.WaitGroup
	wg.Go(func() { s.reaper.run(ctx) })
	defer wg.Wait()
	defer cancel()
	defer s.closeAll()
	go func() {
		select {
		case <-ctx.Done():
		case <-s.stop:
		}
		_ = s.listener.Close()
	}()
	s.o.Log.Info("Serving", "path", s.o.Socket, "pid", os.Getpid(), "build", s.o.Build)
	for delay := time.Millisecond; ; {
		nc, err := s.listener.AcceptUnix()
		switch {
		case errors.Is(err, net.ErrClosed):
			s.o.Log.Info("Stopped serving", "path", s.o.Socket)
			return nil
		case err != nil:
			// Too many open files, for one. Others may close theirs.
			s.o.Log.Error(err, "Could not accept a connection, will try again")
			time.Sleep(delay) //nolint:forbidigo // a back-off; closing the listener ends the next try
			delay = min(2*delay, time.Second)
			continue
		}
		delay = time.Millisecond
		c := newConn(s, nc)
		s.mu.Lock()
		s.conns[c] = struct{}{}
		s.mu.Unlock()
		wg.Go(func() {
			defer s.forgetConn(c)
			c.serve(ctx)
		})
	}
}

func (s *Server) forgetConn(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// closeAll ends all connections and lets go of the socket and the state folder.
func (s *Server) closeAll() {
	s.mu.Lock()
	for c := range s.conns {
		c.close()
	}
	s.mu.Unlock()
	if err := os.Remove(s.o.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.o.Log.Info("Could not remove the socket", "path", s.o.Socket, "err", err)
	}
	_ = s.lock.Close()
}

// publish sends an exit on every connection.
func (s *Server) publish(e monitor.Exit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.sendExit(e)
	}
}
