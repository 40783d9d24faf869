package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"github.com/cridproject/crid/internal/sys"
)

// listen opens a unix socket. One that a dead process left is replaced; one on
// which somebody answers is an error.
//
// Preconditions: the locks of root and state are held, so that of two crids with one
// configuration only one comes here.
func listen(ctx context.Context, path string, mode fs.FileMode) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("folder of socket: %w", err)
	}
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	// Until chmod only root can connect: that takes write permission, which the
	// umask of any service withholds from others.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("open socket: %w", err)
	}
	if err := os.Chmod(path, mode); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("open socket: %w", err)
	}
	return l, nil
}

// tryConnect reports whether somebody answers on a socket, and if not why.
func tryConnect(ctx context.Context, path string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return err
	}
	return conn.Close()
}

func removeStale(ctx context.Context, path string) error {
	err := tryConnect(ctx, path)
	switch {
	case err == nil:
		return fmt.Errorf("socket %s: another process serves it; stop that one, or give this crid another socket, root and state", path)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case !errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("socket %s: %w", path, err)
	}
	// A plain file refuses connections too, and is not ours to remove.
	if st, err := os.Lstat(path); err != nil || st.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("socket %s: there is something else than a socket at this path; remove it, or configure another one", path)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove the socket of a crid that died: %w", err)
	}
	return nil
}

// lockFolder makes this process the only crid that uses dir, the configuration's
// root or state, until unlock or its end. The file holds the owner's process
// ID, for people and error texts.
func lockFolder(ctx context.Context, key, dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("make folder: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, sys.LockGrace)
	defer cancel()
	f, err := sys.LockFile(ctx, filepath.Join(dir, "crid.lock")) // the store and the monitor have locks of their own
	if errors.Is(err, sys.ErrLocked) {
		return nil, fmt.Errorf("%s %s is used by another crid; stop that one, or give this one another root, state and socket: %w", key, dir, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", key, dir, err)
	}
	return func() { _ = f.Close() }, nil
}
