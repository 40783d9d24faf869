package server

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// oomKilled reports whether the kernel's OOM killer has struck in the cgroup
// since it was made. It must be asked before the cgroup goes, and systemd
// removes a scope as soon as its last process has ended; then known is false.
//
// The counter is the cgroup's own (memory.events of v2, memory.oom_control of
// v1): what happened to a neighbour or in the pod's cgroup does not count, and
// neither does a SIGKILL that somebody sent.
func (c *cgroup) oomKilled() (struck, known bool) {
	n, err := c.m.OOMKillCount()
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return false, false
	}
	return n > 0, err == nil
}

// oomKilledInLog looks in the kernel's log, where the OOM killer names each victim
// and its cgroup, for a container's. It is for when systemd was faster than oomKilled.
// pid is that of its first process, and path of its cgroup; start is when the process
// started, which tells it from an earlier one with its pid, and its cgroup from an
// earlier one of that name.
//
// A victim that is not the first process is found by the cgroup alone, in a record
// that the kernel leaves out when it kills more than ten times in five seconds.
func oomKilledInLog(pid int, start uint64, path string) bool {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	buf := make([]byte, 8192) // longer than any record
	for {
		n, err := unix.Read(fd, buf)
		switch {
		case errors.Is(err, unix.EPIPE), errors.Is(err, unix.EINTR):
			continue // the oldest record was overwritten meanwhile
		case err != nil || n <= 0:
			return false // EAGAIN: the end
		}
		if loggedSince(buf[:n], start) && (oomVictim(buf[:n], pid) || oomCgroup(buf[:n], path)) {
			return true
		}
	}
}

// ticksPerSecond is the unit of start times in /proc (USER_HZ).
const ticksPerSecond = 100

// loggedSince reports whether a record of /dev/kmsg, "3,1234,5678901,-;text", is from
// after start. Its third field is microseconds after boot.
func loggedSince(record []byte, start uint64) bool {
	head, _, _ := bytes.Cut(record, []byte(";"))
	f := bytes.SplitN(head, []byte(","), 4)
	if len(f) < 3 {
		return false
	}
	at, err := strconv.ParseUint(string(f[2]), 10, 64)
	// The log's clock and the other one differ a little.
	return err == nil && at/1e6+2 >= start/ticksPerSecond
}

// oomVictim reports whether a record says that the process was killed:
// "3,1234,5678901,-;Memory cgroup out of memory: Killed process 42 (sh) ...".
func oomVictim(record []byte, pid int) bool {
	_, text, _ := bytes.Cut(record, []byte(";"))
	return bytes.Contains(text, []byte("emory")) && bytes.Contains(text, fmt.Appendf(nil, "Killed process %d (", pid))
}

// oomCgroup reports whether a record says that a process of the cgroup at
// path, or of one below it, was a victim:
// "6,1234,5678901,-;oom-kill:constraint=CONSTRAINT_MEMCG,...,task_memcg=/a/b,task=sh,pid=42,uid=0".
// The kernel writes it since Linux 5.0.
func oomCgroup(record []byte, path string) bool {
	const key = "task_memcg="
	_, text, _ := bytes.Cut(record, []byte(";"))
	if path == "" || path == "/" || !bytes.HasPrefix(text, []byte("oom-kill:")) {
		return false
	}
	_, victim, found := bytes.Cut(text, []byte(key))
	rest, ok := bytes.CutPrefix(victim, []byte(path))
	return found && ok && len(rest) > 0 && (rest[0] == ',' || rest[0] == '/')
}
