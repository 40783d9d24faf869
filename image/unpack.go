package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/cridproject/crid/image/dirfd"
	"github.com/cridproject/crid/internal/errkind"
)

// Limits are what a layer may ask of the node at most. A layer beyond them is
// refused: it is broken or a bomb.
type Limits struct {
	Bytes   int64 // of one layer, unpacked; 0 means what is free on the file system
	Entries int64 // files, folders and links of one layer; 0 means 4,000,000

	notes int64 // bytes remembered of a layer's folders; 0 means maxNotes
}

const (
	defaultEntries = 4_000_000
	maxPath        = 4096 // bytes of a path in a layer, as of the kernel's
	maxDepth       = 512  // folders in one path; each may be an open descriptor
	maxXattrs      = 256  // extended attributes of one file

	// maxNotes bounds what is remembered of all folders until the end. A million of
	// folders take half of it, and an archive of a few KiB may ask for any amount.
	maxNotes = 256 << 20
	noteSize = 192 // bytes of one note in memory, without its texts
)

// Contents says what unpacking has made, for accounts kept without a walk.
type Contents struct {
	Bytes  uint64 // sum of the sizes of the files
	Disk   uint64 // space they take, rounded up to blocks
	Inodes uint64
	// Implied are folders that the archive has files in but no entry for. Their
	// attributes are those of the folder in the layer below, see dirs.go.
	Implied []string
	// Replaced says that files were unpacked and then replaced by others of the
	// archive. The figures count both.
	Replaced bool
}

const (
	whiteoutPrefix = ".wh."
	aufsPrefix     = ".wh..wh."
	opaqueName     = ".wh..wh..opq"
	opaqueXattr    = "trusted.overlay.opaque"
	trustedXattrs  = "trusted."
	selinuxXattr   = "security.selinux"
	paxXattr       = "SCHILY.xattr."
	blockSize      = 4096
)

// unpacker turns one layer archive into a folder in overlayfs's own form. It
// knows nothing of the layers below, so that layers can be unpacked in any
// order and shared by images.
type unpacker struct {
	tree
	limits  Limits
	bytes   int64 // of files so far, holes counted
	entries int64
	buf     []byte
	// skeleton is written beside; nil for none.
	skeleton *skeletonWriter

	attrs   map[string]attributes // of folders with an entry; set at the end
	implied map[string]struct{}
	notes   int64 // bytes of attrs and implied, those that were dropped counted
	made    Contents
}

// unpack reads the archive r up to its end mark into the empty folder dir. If r is
// a skeletonWriter it is told what becomes of the entries. unpack follows no link out
// of dir and creates nothing outside it. When it fails the folder holds an unknown part
// of the layer and must be thrown away.
//
// A broken archive is Invalid. The file's owner, mode, times and extended
// attributes are as in the archive, whatever the umask.
func unpack(ctx context.Context, dir string, r io.Reader, limits Limits) (Contents, error) {
	if limits.Entries == 0 {
		limits.Entries = defaultEntries
	}
	if limits.notes == 0 {
		limits.notes = maxNotes
	}
	if limits.Bytes == 0 {
		free, err := dirfd.Free(dir)
		if err != nil {
			return Contents{}, err
		}
		limits.Bytes = free
	}
	root, err := dirfd.Open(dir)
	if err != nil {
		return Contents{}, err
	}
	u := &unpacker{
		tree:    newTree(root),
		limits:  limits,
		buf:     make([]byte, 256<<10),
		attrs:   make(map[string]attributes),
		implied: make(map[string]struct{}),
	}
	u.makeDir = u.imply
	u.skeleton, _ = r.(*skeletonWriter)
	defer u.close()
	if err := u.all(ctx, tar.NewReader(&boundedReader{r: r, left: limits.Bytes})); err != nil {
		return Contents{}, err
	}
	if err := u.finish(); err != nil {
		return Contents{}, err
	}
	return u.made, nil
}

func (u *unpacker) all(ctx context.Context, tr *tar.Reader) error {
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return readError(err)
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if u.entries++; u.entries > u.limits.Entries {
			return errkind.Errorf(errkind.Invalid, "the layer has more than %d entries", u.limits.Entries)
		}
		if err := u.entry(tr, h); err != nil {
			return entryError(h.Name, err)
		}
	}
}

// readError says that the archive, not the disk, is at fault, unless the
// stream below has said what is.
func readError(err error) error {
	if errkind.Of(err) == errkind.Other && (errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF)) {
		return corrupt("tar", err)
	}
	return err
}

func entryError(name string, err error) error {
	if len(name) > 256 {
		name = name[:256] + "..."
	}
	return fmt.Errorf("unpack %q: %w", name, err)
}

// entry carries out one entry of the archive.
func (u *unpacker) entry(tr *tar.Reader, h *tar.Header) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	u.trim()
	if name == "" {
		if h.Typeflag != tar.TypeDir {
			return errkind.Errorf(errkind.Invalid, "the layer's root is not a folder")
		}
		return u.explicit("", u.root, h)
	}
	parentPath, base := path.Split(name)
	if base == opaqueName {
		return u.opaque(path.Clean("/" + parentPath)[1:])
	}
	if strings.HasPrefix(base, aufsPrefix) || strings.HasPrefix(parentPath, aufsPrefix) {
		return nil // notes that the AUFS driver kept for itself
	}
	parent, err := u.dir(strings.TrimSuffix(parentPath, "/"))
	if err != nil {
		return err
	}
	if removed, ok := strings.CutPrefix(base, whiteoutPrefix); ok {
		return u.whiteout(parent, removed)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return u.folder(parent, base, h)
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return u.file(tr, parent, base, h)
	case tar.TypeSymlink:
		return u.symlink(parent, base, h)
	case tar.TypeLink:
		return u.hardLink(parent, base, h.Linkname)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return u.node(parent, base, h)
	}
	return errkind.Errorf(errkind.Invalid, "tar entries of type %q are not supported", h.Typeflag)
}

// cleanName is name relative to the layer's root, "" for the root itself. An
// absolute name is taken from the root; one that goes up is refused.
func cleanName(name string) (string, error) {
	if len(name) > maxPath {
		return "", errkind.Errorf(errkind.Invalid, "its name has %d bytes, more than %d", len(name), maxPath)
	}
	depth := 0
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", errkind.Errorf(errkind.Invalid, "its name leads out of its folder")
		}
		if len(part) > 255 {
			return "", errkind.Errorf(errkind.Invalid, "a part of its name has %d bytes, more than 255", len(part))
		}
		depth++
	}
	if depth > maxDepth {
		return "", errkind.Errorf(errkind.Invalid, "its name is more than %d folders deep", maxDepth)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", errkind.Errorf(errkind.Invalid, "its name holds a zero byte")
	}
	return path.Clean("/" + name)[1:], nil
}

// imply makes a folder that has no entry, or not yet.
func (u *unpacker) imply(parent place, name string) error {
	if err := parent.Mkdir(name, 0o700); err != nil {
		return err
	}
	u.made.Inodes++
	u.made.Disk += blockSize
	at := join(parent.path, name)
	u.implied[at] = struct{}{}
	return u.noted(len(at))
}

// noted counts what is remembered of a folder, texts of so many bytes.
func (u *unpacker) noted(texts int) error {
	if u.notes += noteSize + int64(texts); u.notes > u.limits.notes {
		return errkind.Errorf(errkind.Invalid, "the names and extended attributes of the layer's folders take more than %d MiB", u.limits.notes>>20)
	}
	return nil
}

// folder makes a folder with an entry. Its attributes wait until the end: what
// is made in it changes its time, and a setgid bit would rub off.
func (u *unpacker) folder(parent place, name string, h *tar.Header) error {
	at := join(parent.path, name)
	err := parent.Mkdir(name, 0o700)
	hides := false
	if errors.Is(err, dirfd.ErrExist) {
		var st dirfd.Stat
		if st, err = parent.Lstat(name); err != nil {
			return err
		}
		if st.IsDir() {
			return u.explicitAt(parent, name, h)
		}
		// A whiteout and a folder in one layer: the folder below is gone and this
		// one is new.
		hides = st.IsWhiteout()
		if err := u.remove(parent, name); err != nil {
			return err
		}
		err = parent.Mkdir(name, 0o700)
	}
	if err != nil {
		return err
	}
	u.made.Inodes++
	u.made.Disk += blockSize
	if hides {
		if err := u.opaque(at); err != nil {
			return err
		}
	}
	return u.explicitAt(parent, name, h)
}

func (u *unpacker) explicitAt(parent place, name string, h *tar.Header) error {
	d, err := u.dir(join(parent.path, name))
	if err != nil {
		return err
	}
	return u.explicit(d.path, d.Dir, h)
}

// explicit notes the attributes of a folder.
func (u *unpacker) explicit(at string, d *dirfd.Dir, h *tar.Header) error {
	a, err := attributesOf(h)
	if err != nil {
		return err
	}
	texts := len(at)
	for name, value := range a.xattrs {
		texts += len(name) + len(value)
	}
	if err := u.noted(texts); err != nil {
		return err
	}
	delete(u.implied, at)
	u.attrs[at] = a
	return u.skeleton.entry(itemEntry, at)
}

// opaque hides what the layers below have in the folder.
func (u *unpacker) opaque(at string) error {
	d, err := u.dir(at)
	if err != nil {
		return err
	}
	if err := u.skeleton.entry(itemOpaque, d.path); err != nil {
		return err
	}
	return d.Self().Setxattr(opaqueXattr, []byte("y"))
}

// whiteout hides a file of the layers below. It says nothing about this layer:
// a file that is in it as well stays, whichever comes first.
func (u *unpacker) whiteout(parent place, name string) error {
	if name == "" || name == "." || name == ".." {
		return errkind.Errorf(errkind.Invalid, "a whiteout of nothing")
	}
	if err := u.skeleton.entry(itemWhiteout, join(parent.path, name)); err != nil {
		return err
	}
	err := parent.Mknod(name, dirfd.TypeChar, 0, 0)
	if !errors.Is(err, dirfd.ErrExist) {
		u.made.Inodes++
		return err
	}
	st, err := parent.Lstat(name)
	if err == nil && st.IsDir() {
		return u.opaque(join(parent.path, name))
	}
	return err
}

// finish sets the attributes of the folders.
func (u *unpacker) finish() error {
	for at := range u.implied {
		d, err := u.dir(at)
		if err != nil {
			return entryError(at, err)
		}
		if err := d.Self().Chmod(0o755); err != nil {
			return entryError(at, err)
		}
		u.made.Implied = append(u.made.Implied, at)
		u.trim()
	}
	if _, ok := u.attrs[""]; !ok {
		u.made.Implied = append(u.made.Implied, "")
		if err := u.root.Self().Chmod(0o755); err != nil {
			return err
		}
	}
	// The innermost first: a folder may forbid its owner to look into it.
	for _, at := range slices.Backward(slices.Sorted(maps.Keys(u.attrs))) {
		a := u.attrs[at]
		d, err := u.dir(at)
		if err == nil {
			err = a.setOnDir(d.Dir)
		}
		if err != nil {
			return entryError(at, err)
		}
		u.trim()
	}
	return nil
}

// forget drops the notes on a folder that has been replaced, and on all in it.
func (u *unpacker) forget(at string) {
	below := at + "/"
	for p := range u.attrs {
		if p == at || strings.HasPrefix(p, below) {
			delete(u.attrs, p)
		}
	}
	for p := range u.implied {
		if p == at || strings.HasPrefix(p, below) {
			delete(u.implied, p)
		}
	}
}

// boundedReader fails, rather than ends, after too many bytes.
type boundedReader struct {
	r    io.Reader
	left int64
}

func (b *boundedReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errTooLarge
	}
	return n, err
}

var errTooLarge = errkind.Errorf(errkind.Invalid, "the layer needs more space than it may have or than the disk has left")
