package cgstat

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/cridproject/crid/internal/sys"
)

// Tree is the hierarchies of a machine.
type Tree struct {
	v2 string // mount point of version 2; "" without
	// unified: version 2 has the controllers. Else these are their mount points in
	// version 1, "" of those that are not there.
	unified                                    bool
	cpu, cpuacct, memory, pids, blkio, hugetlb string

	pageSizes []string // of huge pages, as in the names of files
}

// Open finds the hierarchies of this machine. They are not looked for again.
func Open() (*Tree, error) {
	hierarchies, err := sys.CgroupHierarchies()
	if err != nil {
		return nil, err
	}
	sizes, _ := os.ReadDir("/sys/kernel/mm/hugepages") // none without huge pages
	names := make([]string, 0, len(sizes))
	for _, s := range sizes {
		names = append(names, s.Name())
	}
	return newTree(hierarchies, names), nil
}

func newTree(hierarchies []sys.CgroupHierarchy, hugepages []string) *Tree {
	t := &Tree{unified: true}
	for _, h := range hierarchies {
		if h.V2 {
			t.v2 = h.Point
			continue
		}
		for name, at := range map[string]*string{
			"cpu": &t.cpu, "cpuacct": &t.cpuacct, "memory": &t.memory, "pids": &t.pids, "blkio": &t.blkio, "hugetlb": &t.hugetlb,
		} {
			if slices.Contains(h.Controllers, name) {
				*at, t.unified = h.Point, false
			}
		}
	}
	for _, name := range hugepages {
		if size, ok := pageSize(name); ok {
			t.pageSizes = append(t.pageSizes, size)
		}
	}
	slices.Sort(t.pageSizes)
	return t
}

// pageSize turns hugepages-2048kB into 2MB.
func pageSize(name string) (string, bool) {
	s, ok := strings.CutPrefix(name, "hugepages-")
	s, kB := strings.CutSuffix(s, "kB")
	n, err := strconv.ParseUint(s, 10, 32)
	if !ok || !kB || err != nil {
		return "", false
	}
	unit := "KB"
	for _, u := range []string{"MB", "GB"} {
		if n < 1024 || n%1024 != 0 {
			break
		}
		n, unit = n/1024, u
	}
	return fmt.Sprintf("%d%s", n, unit), true
}

// reader reads the files of one cgroup. A file that is not there, or has gone
// with its cgroup, is an empty one; found says whether there was any.
type reader struct {
	path  string
	buf   []byte
	found bool
	err   error // the first that is not the file's absence

	point string // mount point of the hierarchy in which the cgroup is open; "" for none
	dir   sys.CgroupDir
	there bool // dir is open
}

// file is the content of a file in the cgroup's folder below the mount point, until
// the next call. It is best asked for the files of one hierarchy in a row.
func (r *reader) file(point, name string) []byte {
	if point == "" {
		return nil
	}
	if r.point != point {
		r.close()
		dir, err := sys.OpenCgroupDir(point + r.path)
		r.note(err)
		r.point, r.dir, r.there = point, dir, err == nil
	}
	if !r.there {
		return nil
	}
	b, err := r.dir.Read(name, r.buf)
	if r.note(err); err != nil {
		return nil
	}
	r.found, r.buf = true, b
	return b
}

// only is file for a hierarchy of which one file alone is wanted: there is then no folder
// to open first.
func (r *reader) only(point, name string) []byte {
	if point == "" {
		return nil
	}
	b, err := sys.ReadSmall(point+r.path+"/"+name, r.buf)
	if r.note(err); err != nil {
		return nil
	}
	r.found, r.buf = true, b
	return b
}

func (r *reader) note(err error) {
	if err != nil && !absent(err) && r.err == nil {
		r.err = err
	}
}

func (r *reader) close() {
	if r.there {
		r.dir.Close()
	}
	r.point, r.there = "", false
}

// absent: the controller is not on, the kernel is older, the kernel was told not
// to count (as with pressure: EOPNOTSUPP), or the cgroup is gone.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.EOPNOTSUPP)
}

// end is the outcome, after which nothing is open and r is not used any more. The cgroup
// itself was there if anything was.
func (r *reader) end() error {
	r.close()
	defer readers.Put(r)
	switch {
	case r.err != nil && !r.found:
		return fmt.Errorf("read figures of cgroup: %w", r.err)
	case !r.found:
		return fmt.Errorf("cgroup %s: %w", r.path, fs.ErrNotExist)
	}
	return nil
}

// Parts are of Usage: what not everybody wants, and costs the reading of files.
type Parts int

// The parts.
const (
	Swap Parts = 1 << iota
	Tasks
)

// Usage reads what the cgroup path, as in "/kubepods/pod1", uses. A cgroup that is
// not there is fs.ErrNotExist.
func (t *Tree) Usage(path string, parts Parts) (Usage, error) {
	var u Usage
	r := t.reader(path)
	if t.unified {
		r.memoryStatV2(t, &u, nil, parts)
		r.cpuStatV2(t, &u, nil)
		r.usageV2(t, &u, parts)
	} else {
		r.memoryStatV1(t, &u, nil, parts)
		r.usageV1(t, &u, parts)
	}
	return u, r.end()
}

// Details is Usage, and the rest.
func (t *Tree) Details(path string) (Details, error) {
	var d Details
	r := t.reader(path)
	if t.unified {
		r.memoryStatV2(t, &d.Usage, &d, Swap)
		r.cpuStatV2(t, &d.Usage, &d)
		r.usageV2(t, &d.Usage, Tasks)
		r.detailsV2(t, &d)
	} else {
		r.memoryStatV1(t, &d.Usage, &d, Swap)
		r.usageV1(t, &d.Usage, Tasks)
		r.detailsV1(t, &d)
	}
	r.hugePages(t, &d)
	return d, r.end()
}

func (t *Tree) reader(path string) *reader {
	r := readers.Get().(*reader)
	*r = reader{path: filepath.Clean("/" + path), buf: r.buf}
	return r
}

// readers keep their buffers: a node's figures would else make some MiB of garbage.
var readers = sync.Pool{New: func() any { return &reader{buf: make([]byte, 0, 4096)} }}

// Procs is the processes in the cgroup and those below it. What is absent has none.
func (t *Tree) Procs(path string) ([]int, error) {
	point := t.v2
	for _, p := range []string{t.pids, t.memory, t.cpu} {
		if !t.unified && p != "" {
			point = p
			break
		}
	}
	return sys.CgroupProcs(filepath.Join(point, path))
}
