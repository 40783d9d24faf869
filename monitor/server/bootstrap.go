package server

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/monitor"
)

// stageEnv is set between the two starts of Bootstrap. Its value is a descriptor
// of the mount namespace that was left, or nothing.
const stageEnv = "_CRID_MONITOR_STAGE"

// Stage is what Bootstrap has arranged.
type Stage struct {
	// HostMounts is the mount namespace of the node when the monitor has left
	// it, nil when it has not.
	HostMounts *os.File
	// Store is where descriptors are kept; nil without.
	Store *Store
}

// Bootstrap executes this program once more, from a sealed copy in memory, and
// returns in that second start. It must be called on the main thread before
// anything else is started.
//
// Sealed, because containers' first processes run this program and may reach it
// by /proc/PID/exe; libcontainer would else make such a copy for each of them.
//
// Where the node's root is a shared mount, as systemd makes it, the monitor also
// goes into a mount namespace of its own: root file systems of containers then do
// not lengthen the node's mount table. What is mounted for volumes still goes
// both ways, since propagation stays as it is. Where the root is private, mounts
// that are made later would not be seen from there, so the monitor stays.
func Bootstrap(stateDir string) (*Stage, error) {
	if v, ok := os.LookupEnv(stageEnv); ok {
		_ = os.Unsetenv(stageEnv)
		nameThreads("crid-monitor")
		st := &Stage{Store: openStore()}
		if fd, err := strconv.Atoi(v); err == nil {
			unix.CloseOnExec(fd)
			st.HostMounts = os.NewFile(uintptr(fd), "host mounts")
		}
		return st, nil
	}
	// What the program that started this one forgot to close would else be open
	// here for months. Old kernels lack the call.
	_ = unix.CloseRange(uint(3+sys.PassedCount(monitor.MaxFiles)), math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	if err := checkRoot(); err != nil {
		return nil, err
	}
	host, err := leaveMounts(filepath.Join(stateDir, "rootfs"))
	if err != nil {
		return nil, err
	}
	exe, err := sealedCopy()
	if err != nil {
		return nil, fmt.Errorf("make sealed copy of the program: %w", err)
	}
	if err := resetSignals(); err != nil {
		return nil, err
	}
	env := append(os.Environ(), stageEnv+"="+host)
	err = unix.Exec("/proc/self/fd/"+strconv.Itoa(exe), os.Args, env)
	return nil, fmt.Errorf("execute sealed copy of the program: %w", err)
}

// nameThreads names the threads that there are, whose name is else the number of the
// descriptor that was executed: Go's runtime has some before main begins. A thread gets
// the name of the one that starts it.
func nameThreads(name string) {
	const most = 10 // looks, each for what a thread without the name has started meanwhile
	for again, looks := true, 0; again && looks < most; looks++ {
		again = false
		threads, _ := filepath.Glob("/proc/self/task/*/comm")
		for _, file := range threads {
			if old, err := os.ReadFile(file); err == nil && string(old) != name+"\n" {
				again = os.WriteFile(file, []byte(name), 0) == nil || again
			}
		}
	}
}

// resetSignals gives every signal its default action and blocks none. What the
// program that started this one ignored or blocked would else be handed on to
// every container: a shell that cannot be suspended, a program that never learns
// that its reader is gone. It counts from the next execve on, which keeps only
// ignored signals and the calling thread's mask (signal(7)).
func resetSignals() error {
	const ignored, last = 1, 64 // SIG_IGN, SIGRTMAX
	for sig := uintptr(1); sig <= last; sig++ {
		var act struct {
			handler, flags, restorer uintptr
			mask                     uint64
		}
		if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&act)), unsafe.Sizeof(act.mask), 0, 0); errno != 0 {
			return fmt.Errorf("read the action of signal %d: %w", sig, errno)
		}
		if act.handler != ignored {
			continue
		}
		act.handler = 0 // SIG_DFL
		if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&act)), 0, unsafe.Sizeof(act.mask), 0, 0); errno != 0 {
			return fmt.Errorf("give signal %d its default action: %w", sig, errno)
		}
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &unix.Sigset_t{}, nil); err != nil {
		return fmt.Errorf("unblock signals: %w", err)
	}
	return nil
}

// leaveMounts goes into a mount namespace of its own if that is of use. It
// returns the descriptor of the old one as text. rootfs is where container
// root file systems will be mounted.
func leaveMounts(rootfs string) (host string, err error) {
	mounts, err := sys.Mounts()
	if err != nil {
		return "", err
	}
	shared, bound := false, false
	for _, m := range mounts {
		switch m.Point {
		case "/":
			shared = m.Shared != 0
		case rootfs:
			bound = true
		}
	}
	if !shared {
		return "", nil
	}
	// Made before the namespaces part, so that it is private in both.
	if err := os.MkdirAll(rootfs, 0o711); err != nil {
		return "", fmt.Errorf("make folder of root file systems: %w", err)
	}
	if !bound {
		if err := unix.Mount(rootfs, rootfs, "", unix.MS_BIND, ""); err != nil {
			return "", fmt.Errorf("bind mount %s: %w", rootfs, err)
		}
	}
	if err := unix.Mount("", rootfs, "", unix.MS_PRIVATE, ""); err != nil {
		return "", fmt.Errorf("make mount %s private: %w", rootfs, err)
	}
	fd, err := unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY, 0) // survives the exec
	if err != nil {
		return "", fmt.Errorf("open mount namespace: %w", err)
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		_ = unix.Close(fd)
		if errors.Is(err, unix.EPERM) {
			return "", nil // works without, with a longer mount table
		}
		return "", fmt.Errorf("make mount namespace: %w", err)
	}
	return strconv.Itoa(fd), nil
}

// sealedCopy is a descriptor of this program in memory that nobody can change.
func sealedCopy() (int, error) {
	src, err := os.Open("/proc/self/exe")
	if err != nil {
		return -1, err
	}
	defer src.Close()
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	// A sysctl may demand that it is said whether the memory is for programs;
	// kernels before 6.3 do not know the flag.
	fd, err := unix.MemfdCreate("crid-monitor", flags|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate("crid-monitor", flags)
	}
	if err != nil {
		return -1, fmt.Errorf("memfd_create: %w", err)
	}
	// Kept out of the file's hands, whose finalizer would close it.
	dst := os.NewFile(uintptr(fd), "memfd")
	if _, err := io.Copy(dst, src); err != nil {
		return -1, err
	}
	if err := dst.Chmod(0o511); err != nil {
		return -1, err
	}
	_, _ = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_EXEC) // Linux 6.3
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return -1, fmt.Errorf("seal: %w", err)
	}
	keep, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	_ = dst.Close()
	return keep, err
}

// Leave undoes what Bootstrap has left in the node's mount namespace. The
// monitor must have nothing mounted.
func (st *Stage) Leave(stateDir string) error {
	if st.HostMounts == nil {
		return nil
	}
	defer st.HostMounts.Close()
	rootfs := filepath.Join(stateDir, "rootfs")
	if strings.TrimSpace(rootfs) == "" {
		return nil
	}
	return inMounts(st.HostMounts, func() error {
		return sys.Unmount(rootfs, sys.Detach)
	})
}

// checkRoot refuses to run in a chroot. libcontainer's exec enters a container's
// mount namespace, and stands at that namespace's root, which is then not the
// container's: pivot_root has moved only what was the monitor's root.
func checkRoot() error {
	ns, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	defer ns.Close()
	var here, top unix.Stat_t
	err = errors.Join(unix.Stat("/", &here), inMounts(ns, func() error { return unix.Stat("/", &top) }))
	if err == nil && (here.Dev != top.Dev || here.Ino != top.Ino) {
		err = errors.New("it runs in a chroot, where a container's exec would run outside of the container; use pivot_root, or a mount namespace of its own")
	}
	if err != nil {
		return fmt.Errorf("look at the root folder: %w", err)
	}
	return nil
}
