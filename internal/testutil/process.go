package testutil

import (
	"crypto/rand"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/cridproject/crid/internal/sys"
)

// process is one row of the process table.
type process struct {
	parent               int
	name, state, cmdline string
}

type processes map[int]process

func processTable() (processes, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	table := make(processes)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue // it has ended meanwhile
		}
		cmdline, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline") // empty for zombies
		p, ok := parseStat(string(stat))
		if !ok {
			return nil, fmt.Errorf("/proc/%d/stat is not understood: %q", pid, stat)
		}
		p.cmdline = strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " "))
		table[pid] = p
	}
	return table, nil
}

// parseStat: PID (NAME) STATE PARENT ...; NAME may hold anything, also parentheses.
func parseStat(s string) (process, bool) {
	open, end := strings.IndexByte(s, '('), strings.LastIndexByte(s, ')')
	if open < 0 || end < open {
		return process{}, false
	}
	f := strings.Fields(s[end+1:])
	if len(f) < 2 {
		return process{}, false
	}
	parent, err := strconv.Atoi(f[1])
	return process{parent: parent, name: s[open+1 : end], state: f[0]}, err == nil
}

// descends reports whether pid is a child of ancestor, or a child's child, and so on.
func (ps processes) descends(pid, ancestor int) bool {
	for range len(ps) { // the table is no snapshot: parents may form a circle
		p, ok := ps[pid]
		if !ok {
			return false
		}
		if p.parent == ancestor {
			return true
		}
		pid = p.parent
	}
	return false
}

// TempCgroupParent is the path of a cgroup of the test's own, such as
// "/crid-test-x7ab", in no hierarchy yet. At the end of the test its processes
// are killed and it is removed with all below it, in every hierarchy.
func TempCgroupParent(t testing.TB) string {
	t.Helper()
	RequireRoot(t)
	parent := "/crid-test-" + strings.ToLower(rand.Text())
	t.Cleanup(func() {
		var err error
		if !poll(func() bool {
			killCgroup(t, parent)
			err = sys.RemoveCgroup(parent)
			return err == nil
		}) {
			t.Errorf("test's cgroup: %v", err)
		}
	})
	return parent
}

// killCgroup kills what is in the cgroup in any hierarchy. Those that end
// meanwhile are no matter.
func killCgroup(t testing.TB, path string) {
	dirs, err := sys.CgroupDirs(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		pids, err := sys.CgroupProcs(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, pid := range pids {
			if pid > 1 && pid != os.Getpid() {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
}
