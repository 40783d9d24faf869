package server

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/cridproject/crid/internal/atomicfile"
	"github.com/cridproject/crid/monitor"
)

// journal is the exits of containers that crid has not acknowledged, in memory
// and as one small file each, so that a monitor that is started after a crash
// still reports them. It need not survive a power cut: then no container does.
type journal struct {
	dir string

	mu      sync.Mutex
	entries map[string]monitor.Exit // +checklocks:mu; by container
}

const journalSuffix = ".json"

// openJournal reads what an earlier monitor has left. Files that cannot be read
// are returned as an error beside a journal that works.
func openJournal(dir string) (*journal, error) {
	j := &journal{dir: dir, entries: map[string]monitor.Exit{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make exit journal: %w", err)
	}
	// The state folder's lock is held: no other monitor writes here.
	if err := atomicfile.Clean(dir); err != nil {
		return nil, fmt.Errorf("read exit journal: %w", err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read exit journal: %w", err)
	}
	var errs []error
	for _, f := range files {
		id, ok := strings.CutSuffix(f.Name(), journalSuffix)
		if !ok || checkID(id) != nil {
			continue // not ours
		}
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		var e monitor.Exit
		if err == nil {
			err = json.Unmarshal(b, &e)
		}
		if err != nil || e.ID != id {
			errs = append(errs, fmt.Errorf("read exit journal: %s: not an exit: %w", f.Name(), err))
			continue
		}
		j.entries[id] = e
	}
	return j, errors.Join(errs...)
}

func (j *journal) path(id string) string { return filepath.Join(j.dir, id+journalSuffix) }

// put writes an exit down. On error it is kept in memory all the same.
func (j *journal) put(e monitor.Exit) error {
	j.mu.Lock()
	j.entries[e.ID] = e
	j.mu.Unlock()
	b, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("write exit of %s down: %w", e.ID, err)
	}
	if err := atomicfile.Write(j.path(e.ID), b, 0o600, atomicfile.NoSync); err != nil {
		return fmt.Errorf("write exit of %s down: %w", e.ID, err)
	}
	return nil
}

// remove forgets an exit. It is no error when there is none.
func (j *journal) remove(id string) error {
	j.mu.Lock()
	delete(j.entries, id)
	j.mu.Unlock()
	if err := os.Remove(j.path(id)); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("remove exit of %s from the journal: %w", id, err)
	}
	return nil
}

func (j *journal) get(id string) (monitor.Exit, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	e, ok := j.entries[id]
	return e, ok
}

// all is in the order of the exits.
func (j *journal) all() []monitor.Exit {
	j.mu.Lock()
	defer j.mu.Unlock()
	es := make([]monitor.Exit, 0, len(j.entries))
	for _, e := range j.entries {
		es = append(es, e)
	}
	slices.SortFunc(es, func(a, b monitor.Exit) int {
		return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.ID, b.ID))
	})
	return es
}
