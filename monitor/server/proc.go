package server

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// procStat is what is needed of /proc/PID/stat, see proc_pid_stat(5).
type procStat struct {
	state         byte // 'Z' is a zombie
	ppid, session int
	start         uint64 // ticks after boot; with the pid it names a process
	exit          int    // wait status of a zombie; 0 when this process may not know
}

func (p procStat) dead() bool { return p.state == 'Z' || p.state == 'X' }

// readStat fails when the process is gone.
func readStat(pid int) (procStat, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return procStat{}, err
	}
	return parseStat(b)
}

func parseStat(b []byte) (procStat, error) {
	// The program's name is in parentheses and may itself contain them.
	i := bytes.LastIndexByte(b, ')')
	f := strings.Fields(string(b[i+1:]))
	if i < 0 || len(f) < 20 {
		return procStat{}, fmt.Errorf("read process: %q is not a stat line", b)
	}
	s := procStat{state: f[0][0]}
	var errs [4]error
	s.ppid, errs[0] = strconv.Atoi(f[1])
	s.session, errs[1] = strconv.Atoi(f[3])
	s.start, errs[2] = strconv.ParseUint(f[19], 10, 64)
	if len(f) > 49 {
		s.exit, errs[3] = strconv.Atoi(f[49])
	}
	for _, err := range errs {
		if err != nil {
			return procStat{}, fmt.Errorf("read process: %w", err)
		}
	}
	return s, nil
}

// ownChildren is the pids of this process's children, zombies included.
func ownChildren() []int {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil
	}
	var pids []int
	for _, t := range tasks {
		// A child belongs to the thread that made it, or was reparented to.
		b, err := os.ReadFile("/proc/self/task/" + t.Name() + "/children")
		if os.IsNotExist(err) {
			if _, err := os.Lstat("/proc/self/task/" + t.Name()); err != nil {
				continue // the thread has ended
			}
			return childrenByParent() // a kernel without CONFIG_PROC_CHILDREN
		}
		for f := range strings.FieldsSeq(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

func childrenByParent() []int {
	var pids []int
	self := os.Getpid()
	for _, pid := range allPids() {
		if st, err := readStat(pid); err == nil && st.ppid == self {
			pids = append(pids, pid)
		}
	}
	return pids
}

func allPids() []int {
	d, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	var pids []int
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// descendants finds, among candidates, the living processes that root started:
// its children's children, and whatever is in a session that one of them leads,
// which finds those whose parents are gone. sessions is remembered from call to
// call, because leaders die.
func descendants(root int, candidates []int, sessions map[int]bool) map[int]uint64 {
	stats := make(map[int]procStat, len(candidates))
	for _, pid := range candidates {
		if st, err := readStat(pid); err == nil {
			stats[pid] = st
		}
	}
	found := map[int]uint64{}
	for again := true; again; {
		again = false
		for pid, st := range stats {
			if _, ok := found[pid]; ok {
				continue
			}
			_, byParent := found[st.ppid]
			if pid != root && !byParent && !sessions[st.session] {
				continue
			}
			found[pid] = st.start
			// A session is ours when we found its leader.
			if st.session == pid {
				sessions[pid] = true
			}
			again = true
		}
	}
	for pid := range found {
		if stats[pid].dead() {
			delete(found, pid)
		}
	}
	return found
}

// killProcess sends SIGKILL to a process that started at the given time; one
// that is gone, or another that has its pid by now, is left alone.
func killProcess(pid int, start uint64) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	// The pidfd is fixed now, so the check is about the process it is for.
	if st, err := readStat(pid); err == nil && st.start == start {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
}
