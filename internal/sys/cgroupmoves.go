package sys

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// CgroupMoves keeps the kernel ready to move processes between cgroups.
//
// A process is moved by a write to cgroup.procs, which takes the kernel's lock
// cgroup_threadgroup_rwsem. The first to take it waits for an RCU grace period, 5 to
// 15 ms on a quiet machine, half of what making a container takes. For as long as a
// grace period after the last write the lock stays cheap for writers. So while a move
// is expected a process that stays where it is is written, again and again: the wait is
// then over, or has begun, when the move comes. What it costs others is that a fork
// or exit meanwhile takes the lock's slow path, some ten nanoseconds, as after any move.
//
// The zero value is ready for use.
type CgroupMoves struct {
	file func() (string, error) // nil means ownProcs
	own  func() (string, error) // what changes when this process is moved; nil means ownCgroups

	mu    sync.Mutex // never held across I/O
	until time.Time  // +checklocks:mu; writes go on until then; zero: nobody writes
	off   bool       // +checklocks:mu; the kernel does not let us write: it is not asked again
}

// moveAgain is shorter than a grace period, which is several ticks of the kernel's
// scheduler: 3 ms with 1000 a second, 8 ms with 250.
const moveAgain = 3 * time.Millisecond

// Expect says that a process is likely to be moved within the time d. It does not wait.
// Where it can do nothing, as with a read-only /sys/fs/cgroup, the move takes longer,
// and that is all.
func (c *CgroupMoves) Expect(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	until := time.Now().Add(d)
	if c.off || until.Before(c.until) {
		return
	}
	if c.until.IsZero() {
		go c.write() // ends by itself when c.until has come
	}
	c.until = until
}

// write ends when nothing is expected any more.
func (c *CgroupMoves) write() {
	if err := c.writeSelf(); err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.until, c.off = time.Time{}, true
	}
}

func (c *CgroupMoves) writeSelf() error {
	file, own := c.file, c.own
	if file == nil {
		file, own = ownProcs, ownCgroups
	}
	self := []byte(strconv.Itoa(os.Getpid()))
	again := time.NewTicker(moveAgain)
	defer again.Stop()
	var f *os.File
	defer func() { _ = f.Close() }()
	for was := ""; c.expects(); {
		// A write to the file of before would move this process back, should somebody
		// have moved it meanwhile.
		now, err := own()
		if err != nil {
			return err
		}
		if f != nil && now == was {
			if _, err := f.Write(self); err != nil {
				return err
			}
			<-again.C
			continue
		}
		_ = f.Close()
		path, err := file()
		if err != nil {
			return err
		}
		if f, err = os.OpenFile(path, os.O_WRONLY, 0); err != nil {
			return err
		}
		was = now // and look again: path may be younger
	}
	return nil
}

func (c *CgroupMoves) expects() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Now().Before(c.until) {
		return true
	}
	c.until = time.Time{}
	return false
}

// ownProcs is cgroup.procs of the cgroup that this process is in, of any hierarchy.
func ownProcs() (string, error) {
	hierarchies, err := CgroupHierarchies()
	if err != nil {
		return "", err
	}
	own, err := ownCgroups()
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(own) {
		// "7:blkio:/path", and of version 2 "0::/path".
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		for _, h := range hierarchies {
			if len(fields) == 3 && fields[1] == strings.Join(h.Controllers, ",") {
				return filepath.Join(h.Point, fields[2], "cgroup.procs"), nil
			}
		}
	}
	return "", fmt.Errorf("find own cgroup: no hierarchy of /proc/self/cgroup is mounted")
}

// ownCgroups is the cgroups that this process is in, a line each.
func ownCgroups() (string, error) {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", fmt.Errorf("find own cgroup: %w", err)
	}
	return string(own), nil
}
