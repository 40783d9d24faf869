package sys_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/internal/testutil"
)

func TestCgroupHierarchies(t *testing.T) {
	hs, err := sys.CgroupHierarchies()
	if err != nil {
		t.Fatal(err)
	}
	var v1, v2 int
	for _, h := range hs {
		switch {
		case h.V2:
			v2++
		case len(h.Controllers) == 0:
			t.Errorf("%s has no controllers", h.Point)
		default:
			v1++
		}
		if slices.Contains(h.Controllers, "rw") {
			t.Errorf("controllers of %s = %q: a mount option is among them", h.Point, h.Controllers)
		}
	}
	want := map[sys.CgroupModeKind]bool{
		sys.CgroupUnified: v1 == 0 && v2 == 1,
		sys.CgroupHybrid:  v1 > 0 && v2 == 1,
		sys.CgroupLegacy:  v1 > 0 && v2 == 0,
	}
	if mode := sys.CgroupMode(); !want[mode] {
		t.Errorf("CgroupMode() = %v with %d hierarchies of version 1 and %d of version 2", mode, v1, v2)
	}
}

func TestRemoveCgroup(t *testing.T) {
	parent := testutil.TempCgroupParent(t)
	diff := testutil.Snapshot(t, testutil.Scope{CgroupParents: []string{parent}, LinkPrefixes: []string{"none"}, MountsBelow: []string{"/none"}})
	dirs, err := sys.CgroupDirs(parent)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(filepath.Join(dir, "pod", "container"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := childCommand(t, "exit 0")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// The named hierarchy or version 2: no controller has a say in these.
	busy := dirs[len(dirs)-1]
	procs := filepath.Join(busy, "pod", "container", "cgroup.procs")
	if err := os.WriteFile(procs, []byte(strconv.Itoa(cmd.Process.Pid)), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := sys.CgroupProcs(busy); err != nil || !slices.Equal(got, []int{cmd.Process.Pid}) {
		t.Errorf("CgroupProcs(%s) = %v, %v, want %d", busy, got, err, cmd.Process.Pid)
	}
	if err := sys.RemoveCgroup(parent); !errors.Is(err, unix.EBUSY) {
		t.Errorf("RemoveCgroup with a process in it = %v, want EBUSY", err)
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	for range 2 { // the second finds nothing
		if err := sys.RemoveCgroup(parent); err != nil {
			t.Errorf("RemoveCgroup: %v", err)
		}
	}
	if got, err := sys.CgroupProcs(busy); err != nil || len(got) > 0 {
		t.Errorf("CgroupProcs of an absent cgroup = %v, %v, want none", got, err)
	}
	for _, line := range diff() {
		t.Error(line)
	}
}

func TestRemoveCgroupRefusesTheRoot(t *testing.T) {
	for _, path := range []string{"", "/", "/..", "a/.."} {
		if err := sys.RemoveCgroup(path); err == nil {
			t.Errorf("RemoveCgroup(%q) = nil, want an error", path)
		}
	}
}
