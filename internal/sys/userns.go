package sys

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// UserNS is a user namespace to be made: which IDs of this process's own user
// namespace its users and groups are.
type UserNS struct {
	Path       string // to pin it at; "" makes none
	UIDs, GIDs []syscall.SysProcIDMap
}

// member is a process that does nothing and is in namespaces of its own. Those
// are owned by its user namespace, so that root in there is root over them.
//
// A program with threads cannot enter a user namespace, let alone a Go program,
// so it takes a process. It executes this program, but stops before the first
// instruction of it (it is traced), and is killed with the thread that made it.
type member struct{ *os.Process }

// startMember must be called on a thread that lives until end.
func startMember(flags uintptr, u UserNS) (*member, error) {
	p, err := os.StartProcess("/proc/self/exe", []string{"crid-namespaces"}, &os.ProcAttr{
		Dir: "/",
		Env: []string{},
		Sys: &syscall.SysProcAttr{
			Cloneflags:                 unix.CLONE_NEWUSER | flags,
			UidMappings:                u.UIDs,
			GidMappings:                u.GIDs,
			GidMappingsEnableSetgroups: true,
			Ptrace:                     true,
			Pdeathsig:                  syscall.SIGKILL,
		},
	})
	if errors.Is(err, unix.ENOSPC) {
		err = fmt.Errorf("%w: no more may be made, see the sysctls user.max_user_namespaces and user.max_net_namespaces", err)
	}
	if err != nil {
		return nil, fmt.Errorf("make user namespace: %w", err)
	}
	return &member{p}, nil
}

// ns is the file of one of its namespaces.
func (m *member) ns(kind string) string {
	return filepath.Join("/proc", strconv.Itoa(m.Pid), "ns", kind)
}

// enter takes this thread into the namespaces of flags, but not the user namespace.
func (m *member) enter(flags int) error {
	if flags == 0 {
		return nil
	}
	pidfd, err := unix.PidfdOpen(m.Pid, 0)
	if err != nil {
		return fmt.Errorf("enter namespaces: %w", err)
	}
	defer unix.Close(pidfd)
	if err := unix.Setns(pidfd, flags); err != nil {
		return fmt.Errorf("enter namespaces: %w", err)
	}
	return nil
}

func (m *member) end() {
	_ = m.Kill()
	_, _ = m.Wait()
}

// newUserNS makes a user namespace that ends with the returned file.
func newUserNS(u UserNS) (f *os.File, err error) {
	err = onOwnThread(func() error {
		m, err := startMember(0, u)
		if err != nil {
			return err
		}
		defer m.end()
		f, err = os.Open(m.ns("user"))
		return err
	})
	return f, err
}

// AsUser runs f with the effective user uid and no capabilities, on this thread
// only, which must be one that is thrown away.
//
// Some sysctls let only the root user of the namespace that they belong to
// write, whatever capabilities another user has.
func AsUser(uid int, f func() error) error {
	const keep = ^uintptr(0)
	set := func(id uintptr) error {
		// Go's own function would change all threads.
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, id, keep); errno != 0 {
			return fmt.Errorf("become user %d: %w", int(id), errno)
		}
		return nil
	}
	before := unix.Geteuid()
	if err := set(uintptr(uid)); err != nil {
		return err
	}
	err := f()
	return errors.Join(err, set(uintptr(before)))
}
