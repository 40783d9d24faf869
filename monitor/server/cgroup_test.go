package server

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/cgroups"
)

// forkers is a cgroup with the v1 freezer at dir in which each look finds another
// process, and the last look fails.
type forkers struct {
	cgroups.Manager
	dir   string
	looks int
}

func (f *forkers) Path(string) string { return f.dir }

func (f *forkers) GetAllPids() ([]int, error) {
	if f.looks++; f.looks > freezeAfter {
		return nil, errors.New("no descriptors left")
	}
	return []int{1<<30 + f.looks}, nil // beyond all that there are
}

// TestKillEachThaws: what was frozen so that it does not fork is not left frozen,
// because then no signal would reach it.
func TestKillEachThaws(t *testing.T) {
	if cgroups.IsCgroup2UnifiedMode() {
		t.Skip("the kernel kills cgroups itself")
	}
	dir := t.TempDir()
	if err := (&cgroup{&forkers{dir: dir}}).killEach(); err == nil {
		t.Error("killEach = nil, want the error of the look that failed")
	}
	state, err := os.ReadFile(filepath.Join(dir, "freezer.state"))
	if err != nil || string(state) != string(cgroups.Thawed) {
		t.Errorf("the freezer is %q, %v, want %s", state, err, cgroups.Thawed)
	}
}
