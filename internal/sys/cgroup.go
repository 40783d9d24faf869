package sys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// CgroupRoot is where cgroups are mounted on every distribution.
const CgroupRoot = "/sys/fs/cgroup"

// CgroupModeKind says which versions of cgroups a machine has.
type CgroupModeKind int

// The three modes, in systemd's words.
const (
	CgroupLegacy  CgroupModeKind = iota // v1 only
	CgroupHybrid                        // v1 with the controllers, v2 beside it without
	CgroupUnified                       // v2 only
)

func (m CgroupModeKind) String() string {
	return [...]string{"legacy", "hybrid", "unified"}[m]
}

// CgroupMode is the mode of this machine.
func CgroupMode() CgroupModeKind {
	isV2 := func(path string) bool {
		var st unix.Statfs_t
		return unix.Statfs(path, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
	}
	switch {
	case isV2(CgroupRoot):
		return CgroupUnified
	case isV2(filepath.Join(CgroupRoot, "unified")):
		return CgroupHybrid
	}
	return CgroupLegacy
}

// CgroupHierarchy is one mounted tree of cgroups.
type CgroupHierarchy struct {
	Point       string   // where it is mounted
	V2          bool     // the one of version 2
	Controllers []string // of a v1 hierarchy; "name=systemd" for a named one
}

// CgroupHierarchies is all of them, sorted by mount point.
func CgroupHierarchies() ([]CgroupHierarchy, error) {
	mounts, err := Mounts()
	if err != nil {
		return nil, fmt.Errorf("find cgroup hierarchies: %w", err)
	}
	var hs []CgroupHierarchy
	for _, m := range mounts {
		switch m.FSType {
		case "cgroup2":
			hs = append(hs, CgroupHierarchy{Point: m.Point, V2: true})
		case "cgroup":
			hs = append(hs, CgroupHierarchy{Point: m.Point, Controllers: v1Controllers(m.SuperOptions)})
		}
	}
	byPoint := func(a, b CgroupHierarchy) int { return strings.Compare(a.Point, b.Point) }
	slices.SortStableFunc(hs, byPoint)
	return slices.CompactFunc(hs, func(a, b CgroupHierarchy) bool { return a.Point == b.Point }), nil
}

// v1Controllers leaves out the options of a v1 mount that are not controllers.
func v1Controllers(options string) []string {
	return slices.DeleteFunc(strings.Split(options, ","), func(o string) bool {
		name, _, hasValue := strings.Cut(o, "=")
		return hasValue && name != "name" ||
			slices.Contains([]string{"rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "favordynmods"}, o)
	})
}

// CgroupDirs is the folders that stand for the cgroup path ("/crid/x") in all
// hierarchies, whether they exist or not.
func CgroupDirs(path string) ([]string, error) {
	hs, err := CgroupHierarchies()
	if err != nil {
		return nil, err
	}
	dirs := make([]string, len(hs))
	for i, h := range hs {
		dirs[i] = filepath.Join(h.Point, path)
	}
	return dirs, nil
}

// CgroupProcs is the processes in the cgroup at dir and the cgroups below it,
// once each, in order. What is absent has none.
func CgroupProcs(dir string) ([]int, error) {
	pids, err := appendProcs(nil, dir)
	if err != nil {
		return nil, fmt.Errorf("list processes of cgroup: %w", err)
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

func appendProcs(pids []int, dir string) ([]int, error) {
	b, err := ReadSmall(filepath.Join(dir, "cgroup.procs"), make([]byte, 0, 512))
	if err != nil {
		return pids, skipGone(err)
	}
	for field := range strings.FieldsSeq(string(b)) {
		if pid, err := strconv.Atoi(field); err == nil {
			pids = append(pids, pid)
		}
	}
	// The kernel counts the links from the cgroups below. To look for those among some
	// forty files takes ten times as long.
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err == nil && st.Nlink == 2 {
		return pids, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return pids, skipGone(err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if pids, err = appendProcs(pids, filepath.Join(dir, e.Name())); err != nil {
			return pids, err
		}
	}
	return pids, nil
}

// RemoveCgroup removes the cgroup path and all below it in every hierarchy. It is
// no error when there is none; with a process in it, it is EBUSY.
func RemoveCgroup(path string) error {
	if filepath.Clean("/"+path) == "/" {
		return errors.New("remove cgroup: the root cgroup cannot be removed")
	}
	dirs, err := CgroupDirs(path)
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		errs = append(errs, removeCgroupDir(dir))
	}
	return errors.Join(errs...)
}

// removeCgroupDir: the files in a cgroup cannot be removed and go with it, so
// os.RemoveAll does not do.
func removeCgroupDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return skipGone(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroupDir(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil {
		return skipGone(&fs.PathError{Op: "remove cgroup", Path: dir, Err: err})
	}
	return nil
}

// skipGone passes over the errors of a cgroup that is being removed meanwhile.
func skipGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}
