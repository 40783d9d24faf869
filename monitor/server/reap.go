package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// reaper knows which children of this process are whose.
//
// Ours are the processes in ours: a watcher waits for exactly that pid, by its
// pidfd. While an operation of libcontainer runs, there are helpers that
// libcontainer itself waits for and that nobody else may reap. The rest are
// orphans that containers left to us as their subreaper. They are peeked at
// and reaped only when they can be no operation's helper: an operation that
// began after the zombie was seen cannot have made it.
type reaper struct {
	mu   sync.Mutex
	ours map[int]struct{}    // +checklocks:mu
	ops  map[uint64]struct{} // +checklocks:mu; operations of libcontainer that run
	next uint64              // +checklocks:mu; number of the next operation
	seen map[zombie]uint64   // +checklocks:mu; nobody's zombies, and next at that time

	again chan struct{} // an operation has ended while zombies wait for it
}

// zombie names a process even when its pid is used again.
type zombie struct {
	pid   int
	start uint64
}

func newReaper() *reaper {
	return &reaper{
		ours:  map[int]struct{}{},
		ops:   map[uint64]struct{}{},
		seen:  map[zombie]uint64{},
		again: make(chan struct{}, 1),
	}
}

// begin must be called before anything that may fork, and end after the last
// process that it made is gone or is ours.
func (r *reaper) begin() (end func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.next
	r.next++
	r.ops[n] = struct{}{}
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.ops, n)
		if len(r.seen) > 0 {
			select {
			case r.again <- struct{}{}:
			default:
			}
		}
	}
}

// add says that a watcher will wait for pid.
func (r *reaper) add(pid int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ours[pid] = struct{}{}
}

func (r *reaper) remove(pid int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.ours, pid)
}

// wait waits for a child of ours that has ended, so that it does not block, and
// returns its exit code, or 128 plus the signal that ended it. It is not waited
// for through libcontainer, whose objects would have to be kept until then: they
// are most of what a container costs in memory.
func (r *reaper) wait(pid int) (int, error) {
	defer r.remove(pid)
	var ws syscall.WaitStatus
	for {
		_, err := syscall.Wait4(pid, &ws, 0, nil) //nolint:forbidigo // of one process that is ours
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return -1, fmt.Errorf("wait for process %d: %w", pid, err)
		default:
			return statusCode(ws), nil
		}
	}
}

func statusCode(ws syscall.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// untilExit waits until the process has ended. It blocks no thread. Closing the
// pidfd ends it with an error.
func untilExit(pidfd *os.File) error {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var pollErr error
	err = raw.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			_, pollErr = unix.Poll(fds, 0)
			if !errors.Is(pollErr, unix.EINTR) {
				return pollErr != nil || fds[0].Revents != 0
			}
		}
	})
	return errors.Join(err, pollErr)
}

// run reaps orphans until ctx ends.
func (r *reaper) run(ctx context.Context) {
	died := make(chan os.Signal, 1)
	signal.Notify(died, unix.SIGCHLD)
	defer signal.Stop(died)
	// Exits come in bursts, three for each start of a container alone.
	const gap = 20 * time.Millisecond
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-died:
		case <-r.again:
		}
		timer.Reset(gap)
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		r.scan(ctx)
	}
}

// scan reaps what is nobody's.
func (r *reaper) scan(ctx context.Context) {
	if pid, err := peek(unix.P_ALL, 0); err != nil || pid == 0 {
		r.mu.Lock()
		clear(r.seen)
		r.mu.Unlock()
		return
	}
	found := map[zombie]struct{}{}
	for _, pid := range ownChildren() {
		if r.isOurs(pid) {
			continue
		}
		if got, err := peek(unix.P_PID, pid); err != nil || got == 0 {
			continue
		}
		st, err := readStat(pid)
		if err != nil {
			continue
		}
		z := zombie{pid, st.start}
		found[z] = struct{}{}
		if r.isOrphan(z) {
			var info siginfo
			_ = waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOHANG)
			klog.FromContext(ctx).V(4).Info("Reaped orphan", "pid", pid)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for z := range r.seen {
		if _, ok := found[z]; !ok {
			delete(r.seen, z)
		}
	}
}

func (r *reaper) isOurs(pid int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.ours[pid]
	return ok
}

// isOrphan reports whether no running operation can have made the zombie. If
// one can, it remembers the zombie for the next scan.
func (r *reaper) isOrphan(z zombie) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.ours[z.pid]; ok {
		return false // became ours since
	}
	seen, ok := r.seen[z]
	if !ok {
		seen = r.next
	}
	for op := range r.ops {
		if op < seen {
			r.seen[z] = seen
			return false
		}
	}
	delete(r.seen, z)
	return true
}

// siginfo is siginfo_t of SIGCHLD on 64-bit Linux; x/sys/unix leaves these
// fields unnamed.
type siginfo struct {
	signo, errno, code, _ int32
	pid                   int32
	uid                   uint32
	status                int32
	_                     [128 - 7*4]byte
}

// peek is the pid of a child that has ended and can be waited for, 0 if none.
func peek(idType, id int) (int, error) {
	var info siginfo
	err := waitid(idType, id, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT)
	return int(info.pid), err
}

func waitid(idType, id int, info *siginfo, options int) error {
	for {
		err := unix.Waitid(idType, id, (*unix.Siginfo)(unsafe.Pointer(info)), options, nil)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
