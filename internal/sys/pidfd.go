package sys

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// PidfdOpen opens the process pid. Unlike a number, a pidfd never comes to mean
// another process. A process that is gone is os.ErrProcessDone; a zombie can be opened.
func PidfdOpen(pid int) (*os.File, error) {
	// Non-blocking, so that the runtime's poller takes it.
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		err = os.ErrProcessDone
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// PidfdWait waits until the process has ended: it is a zombie or gone. It does not
// reap, blocks no thread, and works for processes of any parent. When ctx ends
// first, that is the error. Any number may wait on one file; closing the file
// does not end the wait.
func PidfdWait(ctx context.Context, f *os.File) error { return pidfdWait(ctx, f, unix.POLLIN) }

// PidfdWaitReaped is PidfdWait until the parent has waited for the process. Then
// PidfdExitInfo knows the exit of any process, where the kernel tells (6.15).
// Before Linux 6.9 it never returns before ctx ends.
func PidfdWaitReaped(ctx context.Context, f *os.File) error { return pidfdWait(ctx, f, unix.POLLHUP) }

func pidfdWait(ctx context.Context, f *os.File, event int16) error {
	// A copy of its own, because a read deadline is how ctx ends the wait, and
	// a deadline is for all users of a file.
	own, err := dupNonblock(f)
	if err != nil {
		return fmt.Errorf("wait for process: %w", err)
	}
	defer own.Close()
	stop := context.AfterFunc(ctx, func() { _ = own.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := own.SyscallConn()
	if err != nil {
		return fmt.Errorf("wait for process: %w", err)
	}
	var pollErr error
	err = raw.Read(func(fd uintptr) bool {
		var got int16
		got, pollErr = pollNow(int(fd))
		return pollErr != nil || got&event != 0
	})
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return context.Cause(ctx)
	case err != nil:
		return fmt.Errorf("wait for process: %w", err)
	case pollErr != nil:
		return fmt.Errorf("wait for process: poll: %w", pollErr)
	}
	return nil
}

// pollNow is the events that are there now.
func pollNow(fd int) (int16, error) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, 0)
		if !errors.Is(err, unix.EINTR) {
			return fds[0].Revents, err
		}
	}
}

// dupNonblock copies f's descriptor for the runtime's poller. A pidfd from
// elsewhere may be blocking; for a pidfd that matters to waitid alone.
func dupNonblock(f *os.File) (*os.File, error) {
	if err := control(f, func(fd int) error { return unix.SetNonblock(fd, true) }); err != nil {
		return nil, err
	}
	return Dup(f)
}

// PidfdExitInfo is the exit code of a process that has ended, or 128 plus the
// signal that ended it. For a child of this program it is known from the end on;
// for other processes once they are reaped, on Linux 6.15 and later. Otherwise
// known is false. It does not reap.
func PidfdExitInfo(f *os.File) (code int, known bool) {
	_ = control(f, func(fd int) error {
		if code, known = exitByInfo(fd); !known {
			code, known = exitByWait(fd)
		}
		return nil
	})
	return code, known
}

// exitByInfo asks the pidfd, which remembers the exit of a reaped process.
func exitByInfo(fd int) (int, bool) {
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	if err := unix.IoctlPidfdInfo(fd, &info); err != nil || info.Mask&unix.PIDFD_INFO_EXIT == 0 {
		return 0, false
	}
	return statusCode(syscall.WaitStatus(info.Exit_code)), true
}

// exitByWait peeks at our own child, zombie or not, without reaping it.
func exitByWait(fd int) (int, bool) {
	var si siginfoChild
	for {
		err := waitid(unix.P_PIDFD, fd, &si, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || si.pid == 0 {
			return 0, false
		}
		if si.code == cldExited {
			return int(si.status), true
		}
		return 128 + int(si.status), true // killed, with or without a core
	}
}

func statusCode(ws syscall.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// PidfdSignal sends sig to the process. One that has ended is os.ErrProcessDone.
func PidfdSignal(f *os.File, sig syscall.Signal) error {
	err := control(f, func(fd int) error { return unix.PidfdSendSignal(fd, sig, nil, 0) })
	if errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	if err != nil {
		return fmt.Errorf("send %v: %w", sig, err)
	}
	return nil
}

// control lends a file's descriptor to do, without File.Fd's side effect of making it blocking.
func control(f syscall.Conn, do func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var doErr error
	if err := raw.Control(func(fd uintptr) { doErr = do(int(fd)) }); err != nil {
		return err
	}
	return doErr
}
