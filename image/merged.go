package image

import (
	"errors"
	"io"
	"strings"

	"github.com/cridproject/crid/image/dirfd"
	"github.com/cridproject/crid/internal/errkind"
)

// merged is the view that overlayfs will give of a stack of layers, without a
// mount: whiteouts, opaque folders and symbolic links mean here what they will
// mean in the container.
type merged struct {
	root mergedDir
}

// mergedDir is a folder of the view: the folders of the layers that make it up,
// uppermost first.
type mergedDir []layerDir

type layerDir struct {
	*dirfd.Dir
	layer int // index in the stack, uppermost first
}

// found is what a name in a folder of the view leads to.
type found struct {
	dir  mergedDir // when it is a folder; to be closed
	in   layerDir  // when it is something else: the folder that holds it
	stat dirfd.Stat
}

// openMerged opens the layers' folders, uppermost first.
func openMerged(lower []string) (*merged, error) {
	m := &merged{}
	for i, path := range lower {
		d, err := dirfd.Open(path)
		if err != nil {
			m.close()
			return nil, err
		}
		m.root = append(m.root, layerDir{d, i})
	}
	return m, nil
}

func (m *merged) close() { m.root.close() }

func (d mergedDir) close() {
	for _, l := range d {
		l.Close()
	}
}

// child looks name up. What is not there, or is hidden, is dirfd.ErrNotExist.
func (d mergedDir) child(name string) (found, error) {
	var f found
	for _, l := range d {
		st, err := l.Lstat(name)
		if errors.Is(err, dirfd.ErrNotExist) {
			continue
		}
		if err != nil {
			f.dir.close()
			return found{}, err
		}
		if !st.IsDir() {
			if f.dir == nil && !st.IsWhiteout() {
				return found{in: l, stat: st}, nil
			}
			break // it hides what is below, and is hidden by a folder above
		}
		sub, err := l.OpenDir(name)
		if err != nil {
			f.dir.close()
			return found{}, err
		}
		f.dir = append(f.dir, layerDir{sub, l.layer})
		if string(sub.Self().Xattr(opaqueXattr)) == "y" {
			break
		}
	}
	if f.dir == nil {
		return found{}, dirfd.ErrNotExist
	}
	return f, nil
}

// walk finds the folder at the relative path p, following no links. The caller
// closes it, unless p is "".
func (m *merged) walk(p string) (mergedDir, error) {
	at := m.root
	if p == "" {
		return at, nil
	}
	for name := range strings.SplitSeq(p, "/") {
		f, err := at.child(name)
		if &at[0] != &m.root[0] {
			at.close()
		}
		if err != nil {
			return nil, err
		}
		if f.dir == nil {
			return nil, dirfd.ErrNotDir
		}
		at = f.dir
	}
	return at, nil
}

// readFile reads the regular file at the absolute path p, following links
// inside the view. It returns nil when there is no such file.
func (m *merged) readFile(p string, limit int64) ([]byte, error) {
	stack := []mergedDir{m.root} // from the root to where we are
	defer func() {
		for _, d := range stack[1:] {
			d.close()
		}
	}()
	links := 0
	for rest := strings.Split(p, "/"); len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			if len(stack) > 1 {
				stack[len(stack)-1].close()
				stack = stack[:len(stack)-1]
			}
			continue
		}
		f, err := stack[len(stack)-1].child(name)
		switch {
		case errors.Is(err, dirfd.ErrNotExist):
			return nil, nil
		case err != nil:
			return nil, err
		case f.dir != nil:
			stack = append(stack, f.dir)
		case f.stat.IsSymlink():
			if links++; links > maxLinks {
				return nil, nil
			}
			target, err := f.in.Readlink(name)
			if err != nil {
				return nil, err
			}
			if strings.HasPrefix(target, "/") {
				for _, d := range stack[1:] {
					d.close()
				}
				stack = stack[:1]
			}
			rest = append(strings.Split(target, "/"), rest...)
		case f.stat.IsRegular() && len(rest) == 0:
			return readBounded(f.in.Dir, name, limit)
		default:
			return nil, nil
		}
		if len(stack) > maxDepth {
			return nil, nil
		}
	}
	return nil, nil // a folder
}

func readBounded(d *dirfd.Dir, name string, limit int64) ([]byte, error) {
	file, err := d.OpenFile(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, errkind.Errorf(errkind.Invalid, "the image's file %s has more than %d bytes", name, limit)
	}
	return data, nil
}
