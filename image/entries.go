package image

import (
	"archive/tar"
	"errors"
	"io"
	"math"
	"path"
	"strings"
	"time"

	"github.com/cridproject/crid/image/dirfd"
	"github.com/cridproject/crid/internal/errkind"
)

// attributes are what a file has beside its contents.
type attributes struct {
	uid, gid     uint32
	mode         uint32 // permission, setuid, setgid and sticky bits
	atime, mtime time.Time
	xattrs       map[string]string
}

func attributesOf(h *tar.Header) (attributes, error) {
	// The largest number means "leave as it is" to chown: the file would be root's.
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) >= math.MaxUint32 || int64(h.Gid) >= math.MaxUint32 {
		return attributes{}, errkind.Errorf(errkind.Invalid, "no owner has the number %d:%d", h.Uid, h.Gid)
	}
	a := attributes{
		uid: uint32(h.Uid), gid: uint32(h.Gid), mode: uint32(h.Mode) & 0o7777,
		atime: h.AccessTime, mtime: h.ModTime,
	}
	if a.atime.IsZero() {
		a.atime = a.mtime
	}
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, paxXattr)
		// overlayfs would obey its own attributes, which are trusted ones, and a label of
		// the machine that built the image means nothing here.
		if !ok || strings.HasPrefix(name, trustedXattrs) || name == selinuxXattr {
			continue
		}
		if a.xattrs == nil {
			a.xattrs = make(map[string]string)
		}
		if a.xattrs[name] = value; len(a.xattrs) > maxXattrs {
			return attributes{}, errkind.Errorf(errkind.Invalid, "it has more than %d extended attributes", maxXattrs)
		}
	}
	return a, nil
}

// ownedByMaker reports whether a new file of the daemon, which is root, has the
// right owner: folders get their setgid bits only at the end, so it always has
// root's group.
func (a *attributes) ownedByMaker() bool { return a.uid == 0 && a.gid == 0 }

func (a *attributes) setOnFile(f *dirfd.File) error {
	if !a.ownedByMaker() {
		if err := f.Chown(a.uid, a.gid); err != nil {
			return err
		}
	}
	if err := f.Chmod(a.mode); err != nil {
		return err
	}
	return a.eachXattr(f.Setxattr)
}

func (a *attributes) setOnDir(d *dirfd.Dir) error {
	if err := a.setOnFile(d.Self()); err != nil {
		return err
	}
	return d.SetTimes(a.atime, a.mtime)
}

// setOnName is for what cannot be opened.
func (a *attributes) setOnName(d *dirfd.Dir, name string, hasMode bool) error {
	if !a.ownedByMaker() {
		if err := d.Chown(name, a.uid, a.gid); err != nil {
			return err
		}
	}
	if hasMode {
		if err := d.Chmod(name, a.mode); err != nil {
			return err
		}
	}
	err := a.eachXattr(func(attr string, value []byte) error { return d.Setxattr(name, attr, value) })
	if err != nil {
		return err
	}
	return d.Chtimes(name, a.atime, a.mtime)
}

// eachXattr leaves out what the file system cannot keep, as Docker does: an image
// built elsewhere runs without its user attributes, but not without its
// capabilities.
func (a *attributes) eachXattr(set func(name string, value []byte) error) error {
	for name, value := range a.xattrs {
		err := set(name, []byte(value))
		if err == nil {
			continue
		}
		optional := !strings.HasPrefix(name, "security.")
		if optional && (errors.Is(err, dirfd.ErrNotSup) || errors.Is(err, dirfd.ErrPerm)) {
			continue
		}
		return errkind.Errorf(errkind.Other, "set extended attribute %s: %w", name, err)
	}
	return nil
}

// file writes a regular file.
func (u *unpacker) file(tr *tar.Reader, parent place, name string, h *tar.Header) error {
	a, err := attributesOf(h)
	if err != nil {
		return err
	}
	if u.bytes += h.Size; h.Size < 0 || u.bytes > u.limits.Bytes {
		return errTooLarge
	}
	var f *dirfd.File
	err = u.place(parent, name, func() (err error) {
		f, err = parent.Create(name, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	if err := errors.Join(u.fill(f, tr, h, join(parent.path, name)), a.setOnFile(f), f.Close()); err != nil {
		return err
	}
	u.count(h.Size)
	return parent.Chtimes(name, a.atime, a.mtime)
}

func (u *unpacker) fill(f *dirfd.File, tr *tar.Reader, h *tar.Header, at string) error {
	if err := u.skeleton.entry(itemEntry, at); err != nil {
		return err
	}
	if isSparse(h) {
		return u.fillSparse(f, tr, h.Size)
	}
	if err := u.skeleton.begin(); err != nil {
		return err
	}
	for left := h.Size; left > 0; {
		n, err := io.ReadFull(tr, u.buf[:min(left, int64(len(u.buf)))])
		if err != nil {
			return readError(noEOF(err))
		}
		if _, err := f.Write(u.buf[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	return u.skeleton.end()
}

// fillSparse leaves holes where the file has them: tar reads them as zeros.
func (u *unpacker) fillSparse(f *dirfd.File, tr *tar.Reader, size int64) error {
	for left := size; left > 0; {
		n, err := io.ReadFull(tr, u.buf[:min(left, int64(len(u.buf)))])
		if err != nil {
			return readError(noEOF(err))
		}
		for rest := u.buf[:n]; len(rest) > 0; {
			block := rest[:min(blockSize, len(rest))]
			if allZero(block) {
				err = f.Skip(int64(len(block)))
			} else {
				_, err = f.Write(block)
			}
			if err != nil {
				return err
			}
			rest = rest[len(block):]
		}
		left -= int64(n)
	}
	return f.Truncate(size)
}

func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

func allZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// noEOF is for a place where the stream must not end.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (u *unpacker) symlink(parent place, name string, h *tar.Header) error {
	a, err := attributesOf(h)
	if err != nil {
		return err
	}
	if h.Linkname == "" {
		return errkind.Errorf(errkind.Invalid, "a symbolic link to nowhere")
	}
	err = u.place(parent, name, func() error { return parent.Symlink(h.Linkname, name) })
	if err != nil {
		return err
	}
	u.count(0)
	return errors.Join(a.setOnName(parent.Dir, name, false), u.skeleton.entry(itemEntry, join(parent.path, name)))
}

// hardLink gives a file of this layer a further name. Its attributes are those
// of the file.
func (u *unpacker) hardLink(parent place, name, target string) error {
	to, err := cleanName(target)
	if err != nil || to == "" {
		return errkind.Errorf(errkind.Invalid, "hard link to %q, which is not in the layer", target)
	}
	// The target's folder must be there already: nothing is made for it.
	make := u.makeDir
	u.makeDir = nil
	dir, err := u.dir(parentOf(to))
	u.makeDir = make
	if err == nil {
		base := path.Base(to)
		at := join(parent.path, name)
		if dir.path == parent.path && base == name {
			return nil
		}
		if strings.HasPrefix(dir.path+"/", at+"/") {
			return errkind.Errorf(errkind.Invalid, "hard link to %q, which would be in the link itself", target)
		}
		err = u.place(parent, name, func() error { return parent.Link(dir.Dir, base, name) })
		if err == nil {
			err = u.skeleton.entry(itemEntry, at)
		}
	}
	if errors.Is(err, dirfd.ErrNotExist) {
		return errkind.Errorf(errkind.Invalid, "hard link to %q, which is not in the layer", target)
	}
	return err
}

func (u *unpacker) node(parent place, name string, h *tar.Header) error {
	a, err := attributesOf(h)
	if err != nil {
		return err
	}
	var kind uint32
	switch h.Typeflag {
	case tar.TypeChar:
		kind = dirfd.TypeChar
	case tar.TypeBlock:
		kind = dirfd.TypeBlock
	case tar.TypeFifo:
		kind = dirfd.TypeFifo
		h.Devmajor, h.Devminor = 0, 0
	}
	if h.Devmajor < 0 || h.Devminor < 0 || h.Devmajor > math.MaxUint32 || h.Devminor > math.MaxUint32 {
		return errkind.Errorf(errkind.Invalid, "there is no device %d:%d", h.Devmajor, h.Devminor)
	}
	err = u.place(parent, name, func() error {
		return parent.Mknod(name, kind|0o600, uint32(h.Devmajor), uint32(h.Devminor))
	})
	if err != nil {
		return err
	}
	u.count(0)
	return errors.Join(a.setOnName(parent.Dir, name, true), u.skeleton.entry(itemEntry, join(parent.path, name)))
}

func (u *unpacker) count(size int64) {
	u.made.Inodes++
	u.made.Bytes += uint64(size)
	u.made.Disk += onDisk(uint64(size))
}

// onDisk is the space that a file of size bytes takes.
func onDisk(size uint64) uint64 { return (size + blockSize - 1) / blockSize * blockSize }

// place makes what make makes. When the layer has had something else of that name
// before, the later one counts.
func (u *unpacker) place(parent place, name string, make func() error) error {
	err := make()
	if !errors.Is(err, dirfd.ErrExist) {
		return err
	}
	if err := u.remove(parent, name); err != nil {
		return err
	}
	return make()
}

// remove removes name with all that is in it. The figures keep it, as the skeleton
// keeps the files. parent stays open.
func (u *unpacker) remove(parent place, name string) error {
	st, err := parent.Lstat(name)
	if err != nil {
		return err
	}
	u.made.Replaced = true
	at := join(parent.path, name)
	if st.IsSymlink() {
		// Paths through the link now lead elsewhere.
		u.real = map[string]string{"": ""}
	}
	if !st.IsDir() {
		return u.skeleton.replace(parent, name, st)
	}
	u.forget(at)
	for p, d := range u.open {
		if p == at || strings.HasPrefix(p, at+"/") {
			d.Close()
			delete(u.open, p)
		}
	}
	u.real = map[string]string{"": ""}
	return u.skeleton.replace(parent, name, st)
}
