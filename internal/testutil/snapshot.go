package testutil

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cridproject/crid/internal/sys"
)

// Scope says which part of the machine a Snapshot looks at. What is empty is not
// looked at, except as said.
type Scope struct {
	MountsBelow   []string // mounts at or below these folders; empty means all mounts
	NetNSDirs     []string // files in folders like /run/netns, with or without a mount
	CgroupParents []string // cgroups at or below these, as cgroupfs paths such as "/crid-test", in all hierarchies
	LinkPrefixes  []string // network links whose names begin so; empty means all links
	Marker        string   // processes with this in their command line, beside descendants of this process
	Dirs          []string // everything in these folders
}

// Snapshot notes the state of the machine. The function that it returns compares
// with the state at its call, and says in one line each what is there since ("left
// behind: ...") and what has gone ("gone: ..."). It does not wait: who expects
// something to end by itself calls it within WaitFor.
func Snapshot(t testing.TB, s Scope) (diff func() []string) {
	t.Helper()
	before := s.look(t)
	return func() []string {
		t.Helper()
		after := s.look(t)
		var lines []string
		for _, x := range after {
			if !slices.Contains(before, x) {
				lines = append(lines, "left behind: "+x)
			}
		}
		for _, x := range before {
			if !slices.Contains(after, x) {
				lines = append(lines, "gone: "+x)
			}
		}
		return lines
	}
}

func (s Scope) look(t testing.TB) []string {
	t.Helper()
	var all []string
	for _, part := range []func() ([]string, error){s.mounts, s.files, s.cgroups, s.links, s.processes} {
		found, err := part()
		if err != nil {
			t.Fatalf("look at the machine: %v", err)
		}
		all = append(all, found...)
	}
	return all
}

func (s Scope) mounts() ([]string, error) {
	mounts, err := sys.Mounts()
	if err != nil {
		return nil, err
	}
	var all []string
	for _, m := range mounts {
		if len(s.MountsBelow) == 0 || slices.ContainsFunc(s.MountsBelow, func(dir string) bool { return below(m.Point, dir) }) {
			// With its ID, so that one mount over another counts as two.
			all = append(all, "mount "+m.Point+" ("+m.FSType+" "+m.Root+", mount ID "+strconv.Itoa(m.ID)+")")
		}
	}
	return all, nil
}

func (s Scope) files() ([]string, error) {
	var all []string
	walk := func(path string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			all = append(all, "file "+path)
		}
		return err
	}
	for _, dir := range slices.Concat(s.NetNSDirs, s.Dirs) {
		if err := filepath.WalkDir(dir, walk); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func (s Scope) cgroups() ([]string, error) {
	var all []string
	for _, parent := range s.CgroupParents {
		dirs, err := sys.CgroupDirs(parent)
		if err != nil {
			return nil, err
		}
		for _, dir := range dirs {
			err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
				if errors.Is(err, fs.ErrNotExist) {
					return nil
				}
				if err == nil && d.IsDir() {
					all = append(all, "cgroup "+path)
				}
				return err
			})
			if err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

func (s Scope) links() ([]string, error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var all []string
	for _, l := range links {
		if len(s.LinkPrefixes) == 0 || slices.ContainsFunc(s.LinkPrefixes, func(p string) bool { return strings.HasPrefix(l.Name, p) }) {
			all = append(all, "link "+l.Name)
		}
	}
	return all, nil
}

// processes are the descendants of this process, and those that are marked.
func (s Scope) processes() ([]string, error) {
	table, err := processTable()
	if err != nil {
		return nil, err
	}
	self := os.Getpid()
	var all []string
	for pid, p := range table {
		if pid == self {
			continue
		}
		if table.descends(pid, self) || s.Marker != "" && strings.Contains(p.cmdline, s.Marker) {
			line := "process " + strconv.Itoa(pid) + " " + p.name + " " + p.cmdline
			if p.state == "Z" {
				line += "(zombie)"
			}
			all = append(all, line)
		}
	}
	slices.Sort(all)
	return all, nil
}

// below reports whether path is dir or in it.
func below(path, dir string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}
