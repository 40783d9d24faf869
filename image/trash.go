package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

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
}

// add moves path, which may be absent, into the trash.
func (t *trash) add(path string) error {
	to := filepath.Join(t.dir, fmt.Sprintf("%s-%d", t.life, t.next.Add(1)))
	if err := os.Rename(path, to); err != nil {
		if isGone(err) {
			return nil
		}
		return err
	}
	t.wg.Go(func() { t.remove(to) })
	return nil
}

// empty deletes what an earlier process has left, in the background.
func (t *trash) empty() error {
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

func (t *trash) remove(path string) {
	t.one.Lock()
	defer t.one.Unlock()
	if err := os.RemoveAll(path); err != nil {
		klog.Background().Error(err, "Could not delete files, will try again at the next start", "path", path)
	}
}

func (t *trash) wait() { t.wg.Wait() }
