package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/sandbox/config"
)

// pathProber runs system calls on paths of volumes, which may be on a network
// file system whose server is gone: then a stat never returns, and nothing can
// interrupt it. Such a call costs a thread until it returns, but no lock and
// no name; further calls for the same path are refused without a thread.
type pathProber struct {
	mu    sync.Mutex
	stuck map[string]int // +checklocks:mu; calls that have not returned in time, by path
}

// do runs f and waits for it, for limit at most and no longer than ctx lives. When
// the error has kind Unavailable f may still run: what it writes must not be read.
func (p *pathProber) do(ctx context.Context, limit time.Duration, path string, f func() error) error {
	p.mu.Lock()
	stuck := p.stuck[path] > 0
	p.mu.Unlock()
	if stuck {
		return errkind.Errorf(errkind.Unavailable, "%s: its file system has not answered an earlier call; is it a dead network mount?", path)
	}
	done := make(chan error, 1)
	go func() { // not waited for, because it may never end
		done <- f()
	}()
	t := time.NewTimer(limit)
	defer t.Stop()
	var err error
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		err = fmt.Errorf("wait for the file system of %s: %w", path, context.Cause(ctx))
	case <-t.C:
		err = errkind.Errorf(errkind.Unavailable, "%s: its file system does not answer within %v; is it a dead network mount?", path, limit)
	}
	p.count(path, 1)
	go func() { // ends with f
		<-done //nolint:errcheck // nobody waits for what f found any more
		p.count(path, -1)
	}()
	return err
}

func (p *pathProber) count(path string, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stuck == nil {
		p.stuck = map[string]int{}
	}
	p.stuck[path] += n
	if p.stuck[path] == 0 {
		delete(p.stuck, path)
	}
}

// mountSources is mounts with the host paths as they are on the node: links
// followed, and what is missing made.
func (m *Manager) mountSources(ctx context.Context, mounts []config.Mount) ([]config.Mount, error) {
	found := make([]config.Mount, len(mounts))
	for i, mount := range mounts {
		if mount.Image != nil {
			found[i] = mount
			continue
		}
		var path string
		err := m.paths.do(ctx, m.o.HostPathTimeout, string(mount.HostPath), func() error {
			p, err := mountSource(string(mount.HostPath), m.o.StrictMounts)
			path = p
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("config.mounts[%d].host_path: %w", i, err)
		}
		if err := checkPropagation(path, mount.Propagation, m.o.Kernel.MountAt); err != nil {
			return nil, fmt.Errorf("config.mounts[%d].propagation: %w", i, err)
		}
		mount.HostPath = config.HostPath(path)
		found[i] = mount
	}
	return found, nil
}

func mountSource(path string, strict bool) (string, error) {
	if !filepath.IsAbs(path) {
		return "", errkind.Errorf(errkind.Invalid, "%q is not an absolute path", path)
	}
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", badSource(err)
	}
	if err == nil {
		return resolved, nil
	}
	if target, err := os.Readlink(path); err == nil {
		return "", errkind.Errorf(errkind.Invalid, "%s is a symbolic link to %s, which does not exist", path, target)
	}
	if strict {
		return "", errkind.Errorf(errkind.Invalid, "%s does not exist", path)
	}
	// CRI wants an error here, but hostPath volumes without a type rely on it.
	if err := os.MkdirAll(path, 0o755); err != nil {
		return "", badSource(fmt.Errorf("it does not exist and cannot be made: %w", err))
	}
	return filepath.EvalSymlinks(path)
}

// badSource gives an error about a source its kind: what the request is to blame
// for, or the state that the file system is in.
func badSource(err error) error {
	for _, fault := range []error{syscall.EIO, syscall.ESTALE, syscall.ECONNABORTED, syscall.ENOTCONN, syscall.EHOSTDOWN, syscall.ETIMEDOUT} {
		if errors.Is(err, fault) {
			return errkind.Errorf(errkind.Unavailable, "%w; is it a dead network mount?", err)
		}
	}
	return errkind.New(errkind.Invalid, err)
}

// makeLogFolder makes the folders above a container's log. The name comes from
// the request and stays below dir, whatever links a pod has put there.
func makeLogFolder(dir, name string) error {
	if !filepath.IsLocal(name) {
		return errkind.Errorf(errkind.Invalid, "config.log_path: %q leads out of the pod's log folder", name)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make log folder: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("open log folder: %w", err)
	}
	defer root.Close()
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return fmt.Errorf("make log folder: %w", err)
	}
	fi, err := root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look at log file: %w", err)
	case !fi.Mode().IsRegular():
		return errkind.Errorf(errkind.Invalid, "config.log_path: %s is there and is no regular file", filepath.Join(dir, name))
	}
	return nil
}
