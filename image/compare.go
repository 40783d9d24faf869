package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/cridproject/crid/image/dirfd"
)

// file compares a file, link or node with the header it was made from. The
// contents of a regular file are compared while the archive is read.
func (v *verifier) file(tr *tar.Reader, h *tar.Header, parent place, name string, st dirfd.Stat) error {
	kind, err := kindOf(h)
	if err != nil {
		return err
	}
	if st.Mode&dirfd.TypeMask != kind {
		return fmt.Errorf("it is a %s, not a %s", kindName(st.Mode), kindName(kind))
	}
	a, err := attributesOf(h)
	if err != nil {
		return err
	}
	var wrong []error
	switch kind {
	case dirfd.TypeSymlink:
		target, err := parent.Readlink(name)
		if err == nil && target != h.Linkname {
			err = fmt.Errorf("it leads to %q, not to %q", target, h.Linkname)
		}
		wrong = append(wrong, err)
		a.mode = st.Mode & 0o7777 // a link has none of its own
	case dirfd.TypeRegular:
		if st.Size != h.Size {
			wrong = append(wrong, fmt.Errorf("it has %d bytes, not %d", st.Size, h.Size))
		} else if isSparse(h) {
			wrong = append(wrong, compareContents(tr, parent, name))
		}
	case dirfd.TypeChar, dirfd.TypeBlock:
		if major, minor := st.Device(); int64(major) != h.Devmajor || int64(minor) != h.Devminor {
			wrong = append(wrong, fmt.Errorf("it is the device %d:%d, not %d:%d", major, minor, h.Devmajor, h.Devminor))
		}
	}
	has, err := parent.Xattrs(name)
	wrong = append(wrong, a.compare(st), err, a.compareXattrs(has, kind == dirfd.TypeRegular && parent.Self().TakesXattrs()))
	return joined(wrong)
}

// joined is one line of the errors that there are.
func joined(errs []error) error {
	var text []string
	for _, err := range errs {
		if err != nil {
			text = append(text, err.Error())
		}
	}
	if len(text) == 0 {
		return nil
	}
	return errors.New(strings.Join(text, "; "))
}

func kindOf(h *tar.Header) (uint32, error) {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return dirfd.TypeRegular, nil
	case tar.TypeSymlink:
		return dirfd.TypeSymlink, nil
	case tar.TypeChar:
		return dirfd.TypeChar, nil
	case tar.TypeBlock:
		return dirfd.TypeBlock, nil
	case tar.TypeFifo:
		return dirfd.TypeFifo, nil
	}
	return 0, fmt.Errorf("a tar entry of type %q", h.Typeflag)
}

func kindName(mode uint32) string {
	switch mode & dirfd.TypeMask {
	case dirfd.TypeRegular:
		return "regular file"
	case dirfd.TypeSymlink:
		return "symbolic link"
	case dirfd.TypeChar:
		return "character device"
	case dirfd.TypeBlock:
		return "block device"
	case dirfd.TypeFifo:
		return "fifo"
	case dirfd.TypeDir:
		return "folder"
	}
	return fmt.Sprintf("file of type %#o", mode&dirfd.TypeMask)
}

// compareContents compares a file that is on disk in another form than in the
// archive.
func compareContents(want io.Reader, parent place, name string) error {
	f, err := parent.OpenFile(name)
	if err != nil {
		return err
	}
	defer f.Close()
	a, b := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := fill(want, a)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		m, fileErr := fill(f, b[:n])
		if fileErr != nil && !errors.Is(fileErr, io.EOF) {
			return fileErr
		}
		if !bytes.Equal(a[:n], b[:m]) {
			return errors.New("its contents have changed")
		}
		if err != nil {
			return nil
		}
	}
}

// compare says how a file's attributes differ from what they should be, but for
// the extended ones.
func (a *attributes) compare(st dirfd.Stat) error {
	var wrong []error
	if st.UID != a.uid || st.GID != a.gid {
		wrong = append(wrong, fmt.Errorf("its owner is %d:%d, not %d:%d", st.UID, st.GID, a.uid, a.gid))
	}
	if st.Mode&0o7777 != a.mode {
		wrong = append(wrong, fmt.Errorf("its mode is %04o, not %04o", st.Mode&0o7777, a.mode))
	}
	if !sameTime(a.mtime, st.MTime) {
		wrong = append(wrong, fmt.Errorf("it was changed at %s, not at %s", st.MTime.UTC().Format(time.RFC3339Nano), a.mtime.UTC().Format(time.RFC3339Nano)))
	}
	return joined(wrong)
}

// sameTime allows for what file systems cannot keep: parts of a second (ext4 with
// small inodes), or times before 1901 and after 2038.
func sameTime(want, has time.Time) bool {
	sec := want.Unix()
	if sec != int64(int32(sec)) {
		return true
	}
	return sec == has.Unix() && (has.Nanosecond() == 0 || has.Nanosecond() == want.Nanosecond())
}

// compareXattrs compares the extended attributes that layers have. Optional ones
// may be missing from a file that cannot have them.
func (a *attributes) compareXattrs(has map[string][]byte, takesAll bool) error {
	var wrong []error
	for name, want := range a.xattrs {
		got, ok := has[name]
		switch {
		case ok && string(got) != want:
			wrong = append(wrong, fmt.Errorf("its extended attribute %s has changed", name))
		case !ok && (takesAll || strings.HasPrefix(name, "security.")):
			wrong = append(wrong, fmt.Errorf("its extended attribute %s is missing", name))
		}
	}
	for name := range has {
		if _, ok := a.xattrs[name]; !ok && !ofNode(name) {
			wrong = append(wrong, fmt.Errorf("it has the extended attribute %s, which the archive has not", name))
		}
	}
	slices.SortFunc(wrong, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return joined(wrong)
}

// ofNode reports whether an attribute is not the layer's but overlayfs's or the
// node's security modules'.
func ofNode(name string) bool {
	switch name {
	case selinuxXattr, "security.ima", "security.evm", "security.apparmor", "security.SMACK64":
		return true
	}
	return strings.HasPrefix(name, trustedXattrs)
}

// compareDir compares a folder. That of one without an entry has any time.
func (a *attributes) compareDir(d *dirfd.Dir, anyTime bool) error {
	st, err := d.Self().Stat()
	if err != nil {
		return err
	}
	want := *a
	if anyTime {
		want.mtime = st.MTime
	}
	has, err := d.Self().Xattrs()
	return joined([]error{want.compare(st), err, a.compareXattrs(has, d.Self().TakesXattrs())})
}
