package sys

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// ErrLocked says that another process has the lock.
var ErrLocked = errors.New("another process has it locked")

// LockGrace is how long a lock should be waited for by who means to have it
// alone: a process killed a moment ago may have forked a child that holds its
// open files until it executes its program.
const LockGrace = 3 * time.Second

const lockPoll = 10 * time.Millisecond

// LockFile takes the exclusive lock (flock(2)) on path, a file that it makes if
// need be and that stays. The lock ends with the file returned, which is the
// caller's, or with the process, however it ends.
//
// It waits until ctx ends; the error then wraps ErrLocked and names the process
// that is written in the file, if one is. The owner's process ID is written there.
func LockFile(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Clean(path), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock file: %w", err)
	}
	if err = flock(ctx, f); err == nil {
		if err = f.Truncate(0); err == nil {
			_, err = fmt.Fprintf(f, "%d\n", os.Getpid())
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock file: %w", err)
	}
	return f, nil
}

// flock knows no context, so it is tried again and again.
func flock(ctx context.Context, f *os.File) error {
	again := time.NewTimer(lockPoll)
	defer again.Stop()
	for {
		raw, err := f.SyscallConn()
		if err != nil {
			return err
		}
		var lockErr error
		err = raw.Control(func(fd uintptr) { lockErr = unix.Flock(int(fd), unix.LOCK_EX|unix.LOCK_NB) })
		if err = errors.Join(err, lockErr); err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return &fs.PathError{Op: "flock", Path: f.Name(), Err: err}
		}
		select {
		case <-ctx.Done():
			var pid int
			if _, err := fmt.Fscan(f, &pid); err == nil {
				return fmt.Errorf("%s: %w (process %d)", f.Name(), ErrLocked, pid)
			}
			return fmt.Errorf("%s: %w", f.Name(), ErrLocked)
		case <-again.C:
			again.Reset(lockPoll)
		}
	}
}
