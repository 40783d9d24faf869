package image

import (
	"errors"
	"path"
	"strings"

	"github.com/cridproject/crid/image/dirfd"
	"github.com/cridproject/crid/internal/errkind"
)

const (
	maxLinks    = 40       // symbolic links followed on one path, as the kernel's limit
	maxOpenDirs = 256      // folders kept open between entries
	maxReal     = 16 << 10 // paths whose folder is remembered
)

// place is an open folder of a tree and its path from the root, free of
// symbolic links; "" is the root.
type place struct {
	*dirfd.Dir
	path string
}

// tree finds folders below a root as if the root were "/": absolute links start
// there and ".." stops there. Nothing it opens is outside. It keeps folders
// open, since an archive has its entries folder by folder.
type tree struct {
	root  *dirfd.Dir
	open  map[string]*dirfd.Dir // by path without links; the tree closes them
	real  map[string]string     // path as asked → path without links
	links int                   // symbolic links followed in this call of dir
	// makeDir makes a missing folder; nil means that a missing folder is an error.
	makeDir func(parent place, name string) error
}

// newTree takes ownership of root.
func newTree(root *dirfd.Dir) tree {
	return tree{root: root, open: map[string]*dirfd.Dir{"": root}, real: map[string]string{"": ""}}
}

func (t *tree) close() {
	for _, d := range t.open {
		d.Close()
	}
	clear(t.open)
	clear(t.real)
}

// trim closes folders when many are open, or many paths are known. No place handed out
// before may be used after it.
func (t *tree) trim() {
	if len(t.open) > maxOpenDirs || len(t.real) > maxReal {
		t.reset()
	}
}

// reset forgets what is known of paths: links and folders have changed.
func (t *tree) reset() {
	for p, d := range t.open {
		if p != "" {
			d.Close()
		}
	}
	t.open, t.real = map[string]*dirfd.Dir{"": t.root}, map[string]string{"": ""}
}

// dir finds, and with makeDir makes, the folder at the cleaned relative path p.
func (t *tree) dir(p string) (place, error) {
	t.links = 0
	return t.find(p)
}

func (t *tree) find(p string) (place, error) {
	if at, ok := t.real[p]; ok {
		if d, ok := t.open[at]; ok {
			return place{d, at}, nil
		}
	}
	parentPath, name := path.Split(p)
	parent, err := t.find(strings.TrimSuffix(parentPath, "/"))
	if err != nil {
		return place{}, err
	}
	at, err := t.step(parent, name)
	if err == nil {
		t.real[p] = at.path
	}
	return at, err
}

// step goes from one folder to the one that name leads to in it.
func (t *tree) step(from place, name string) (place, error) {
	at := join(from.path, name)
	if d, ok := t.open[at]; ok {
		return place{d, at}, nil
	}
	d, err := from.OpenDir(name)
	if errors.Is(err, dirfd.ErrNotExist) && t.makeDir != nil {
		if err = t.makeDir(from, name); err == nil {
			d, err = from.OpenDir(name)
		}
	}
	if errors.Is(err, dirfd.ErrNotDir) || errors.Is(err, dirfd.ErrLoop) {
		return t.detour(from, name)
	}
	if err != nil {
		return place{}, err
	}
	t.open[at] = d
	t.real[at] = at
	return place{d, at}, nil
}

// detour is step where name is there but is no folder.
func (t *tree) detour(from place, name string) (place, error) {
	st, err := from.Lstat(name)
	switch {
	case err != nil:
		return place{}, err
	case st.IsSymlink():
		return t.follow(from, name)
	case st.IsWhiteout() && t.makeDir != nil:
		// The folder below is hidden and one of this layer takes its place.
		if err := from.Unlink(name); err != nil {
			return place{}, err
		}
		if err := t.makeDir(from, name); err != nil {
			return place{}, err
		}
		at, err := t.step(from, name)
		if err != nil {
			return place{}, err
		}
		return at, at.Self().Setxattr(opaqueXattr, []byte("y"))
	}
	return place{}, errkind.Errorf(errkind.Invalid, "%s is no folder", join(from.path, name))
}

// follow goes where the symbolic link name in from says, inside the root.
func (t *tree) follow(from place, name string) (place, error) {
	if t.links++; t.links > maxLinks {
		return place{}, errkind.Errorf(errkind.Invalid, "%s: more than %d symbolic links", join(from.path, name), maxLinks)
	}
	target, err := from.Readlink(name)
	if err != nil {
		return place{}, err
	}
	at := from
	if strings.HasPrefix(target, "/") {
		at = place{t.root, ""}
	}
	for part := range strings.SplitSeq(target, "/") {
		switch part {
		case "", ".":
			continue
		case "..":
			at, err = t.find(parentOf(at.path))
		default:
			at, err = t.step(at, part)
		}
		if err != nil {
			return place{}, err
		}
		if strings.Count(at.path, "/") >= maxDepth {
			return place{}, errkind.Errorf(errkind.Invalid, "%s: it leads more than %d folders deep", join(from.path, name), maxDepth)
		}
	}
	return at, nil
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// parentOf is the folder that holds p; that of the root is the root.
func parentOf(p string) string {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i]
	}
	return ""
}
