package sys

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrNoQuota says that a file system counts nothing by projects. The error around
// it says why, and what helps.
var ErrNoQuota = errors.New("no project quota")

// ProjectQuota is what a file system counts, and limits, by project. A project
// is a number that files inherit from the folder in which they are made; see
// SetProject. The kernel keeps the sums, so that no question walks a tree.
//
// Sources: quotactl(2), quotactl_fd(2), linux/quota.h, linux/dqblk_xfs.h.
type ProjectQuota struct {
	dir      *os.File
	device   string // of the file system, for kernels without quotactl_fd (before 5.14); else ""
	enforced bool
}

// ProjectUsage is what the files of a project take, and may take.
type ProjectUsage struct {
	Bytes, Inodes           uint64 // blocks that are still to be written count
	BytesLimit, InodesLimit uint64 // 0: none
}

const (
	prjQuota = 2 // PRJQUOTA, the third kind beside users' and groups'

	qGetQuota   = 0x800007 // Q_GETQUOTA
	qSetQuota   = 0x800008 // Q_SETQUOTA
	qXGetQStatV = 0x5808   // Q_XGETQSTATV; every file system with quotas answers it

	qifBLimits, qifILimits = 1, 4 // QIF_BLIMITS, QIF_ILIMITS
	quotaBlock             = 1024 // bytes; unit of limits, QIF_DQBLKSIZE

	projectAccounted = 1 << 4 // FS_QUOTA_PDQ_ACCT
	projectEnforced  = 1 << 5 // FS_QUOTA_PDQ_ENFD
)

// dqblk is struct if_dqblk of linux/quota.h.
type dqblk struct {
	bytesHard, bytesSoft   uint64 // in quotaBlock
	bytes                  uint64
	inodesHard, inodesSoft uint64
	inodes                 uint64
	bytesTime, inodesTime  uint64
	valid                  uint32
	_                      uint32
}

// quotaState is struct fs_quota_statv of linux/dqblk_xfs.h.
type quotaState struct {
	version int8 // FS_QSTATV_VERSION1; to be set by who asks
	_       uint8
	flags   uint16
	_       [156]byte
}

// OpenProjectQuota asks the file system that the folder dir is on. Without project
// quota the error is ErrNoQuota; without the privilege to use it, fs.ErrPermission too.
func OpenProjectQuota(dir string) (*ProjectQuota, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	q := &ProjectQuota{dir: f}
	if err := q.probe(dir); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return q, nil
}

func (q *ProjectQuota) probe(dir string) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(q.dir.Fd()), &fs); err != nil {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	// With a descriptor that is none, only a kernel without the call says ENOSYS.
	if _, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, ^uintptr(0), 0, 0, 0, 0, 0); errno == unix.ENOSYS {
		var st unix.Stat_t
		if err := unix.Fstat(int(q.dir.Fd()), &st); err != nil {
			return &os.PathError{Op: "stat", Path: dir, Err: err}
		}
		q.device = BlockDevice(unix.Major(st.Dev), unix.Minor(st.Dev))
	}
	state := quotaState{version: 1}
	err := q.control(qXGetQStatV, 0, unsafe.Pointer(&state))
	if err == nil && state.flags&projectAccounted != 0 {
		q.enforced = state.flags&projectEnforced != 0
		// The state is everybody's to read, sums are not.
		_, err = q.Usage(0)
		if err == nil {
			return nil
		}
	}
	why := whyNoQuota(fs.Type, err)
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%w on %s: %s: %w", ErrNoQuota, dir, why, err)
	}
	return fmt.Errorf("%w on %s: %s", ErrNoQuota, dir, why)
}

// whyNoQuota takes the answer to the question for the state, nil when that is that
// nothing is counted.
func whyNoQuota(fsType int64, err error) string {
	const ext4, xfs = unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC
	// ENOSYS is both "no quotas at all" and "none is on". The last two are about
	// the device, which some file systems have none of.
	off := errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTBLK) || errors.Is(err, unix.ENODEV)
	switch {
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES):
		return "crid lacks CAP_SYS_ADMIN in the first user namespace"
	case fsType == ext4 && (err == nil || off):
		return "the ext4 file system was made or mounted without it: while it is not mounted, tune2fs -O project,quota -Q prjquota DEVICE; then mount it with the option prjquota; the kernel needs CONFIG_QFMT_V2"
	case fsType == xfs && (err == nil || off):
		return "the xfs file system was mounted without it: mount it anew, not by remount, with the option prjquota (for the root file system rootflags=prjquota on the kernel's command line); the kernel needs CONFIG_XFS_QUOTA"
	case err == nil:
		return "project quotas are off: mount it with the option prjquota"
	case off:
		return fmt.Sprintf("a file system of this type (%#x) has none; ext4 and xfs have", fsType)
	}
	return err.Error()
}

// Enforced reports whether the file system keeps to limits, and does not only count.
func (q *ProjectQuota) Enforced() bool { return q.enforced }

// Close gives the file system free.
func (q *ProjectQuota) Close() error { return q.dir.Close() }

// Usage is what a project's files take now. A project without any takes nothing.
func (q *ProjectQuota) Usage(project uint32) (ProjectUsage, error) {
	var d dqblk
	err := q.control(qGetQuota, project, unsafe.Pointer(&d))
	if err != nil && !errors.Is(err, unix.ENOENT) { // xfs: it has never had any
		return ProjectUsage{}, fmt.Errorf("usage of project %d on %s: %w", project, q.dir.Name(), err)
	}
	return ProjectUsage{
		Bytes: d.bytes, Inodes: d.inodes,
		BytesLimit: d.bytesHard * quotaBlock, InodesLimit: d.inodesHard,
	}, nil
}

// Limit sets what a project's files may take at most, rounded up to 1024 bytes;
// 0 means no limit. Who writes more gets EDQUOT on ext4 and ENOSPC on xfs. On ext4
// nothing holds a process with CAP_SYS_RESOURCE, unless it writes through an overlay:
// that drops the capability.
func (q *ProjectQuota) Limit(project uint32, bytes, inodes uint64) error {
	d := dqblk{bytesHard: (bytes + quotaBlock - 1) / quotaBlock, inodesHard: inodes, valid: qifBLimits | qifILimits}
	if err := q.control(qSetQuota, project, unsafe.Pointer(&d)); err != nil {
		return fmt.Errorf("limit project %d on %s: %w", project, q.dir.Name(), err)
	}
	return nil
}

// Assign is SetProject, for a folder on this file system.
func (q *ProjectQuota) Assign(dir string, project uint32) error { return SetProject(dir, project) }

func (q *ProjectQuota) control(command int, project uint32, arg unsafe.Pointer) error {
	cmd := uintptr(command<<8 | prjQuota)
	var errno unix.Errno
	if q.device == "" {
		_, _, errno = unix.Syscall6(unix.SYS_QUOTACTL_FD, q.dir.Fd(), cmd, uintptr(project), uintptr(arg), 0, 0)
	} else {
		device, err := unix.BytePtrFromString(q.device)
		if err != nil {
			return err
		}
		_, _, errno = unix.Syscall6(unix.SYS_QUOTACTL, cmd, uintptr(unsafe.Pointer(device)), uintptr(project), uintptr(arg), 0, 0)
	}
	if errno != 0 {
		return errno
	}
	return nil
}

// fsxattr is struct fsxattr of linux/fs.h.
type fsxattr struct {
	xflags, extsize, nextents, project, cowextsize uint32
	_                                              [8]byte
}

const (
	fsGetXattr     = 0x801c581f // FS_IOC_FSGETXATTR
	fsSetXattr     = 0x401c5820 // FS_IOC_FSSETXATTR
	projectInherit = 0x200      // FS_XFLAG_PROJINHERIT
)

// SetProject puts the folder dir into a project, and all that will be made in it, at
// any depth. What is in it already stays where it is. A link is not followed;
// once is as good as twice. From then on nothing can be moved or hard linked into
// dir that is not of the project (EXDEV); out of it everything can.
func SetProject(dir string, project uint32) error {
	return changeProject(dir, func(x *fsxattr) bool {
		if x.project == project && x.xflags&projectInherit != 0 {
			return false
		}
		x.project, x.xflags = project, x.xflags|projectInherit
		return true
	})
}

// Project is the project of a folder or file, and whether what is made in it
// inherits that. File systems without projects answer 0 or an error.
func Project(path string) (project uint32, inherited bool, err error) {
	err = changeProject(path, func(x *fsxattr) bool {
		project, inherited = x.project, x.xflags&projectInherit != 0
		return false
	})
	return project, inherited, err
}

// changeProject shows what path has to change, and sets it when that says so.
func changeProject(path string, change func(*fsxattr) bool) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var x fsxattr
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fsGetXattr, uintptr(unsafe.Pointer(&x))); errno != 0 {
		return &os.PathError{Op: "read the project of", Path: path, Err: errno}
	}
	if !change(&x) {
		return nil
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fsSetXattr, uintptr(unsafe.Pointer(&x))); errno != 0 {
		return &os.PathError{Op: fmt.Sprintf("set project %d on", x.project), Path: path, Err: errno}
	}
	return nil
}
