package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/sys"
)

// Each writable layer is a project of its own where the file system counts by
// projects: what it takes is one question to the kernel, however many files it
// has, and can be limited.
//
// A project's ID is in the record of its root file system before any file is in the
// project. The kernel has the last word on which IDs are free: one that still has
// files, as what waits in the trash, is never given away, whatever crashed in between.

const (
	firstProject = 1 << 30 // kubelet's own begin at 1048577
	projectCount = 1 << 20 // of them, at most, from the first on
)

// WritableLimit is what each writable layer may take at most. 0 means no limit.
type WritableLimit struct {
	Bytes, Inodes uint64
}

// ErrNoLimit is the error of New when a limit was asked for and the file system
// of the store cannot keep to it. The text says why and what helps.
var ErrNoLimit = errors.New("writable layers cannot be limited")

// quota is what the store asks of project quota: *sys.ProjectQuota.
type quota interface {
	Usage(project uint32) (sys.ProjectUsage, error)
	// Limit replaces the limits of a project; 0 is none.
	Limit(project uint32, bytes, inodes uint64) error
	// Assign puts a new folder, and what will be in it, into a project. Once is as
	// good as twice.
	Assign(dir string, project uint32) error
	Close() error
}

// projects gives out the IDs.
type projects struct {
	quota quota // nil: there is none
	why   error // that there is none
	first uint32
	limit WritableLimit

	mu   sync.Mutex      // never held across I/O
	held map[uint32]bool // given, and not back yet; +checklocks:mu
	next uint32          // where to look first, counted from first; +checklocks:mu
}

// openProjects finds out whether the file system of the store does it, by doing it.
// It comes after the root file systems have been recovered.
func (s *Store) openProjects(o Options) error {
	p := &s.projects
	p.first, p.limit, p.held = o.FirstProject, o.WritableLimit, make(map[uint32]bool)
	if p.first == 0 {
		p.first = firstProject
	}
	s.mu.Lock()
	for _, r := range s.rootfs {
		p.held[r.Project] = true
	}
	s.mu.Unlock()
	q, err := sys.OpenProjectQuota(s.root)
	if err == nil {
		p.quota = q
		if err = s.tryProjects(); err != nil {
			err = errors.Join(fmt.Errorf("project quota on %s does not work: %w", s.root, err), q.Close())
			p.quota = nil
		}
	}
	p.why = err
	return p.limit.check(s.root, q, err)
}

// check says why the limit cannot be kept to on the file system of root, whose quota is q
// unless there was an error.
func (l WritableLimit) check(root string, q *sys.ProjectQuota, err error) error {
	switch {
	case l == WritableLimit{}:
		return nil
	case err != nil:
		return errkind.Errorf(errkind.BadState, "%w: %w", ErrNoLimit, err)
	case !q.Enforced():
		return errkind.Errorf(errkind.BadState, "%w: the file system of %s only counts: mount it with the option prjquota", ErrNoLimit, root)
	}
	return nil
}

// CheckLimit says why writable layers of a store at root cannot be limited so: ErrNoLimit,
// as New does, as far as the file system tells without a try. root need not be there yet.
// Without the privilege to ask, the error is fs.ErrPermission, too.
func CheckLimit(root string, l WritableLimit) error {
	if l == (WritableLimit{}) {
		return nil
	}
	q, err := sys.OpenProjectQuota(root)
	for errors.Is(err, fs.ErrNotExist) && root != filepath.Dir(root) {
		root = filepath.Dir(root)
		q, err = sys.OpenProjectQuota(root)
	}
	if err == nil {
		defer q.Close()
	}
	return l.check(root, q, err)
}

// tryProjects makes a folder in a project, one in it, and counts them.
func (s *Store) tryProjects() error {
	project, err := s.projects.take()
	if err != nil {
		return err
	}
	defer s.projects.free(project)
	dir, err := s.stage()
	if err != nil {
		return err
	}
	err = s.projects.quota.Assign(dir, project)
	if err == nil {
		err = os.Mkdir(filepath.Join(dir, "in"), 0o700)
	}
	var u sys.ProjectUsage
	if err == nil {
		u, err = s.projects.quota.Usage(project)
	}
	if err == nil && u.Inodes != 2 {
		err = fmt.Errorf("two folders count as %d", u.Inodes)
	}
	return errors.Join(err, os.RemoveAll(dir))
}

// take gives out an ID that no file has, with the limits set. Without quota it is 0.
func (p *projects) take() (uint32, error) {
	if p.quota == nil {
		return 0, nil
	}
	for range projectCount {
		id, ok := p.reserve()
		if !ok {
			continue
		}
		u, err := p.quota.Usage(id)
		if err == nil && u.Inodes == 0 && u.Bytes == 0 {
			// Also when there is none: a crash may have left one.
			if err = p.quota.Limit(id, p.limit.Bytes, p.limit.Inodes); err == nil {
				return id, nil
			}
		}
		p.giveBack(id)
		if err != nil {
			return 0, err
		}
	}
	return 0, errkind.Errorf(errkind.Unavailable, "all %d project IDs from %d on are in use", projectCount, p.first)
}

// reserve holds the next ID, unless somebody has it.
func (p *projects) reserve() (id uint32, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id = p.first + p.next
	p.next = (p.next + 1) % projectCount
	if p.held[id] {
		return id, false
	}
	p.held[id] = true
	return id, true
}

func (p *projects) giveBack(id uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.held, id)
}

// free takes back an ID whose files are gone.
func (p *projects) free(id uint32) {
	if id == 0 {
		return
	}
	if p.quota != nil {
		_ = p.quota.Limit(id, 0, 0) // else take does it
	}
	p.giveBack(id)
}

// assign puts new folders into a project. With 0, or without quota, it does nothing.
func (p *projects) assign(id uint32, dirs ...string) error {
	if id == 0 || p.quota == nil {
		return nil
	}
	for _, dir := range dirs {
		if err := p.quota.Assign(dir, id); err != nil {
			return err
		}
	}
	return nil
}

// usage is false when the kernel does not know it.
func (p *projects) usage(id uint32) (sys.ProjectUsage, bool) {
	if id == 0 || p.quota == nil {
		return sys.ProjectUsage{}, false
	}
	u, err := p.quota.Usage(id)
	return u, err == nil
}

func (p *projects) close() error {
	if p.quota == nil {
		return nil
	}
	return p.quota.Close()
}

// NoQuota is why writable layers are walked to find out what they take; nil means
// that the kernel counts it (project quota).
func (s *Store) NoQuota() error { return s.projects.why }
