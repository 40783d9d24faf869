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

	limit time.Duration // of settle

	mu      sync.Mutex
	awaited int           // folders added by addAwaited that are still there; +checklocks:mu
	settled chan struct{} // closed when none is any more; +checklocks:mu
	latest  time.Time     // when the latest of them came; +checklocks:mu
}

// add moves path, which may be absent, into the trash.
func (t *trash) add(path string) error { return t.addThen(path, func() {}) }

// addAwaited is add, and settle waits for the deletion.
func (t *trash) addAwaited(path string) error {
	t.await(1)
	err := t.move(path, func(bool) { t.await(-1) })
	if err != nil {
		t.await(-1)
	}
	return err
}

// addThen is add, and calls gone when all of path is deleted. If that fails, it
// does not.
func (t *trash) addThen(path string, gone func()) error {
	return t.move(path, func(deleted bool) {
		if deleted {
			gone()
		}
	})
}

// move is add, and calls end once, unless it fails itself.
func (t *trash) move(path string, end func(deleted bool)) error {
	to := filepath.Join(t.dir, fmt.Sprintf("%s-%d", t.life, t.next.Add(1)))
	if err := os.Rename(path, to); err != nil {
		if isGone(err) {
			end(true)
			return nil
		}
		return err
	}
	t.wg.Go(func() { end(t.remove(to)) })
	return nil
}

func (t *trash) await(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.awaited == 0 {
		t.settled = make(chan struct{})
	}
	if n > 0 {
		t.latest = time.Now()
	}
	if t.awaited += n; t.awaited == 0 {
		close(t.settled)
	}
}

// settle waits until what addAwaited was called for is deleted, as long as ctx lives, and
// not beyond t.limit after the latest of these calls: then nobody waits any more.
func (t *trash) settle(ctx context.Context) {
	t.mu.Lock()
	settled, awaited, until := t.settled, t.awaited, t.latest.Add(t.limit)
	t.mu.Unlock()
	if awaited == 0 || !time.Now().Before(until) {
		return
	}
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	select {
	case <-settled:
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
