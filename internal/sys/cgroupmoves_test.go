package sys_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/internal/testutil"
)

// The kernel takes the write, and this process stays where it is.
func TestCgroupMovesOfThisMachine(t *testing.T) {
	testutil.RequireRoot(t)
	before, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	path, err := sys.OwnProcs()
	if err != nil {
		t.Fatal(err)
	}
	procs, err := os.ReadFile(path)
	if err != nil || !slices.Contains(strings.Fields(string(procs)), strconv.Itoa(os.Getpid())) {
		t.Errorf("%s = %q, %v, want this process in it", path, procs, err)
	}
	var moves sys.CgroupMoves
	moves.Expect(20 * time.Millisecond)
	testutil.WaitFor(t, "the end of the writes", moves.Idle)
	if moves.Off() {
		t.Error("off after Expect: the kernel did not take the write")
	}
	if after, err := os.ReadFile("/proc/self/cgroup"); err != nil || string(after) != string(before) {
		t.Errorf("cgroups = %q, %v, want those of before %q", after, err, before)
	}
}

// It writes for as long as something is expected, from one goroutine, then no more.
func TestCgroupMovesWhileExpected(t *testing.T) {
	path := filepath.Join(t.TempDir(), "procs")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	began := 0
	moves := sys.MovesTo(func() (string, error) { began++; return path, nil }, here)
	moves.Expect(time.Hour)
	moves.Expect(time.Millisecond) // shortens nothing
	self := strconv.Itoa(os.Getpid())
	written := func() string {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	testutil.WaitFor(t, "three writes", func() bool { return strings.Count(written(), self) >= 3 })
	if moves.Idle() {
		t.Error("idle while a move is expected")
	}
	moves.Forget()
	testutil.WaitFor(t, "the end of the writes", moves.Idle)
	if began != 1 {
		t.Errorf("began to write %d times, want once", began)
	}
	if got := strings.ReplaceAll(written(), self, ""); got != "" {
		t.Errorf("wrote %q beside the own pid", got)
	}
	before := len(written())
	moves.Expect(time.Hour) // begins anew
	testutil.WaitFor(t, "a further write", func() bool { return len(written()) > before })
	moves.Forget()
	testutil.WaitFor(t, "the end of the writes", moves.Idle)
	if began != 2 || moves.Off() {
		t.Errorf("after the next Expect: began %d times, off is %v, want 2 and not", began, moves.Off())
	}
}

// Where the file cannot be written nothing is tried again.
func TestCgroupMovesOff(t *testing.T) {
	for name, find := range map[string]func() (string, error){
		"no hierarchy": func() (string, error) { return "", errors.New("none") },
		"no file":      func() (string, error) { return filepath.Join(t.TempDir(), "none"), nil },
		"no write":     func() (string, error) { return "/dev/full", nil },
	} {
		t.Run(name, func(t *testing.T) {
			tried := 0
			moves := sys.MovesTo(func() (string, error) { tried++; return find() }, here)
			moves.Expect(time.Hour)
			testutil.WaitFor(t, "off", moves.Off)
			moves.Expect(time.Hour)
			if !moves.Idle() || tried != 1 {
				t.Errorf("after a failure: idle is %v and %d tries, want no second", moves.Idle(), tried)
			}
		})
	}
}

func here() (string, error) { return "/here", nil }

// Who moves this process meanwhile has the last word.
func TestCgroupMovesAfterAMove(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"before", "after"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var at atomic.Value
	at.Store("before")
	size := func(name string) int64 {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return fi.Size()
	}
	var atMove int64 // size of before when no more may come
	looked := false
	moves := sys.MovesTo(
		func() (string, error) { return filepath.Join(dir, at.Load().(string)), nil },
		func() (string, error) {
			if at.Load() == "after" && !looked {
				looked = true
				atMove = size("before")
			}
			return at.Load().(string), nil
		})
	moves.Expect(time.Hour)
	testutil.WaitFor(t, "writes", func() bool { return size("before") > 0 })
	at.Store("after")
	testutil.WaitFor(t, "writes to the other", func() bool { return size("after") > 0 })
	moves.Forget()
	testutil.WaitFor(t, "the end of the writes", moves.Idle)
	if got := size("before"); got != atMove {
		t.Errorf("%d bytes were written to the cgroup that was left", got-atMove)
	}
}
