package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/sandbox/config"
)

// pathProber runs system calls on paths of volumes, which may be on a network
// file system whose server is gone: then a stat never returns, and nothing can
// interrupt it. Such a call costs a thread until it returns, but no lock and
// no name; further calls for the same path are refused without a thread. Not even
// a crid that is killed meanwhile is in its successor's way: see sys.GoApart.
type pathProber struct {
	mu    sync.Mutex
	stuck map[string]*late // +checklocks:mu; calls that nobody waits for any more, by path
}

// late is the calls for one path that have not returned while somebody waited.
type late struct {
	calls    int           // at least one
	overdue  bool          // one has had its time; else the caller was in a hurry
	answered chan struct{} // closed when all have returned
}

// do runs f and waits for it, for limit at most and no longer than ctx lives. When
// the error has kind Unavailable f may still run: what it writes must not be read.
func (p *pathProber) do(ctx context.Context, limit time.Duration, path string, f func() error) error {
	_, err := p.each(ctx, limit, []string{path}, func(work func()) { go work() }, func(int) error { return f() })
	return err
}

// each is do for one path after the other, each with a limit of its own, until f
// fails. It says which. start starts the goroutine that they are looked at in,
// which is not waited for, because it may never end.
func (p *pathProber) each(ctx context.Context, limit time.Duration, paths []string, start func(func()), f func(i int) error) (int, error) {
	for i, path := range paths {
		if err := p.awaitEarlier(ctx, limit, path); err != nil {
			return i, err
		}
	}
	var left atomic.Bool
	done := make(chan error, len(paths))
	start(func() {
		defer close(done) // also when it has not even begun
		for i := range paths {
			if left.Load() {
				return
			}
			err := f(i)
			done <- err
			if err != nil {
				return
			}
		}
	})
	t := time.NewTimer(limit)
	defer t.Stop()
	for i, path := range paths {
		var err error
		overdue := false
		select {
		case err := <-done:
			if err != nil {
				return i, err
			}
			t.Reset(limit)
			continue
		case <-ctx.Done():
			err = fmt.Errorf("wait for the file system of %s: %w", path, context.Cause(ctx))
		case <-t.C:
			err = errkind.Errorf(errkind.Unavailable, "%s: its file system does not answer within %v; is it a dead network mount?", path, limit)
			overdue = true
		}
		left.Store(true)
		p.leave(path, overdue)
		go func() { // ends with f
			<-done //nolint:errcheck // nobody waits for what f found any more
			p.answer(path)
		}()
		return i, err
	}
	return 0, nil
}

// awaitEarlier waits, for limit at most, for calls that were left because their
// caller went, not because they took long. Behind one that did, nobody waits.
func (p *pathProber) awaitEarlier(ctx context.Context, limit time.Duration, path string) error {
	p.mu.Lock()
	l := p.stuck[path]
	overdue := l != nil && l.overdue
	p.mu.Unlock()
	if l == nil {
		return nil
	}
	if !overdue {
		t := time.NewTimer(limit)
		defer t.Stop()
		select {
		case <-l.answered:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("wait for the file system of %s: %w", path, context.Cause(ctx))
		case <-t.C:
		}
		p.mu.Lock()
		l.overdue = true
		p.mu.Unlock()
	}
	return errkind.Errorf(errkind.Unavailable, "%s: its file system has not answered an earlier call; is it a dead network mount?", path)
}

func (p *pathProber) leave(path string, overdue bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stuck == nil {
		p.stuck = map[string]*late{}
	}
	l := p.stuck[path]
	if l == nil {
		l = &late{answered: make(chan struct{})}
		p.stuck[path] = l
	}
	l.calls++
	l.overdue = l.overdue || overdue
}

func (p *pathProber) answer(path string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.stuck[path]
	if l.calls--; l.calls == 0 {
		delete(p.stuck, path)
		close(l.answered)
	}
}

// mountSources is mounts with the host paths as they are on the node: links
// followed, and what is missing made.
func (m *Manager) mountSources(ctx context.Context, mounts []config.Mount) ([]config.Mount, error) {
	found := slices.Clone(mounts)
	var paths []string
	var index []int // in mounts, of each path
	for i, mount := range mounts {
		if mount.Image == nil {
			paths, index = append(paths, string(mount.HostPath)), append(index, i)
		}
	}
	if len(paths) == 0 {
		return found, nil
	}
	resolved := make([]string, len(paths))
	at, err := m.paths.each(ctx, m.o.HostPathTimeout, paths, sys.GoApart, func(i int) (err error) {
		resolved[i], err = mountSource(paths[i], m.o.StrictMounts)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("config.mounts[%d].host_path: %w", index[at], err)
	}
	for j, i := range index {
		if err := checkPropagation(resolved[j], mounts[i].Propagation, m.o.Kernel.MountAt); err != nil {
			return nil, fmt.Errorf("config.mounts[%d].propagation: %w", i, err)
		}
		found[i].HostPath = config.HostPath(resolved[j])
	}
	return found, nil
}

// mountSource runs apart from the rest of the process (sys.GoApart): nothing
// here may use a file that it has open, so not package os, by which tests are told
// what it opens.
func mountSource(path string, strict bool) (string, error) {
	if !filepath.IsAbs(path) {
		return "", errkind.Errorf(errkind.Invalid, "%q is not an absolute path", path)
	}
	resolved, err := sys.RealPath(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", badSource(err)
	}
	if err == nil {
		return resolved, nil
	}
	target := make([]byte, 4096)
	if n, err := syscall.Readlink(path, target); err == nil {
		return "", errkind.Errorf(errkind.Invalid, "%s is a symbolic link to %s, which does not exist", path, target[:n])
	}
	if strict {
		return "", errkind.Errorf(errkind.Invalid, "%s does not exist", path)
	}
	// CRI wants an error here, but hostPath volumes without a type rely on it.
	if err := makeSource(filepath.Clean(path)); err != nil {
		return "", badSource(fmt.Errorf("%s does not exist and cannot be made: %w", path, err))
	}
	return sys.RealPath(path)
}

// makeSource makes a folder and those above it. Others may do so at the same time.
func makeSource(path string) error {
	err := syscall.Mkdir(path, 0o755)
	if errors.Is(err, fs.ErrNotExist) && path != "/" {
		if err := makeSource(filepath.Dir(path)); err != nil {
			return err
		}
		err = syscall.Mkdir(path, 0o755)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil // if it is no folder, what is below it cannot be made
	}
	return err
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

// makeLogDirectory makes a pod's log folder. kubelet has made it; other clients rely
// on the runtime.
func makeLogDirectory(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return badLog("config.log_directory", err)
	}
	return nil
}

// badLog names the field of a log's path that cannot be. Its kind is Invalid when
// the path itself is at fault.
func badLog(field string, err error) error {
	for _, fault := range []error{syscall.ENOTDIR, syscall.ENAMETOOLONG, syscall.ELOOP} {
		if errors.Is(err, fault) {
			return errkind.Errorf(errkind.Invalid, "%s: %w", field, err)
		}
	}
	return fmt.Errorf("%s: %w", field, err)
}

// makeLogFolder makes the folders above a container's log. The name comes from
// the request and stays below dir, whatever links a pod has put there.
func makeLogFolder(dir, name string) error {
	if !filepath.IsLocal(name) {
		return errkind.Errorf(errkind.Invalid, "config.log_path: %q leads out of the pod's log folder", name)
	}
	if err := makeLogDirectory(dir); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("open log folder: %w", err)
	}
	defer root.Close()
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return badLog("config.log_path", err)
	}
	fi, err := root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return badLog("config.log_path", err)
	case !fi.Mode().IsRegular():
		return errkind.Errorf(errkind.Invalid, "config.log_path: %s is there and is no regular file", filepath.Join(dir, name))
	}
	return nil
}
