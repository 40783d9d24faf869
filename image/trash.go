package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"
)

// trash deletes folders in the background: a rename takes them out of the way at
// once, however many files they hold. What a crash leaves in it is deleted at
// the next start.
type trash struct {
	dir string
	// life begins the names that this process gives. A random one: what an earlier
	// crid has left may be of the same PID, as in a container.
	life string
	next atomic.Uint64
	wg   sync.WaitGroup
	one  sync.Mutex // one deletion at a time: pods need the disk more

	mu      sync.Mutex
	pending int           // folders; +checklocks:mu
	empty   chan struct{} // closed when none is pending any more; +checklocks:mu
}

// add moves path, which may be absent, into the trash.
func (t *trash) add(path string) error { return t.addThen(path, func() {}) }

// addThen is add, and calls gone when all of path is deleted. If that fails, it
// does not.
func (t *trash) addThen(path string, gone func()) error {
	to := filepath.Join(t.dir, fmt.Sprintf("%s-%d", t.life, t.next.Add(1)))
	if err := os.Rename(path, to); err != nil {
		if isGone(err) {
			gone()
			return nil
		}
		return err
	}
	t.count(1)
	t.wg.Go(func() {
		if t.remove(to) {
			gone()
		}
		t.count(-1)
	})
	return nil
}

func (t *trash) count(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pending == 0 {
		t.empty = make(chan struct{})
	}
	if t.pending += n; t.pending == 0 {
		close(t.empty)
	}
}

// settle waits until nothing is being deleted, at most for limit or as long as ctx lives.
func (t *trash) settle(ctx context.Context, limit time.Duration) {
	t.mu.Lock()
	empty, pending := t.empty, t.pending
	t.mu.Unlock()
	if pending == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	select {
	case <-empty:
	case <-ctx.Done():
	}
}

// resume deletes what an earlier process has left, in the background.
func (t *trash) resume() error {
	entries, err := os.ReadDir(t.dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		// Moved within the trash, so that a new name cannot meet an old one.
		errs = append(errs, t.add(filepath.Join(t.dir, e.Name())))
	}
	return errors.Join(errs...)
}

func (t *trash) remove(path string) (gone bool) {
	t.one.Lock()
	defer t.one.Unlock()
	err := os.RemoveAll(path)
	if err != nil {
		klog.Background().Error(err, "Could not delete files, will try again at the next start", "path", path)
	}
	return err == nil
}

func (t *trash) wait() { t.wg.Wait() }
