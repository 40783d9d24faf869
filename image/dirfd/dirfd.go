// Package dirfd works on files by an open folder and a single name.
//
// It is what package image unpacks layers and looks into them with: a name
// never holds a slash and a symbolic link is never followed, so no operation
// can leave the folder that was opened, whatever the archive says and whatever
// changes beside it. A path is walked by opening one folder after the other,
// which also works where openat2 is missing or forbidden.
//
// It is apart from internal/sys because it is the unpacker's inner loop: plain
// descriptors, no *os.File and no allocation per call.
package dirfd

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Errors a caller looks for with errors.Is.
var (
	ErrExist    = unix.EEXIST
	ErrNotExist = unix.ENOENT
	ErrNotDir   = unix.ENOTDIR
	ErrLoop     = unix.ELOOP
	ErrNotSup   = unix.ENOTSUP
	ErrPerm     = unix.EPERM
)

// The types of files, as in Stat.Mode.
const (
	TypeMask    = unix.S_IFMT
	TypeDir     = unix.S_IFDIR
	TypeRegular = unix.S_IFREG
	TypeSymlink = unix.S_IFLNK
	TypeChar    = unix.S_IFCHR
	TypeBlock   = unix.S_IFBLK
	TypeFifo    = unix.S_IFIFO
)

const openFlags = unix.O_CLOEXEC | unix.O_NOFOLLOW

// Dir is an open folder. Its methods may be called concurrently, but for Close.
type Dir struct{ fd int }

// Stat is what Lstat reports.
type Stat struct {
	Mode uint32 // type and permission bits
	Rdev uint64
	UID  uint32
	GID  uint32
	Size int64
	// Inode is the file's number on its file system.
	Inode uint64
	// MTime is when the contents were last changed.
	MTime time.Time
}

// IsDir and the like say what type of file it is.
func (s Stat) IsDir() bool { return s.Mode&TypeMask == TypeDir }

// IsSymlink reports whether it is a symbolic link.
func (s Stat) IsSymlink() bool { return s.Mode&TypeMask == TypeSymlink }

// IsRegular reports whether it is a regular file.
func (s Stat) IsRegular() bool { return s.Mode&TypeMask == TypeRegular }

// IsWhiteout reports whether it is overlayfs's mark of a removed file.
func (s Stat) IsWhiteout() bool { return s.Mode&TypeMask == TypeChar && s.Rdev == 0 }

// Open opens the folder at path, which is trusted: links in it are followed.
func Open(path string) (*Dir, error) {
	fd, err := retry(func() (int, error) {
		return unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return &Dir{fd}, nil
}

// Close closes the folder.
func (d *Dir) Close() error { return unix.Close(d.fd) }

// openat opens what has the plain name in d, and follows no link.
func (d *Dir) openat(name string, flags int, perm uint32) (int, error) {
	if err := check(name); err != nil {
		return -1, err
	}
	return retry(func() (int, error) { return unix.Openat(d.fd, name, flags|openFlags, perm) })
}

// OpenDir opens the folder name in d. A symbolic link is ErrNotDir or ErrLoop.
func (d *Dir) OpenDir(name string) (*Dir, error) {
	fd, err := d.openat(name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	return &Dir{fd}, nil
}

// Create makes the file name, which must not exist, and opens it for writing.
func (d *Dir) Create(name string, perm uint32) (*File, error) {
	fd, err := d.openat(name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, perm)
	if err != nil {
		return nil, err
	}
	return &File{fd}, nil
}

// OpenFile opens the regular file name for reading. It never blocks, as the
// open of a fifo would.
func (d *Dir) OpenFile(name string) (*File, error) {
	fd, err := d.openat(name, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	f := &File{fd}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&TypeMask != TypeRegular {
		return nil, errors.Join(err, f.Close(), fmt.Errorf("%s is not a regular file", name))
	}
	return f, nil
}

// Mkdir makes the folder name.
func (d *Dir) Mkdir(name string, perm uint32) error {
	if err := check(name); err != nil {
		return err
	}
	return unix.Mkdirat(d.fd, name, perm)
}

// Symlink makes the symbolic link name that says target.
func (d *Dir) Symlink(target, name string) error {
	if err := check(name); err != nil {
		return err
	}
	return unix.Symlinkat(target, d.fd, name)
}

// Link gives the file oldName of old the further name name in d.
func (d *Dir) Link(old *Dir, oldName, name string) error {
	if err := errors.Join(check(oldName), check(name)); err != nil {
		return err
	}
	return unix.Linkat(old.fd, oldName, d.fd, name, 0)
}

// Mknod makes a device node or a fifo; mode holds the type.
func (d *Dir) Mknod(name string, mode uint32, major, minor uint32) error {
	if err := check(name); err != nil {
		return err
	}
	return unix.Mknodat(d.fd, name, mode, int(unix.Mkdev(major, minor)))
}

// Lstat describes name itself, be it a link.
func (d *Dir) Lstat(name string) (Stat, error) {
	if err := check(name); err != nil {
		return Stat{}, err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(d.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return Stat{}, err
	}
	return statOf(&st), nil
}

func statOf(st *unix.Stat_t) Stat {
	return Stat{
		Mode: st.Mode, Rdev: st.Rdev, UID: st.Uid, GID: st.Gid, Size: st.Size, Inode: st.Ino,
		MTime: time.Unix(st.Mtim.Unix()),
	}
}

// Device is the numbers of a device node.
func (s Stat) Device() (major, minor uint32) { return unix.Major(s.Rdev), unix.Minor(s.Rdev) }

// Readlink returns what the symbolic link name says.
func (d *Dir) Readlink(name string) (string, error) {
	if err := check(name); err != nil {
		return "", err
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(d.fd, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// Unlink removes the file name.
func (d *Dir) Unlink(name string) error {
	if err := check(name); err != nil {
		return err
	}
	return unix.Unlinkat(d.fd, name, 0)
}

// Rmdir removes the empty folder name.
func (d *Dir) Rmdir(name string) error {
	if err := check(name); err != nil {
		return err
	}
	return unix.Unlinkat(d.fd, name, unix.AT_REMOVEDIR)
}

// Rename moves name to the folder to, as newName. What has that name there is
// replaced, if it is a file.
func (d *Dir) Rename(name string, to *Dir, newName string) error {
	if err := errors.Join(check(name), check(newName)); err != nil {
		return err
	}
	return unix.Renameat(d.fd, name, to.fd, newName)
}

// Names lists what is in the folder, in no order.
func (d *Dir) Names() ([]string, error) {
	fd, err := retry(func() (int, error) {
		return unix.Openat(d.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|openFlags, 0)
	})
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var names []string
	for buf := make([]byte, 32<<10); ; {
		n, err := retry(func() (int, error) { return unix.ReadDirent(fd, buf) })
		if err != nil || n <= 0 {
			return names, err
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}

// RemoveAll removes name with all that is in it.
func (d *Dir) RemoveAll(name string) error {
	if err := check(name); err != nil {
		return err
	}
	return os.RemoveAll(d.proc(name))
}

// proc is a path to name for calls that take no folder. The folder's entry in
// /proc is a link that only the kernel can make point elsewhere.
func (d *Dir) proc(name string) string { return "/proc/self/fd/" + strconv.Itoa(d.fd) + "/" + name }

// Chown sets the owner of name itself, be it a link.
func (d *Dir) Chown(name string, uid, gid uint32) error {
	if err := check(name); err != nil {
		return err
	}
	return unix.Fchownat(d.fd, name, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW)
}

// Chmod sets the permission bits of name, which must not be a symbolic link.
func (d *Dir) Chmod(name string, perm uint32) error {
	if err := check(name); err != nil {
		return err
	}
	return unix.Fchmodat(d.fd, name, perm, 0)
}

// Chtimes sets the times of name itself.
func (d *Dir) Chtimes(name string, atime, mtime time.Time) error {
	if err := check(name); err != nil {
		return err
	}
	return unix.UtimesNanoAt(d.fd, name, []unix.Timespec{timespec(atime), timespec(mtime)}, unix.AT_SYMLINK_NOFOLLOW)
}

// Setxattr sets an extended attribute of name itself.
func (d *Dir) Setxattr(name, attr string, value []byte) error {
	if err := check(name); err != nil {
		return err
	}
	return unix.Lsetxattr(d.proc(name), attr, value, 0) // setxattrat is of Linux 6.13
}

// File is an open file, or an open folder seen as a file.
type File struct{ fd int }

// Self is d as a file, for its attributes. It is closed with d.
func (d *Dir) Self() *File { return &File{d.fd} }

// Write writes all of p or fails.
func (f *File) Write(p []byte) (int, error) {
	for done := 0; ; {
		n, err := unix.Write(f.fd, p[done:])
		if n > 0 {
			done += n
		}
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return done, err
		case done == len(p):
			return done, nil
		case n == 0:
			return done, unix.EIO
		}
	}
}

// Read is io.Reader's.
func (f *File) Read(p []byte) (int, error) {
	n, err := retry(func() (int, error) { return unix.Read(f.fd, p) })
	if n == 0 && err == nil && len(p) > 0 {
		return 0, io.EOF
	}
	return max(n, 0), err
}

// Truncate sets the file's length; what was not written reads as zeros.
func (f *File) Truncate(size int64) error { return unix.Ftruncate(f.fd, size) }

// Skip moves the place of the next write n bytes on, leaving a hole.
func (f *File) Skip(n int64) error {
	_, err := unix.Seek(f.fd, n, unix.SEEK_CUR)
	return err
}

// Chown sets the owner. It takes away setuid bits and capabilities, so it goes
// before Chmod and Setxattr.
func (f *File) Chown(uid, gid uint32) error { return unix.Fchown(f.fd, int(uid), int(gid)) }

// Chmod sets the permission bits.
func (f *File) Chmod(perm uint32) error { return unix.Fchmod(f.fd, perm) }

// Setxattr sets an extended attribute.
func (f *File) Setxattr(attr string, value []byte) error {
	return unix.Fsetxattr(f.fd, attr, value, 0)
}

// Xattr returns an extended attribute of at most 64 bytes, nil when it is not there.
func (f *File) Xattr(attr string) []byte {
	buf := make([]byte, 64)
	n, err := unix.Fgetxattr(f.fd, attr, buf)
	if err != nil {
		return nil
	}
	return buf[:n]
}

// TakesXattrs reports whether the file system keeps the attributes of users.
func (f *File) TakesXattrs() bool {
	_, err := unix.Fgetxattr(f.fd, "user.x", nil)
	return !errors.Is(err, ErrNotSup)
}

// Xattrs returns all extended attributes.
func (f *File) Xattrs() (map[string][]byte, error) {
	return xattrs(
		func(buf []byte) (int, error) { return unix.Flistxattr(f.fd, buf) },
		func(attr string, buf []byte) (int, error) { return unix.Fgetxattr(f.fd, attr, buf) })
}

// Xattrs returns all extended attributes of name itself.
func (d *Dir) Xattrs(name string) (map[string][]byte, error) {
	if err := check(name); err != nil {
		return nil, err
	}
	path := d.proc(name)
	return xattrs(
		func(buf []byte) (int, error) { return unix.Llistxattr(path, buf) },
		func(attr string, buf []byte) (int, error) { return unix.Lgetxattr(path, attr, buf) })
}

func xattrs(list func([]byte) (int, error), get func(string, []byte) (int, error)) (map[string][]byte, error) {
	size, err := list(nil)
	if err != nil || size == 0 {
		return nil, ignore(err, ErrNotSup)
	}
	names := make([]byte, size)
	if size, err = list(names); err != nil {
		return nil, err
	}
	attrs := make(map[string][]byte)
	for name := range strings.SplitSeq(strings.TrimRight(string(names[:size]), "\x00"), "\x00") {
		n, err := get(name, nil)
		if err != nil {
			return nil, err
		}
		value := make([]byte, n)
		if n, err = get(name, value); err != nil {
			return nil, err
		}
		attrs[name] = value[:n]
	}
	return attrs, nil
}

// SetTimes sets the folder's own times.
func (d *Dir) SetTimes(atime, mtime time.Time) error {
	return unix.UtimesNanoAt(d.fd, ".", []unix.Timespec{timespec(atime), timespec(mtime)}, 0)
}

// Stat describes the open file.
func (f *File) Stat() (Stat, error) {
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return Stat{}, err
	}
	return statOf(&st), nil
}

// Close closes the file.
func (f *File) Close() error { return unix.Close(f.fd) }

func timespec(t time.Time) unix.Timespec {
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}

// check holds names to what the package promises.
func check(name string) error {
	if name == "" || name == "." || name == ".." || strings.IndexByte(name, '/') >= 0 {
		return fmt.Errorf("%q is not the name of a file in a folder", name)
	}
	return nil
}

func retry(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

func ignore(err, harmless error) error {
	if errors.Is(err, harmless) {
		return nil
	}
	return err
}
