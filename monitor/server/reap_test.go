package server

import (
	"os/exec"
	"testing"

	"github.com/cridproject/crid/internal/testutil"
)

// zombieChild is a child of ours that has ended and is waited for by nobody.
func zombieChild(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/bin/true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	testutil.WaitFor(t, "zombie", func() bool {
		st, err := readStat(cmd.Process.Pid)
		return err != nil || st.dead()
	})
	return cmd
}

func isZombie(cmd *exec.Cmd) bool {
	st, err := readStat(cmd.Process.Pid)
	return err == nil && st.dead()
}

func TestReaper(t *testing.T) {
	r := newReaper()

	orphan := zombieChild(t)
	if r.scan(t.Context()); isZombie(orphan) {
		t.Error("an orphan was not reaped")
	}

	ours := zombieChild(t)
	r.add(ours.Process.Pid)
	if r.scan(t.Context()); !isZombie(ours) {
		t.Error("a process that a watcher waits for was reaped")
	}
	if err := ours.Wait(); err != nil {
		t.Error(err)
	}
	r.remove(ours.Process.Pid)

	end := r.begin()
	helper := zombieChild(t)
	for range 2 {
		if r.scan(t.Context()); !isZombie(helper) {
			t.Fatal("what may be an operation's helper was reaped")
		}
	}
	// An operation that began later cannot have made it.
	endLater := r.begin()
	end()
	select {
	case <-r.again:
	default:
		t.Error("no new scan is asked for when an operation ends")
	}
	if r.scan(t.Context()); isZombie(helper) {
		t.Error("an orphan was not reaped once the operations from before it had ended")
	}
	endLater()
	if len(r.seen) > 0 {
		t.Errorf("remembers %v, want nothing", r.seen)
	}
}
