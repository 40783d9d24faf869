package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/atomicfile"
	"github.com/cridproject/crid/internal/sys"
)

// A record is written when all it speaks of has been synced, so a power cut costs
// nothing, on a disk that does as it is told. There are others: virtual ones whose
// host was set to ignore flushes, cheap ones that keep the data in a cache. What
// they lose is the last of what was written, and it is found without reading the
// store: commits are counted in epochs, a file says which is the present one, and
// after a power cut the layers of the last two are looked at more closely.

// mark is what mark.json holds.
type mark struct {
	Version int
	BootID  string
	Epoch   uint64
	Clean   bool // the store was closed
}

const (
	markFile    = "mark.json"
	markVersion = 1
	// epochLength is longer than a kernel and a disk keep what nobody has asked to be
	// synced.
	epochLength = 10 * time.Minute
)

// openMark begins an epoch. It returns the first of those whose layers are to be
// looked at more closely: after a clean end, and when only crid has crashed, one
// that no record is of. newest is the newest of the records. A mark that cannot be
// read is damage of its own: then all are. It writes nothing: until the look is over
// and what it has found is set aside, a crash must leave the old mark.
func (s *Store) openMark(log klog.Logger, newest uint64) (suspect uint64) {
	var m mark
	err := readJSON(s.path(markFile), &m)
	if err == nil && m.Version != markVersion {
		err = fmt.Errorf("version %d is not known to this crid", m.Version)
	}
	s.current, s.began = max(m.Epoch, newest), time.Now()
	suspect = s.current + 1
	switch {
	case isGone(err): // the first opening
		s.current++
	case err != nil:
		log.Info("Could not read how the store was left, looking at all layers", "path", s.path(markFile), "err", err)
		suspect = 0
		s.current += 2
	case m.Clean:
		s.current += 2 // nothing of before is of the last two
	case m.BootID != sys.BootID():
		suspect = m.Epoch - min(m.Epoch, 1)
		s.current += 2
		log.V(2).Info("The machine has stopped without notice, looking at what was pulled last")
	}
	return suspect
}

// beginMark says that the store is in use. A store opens though its disk is full:
// without it nobody could remove an image. A mark of the last run that stayed could say
// too little of this one; an empty one, for which no room is needed, has all layers
// looked at next time.
func (s *Store) beginMark(log klog.Logger) error {
	full := s.writeMark(false)
	if !isFull(full) {
		return full
	}
	if err := os.Truncate(s.path(markFile), 0); err != nil {
		return s.explainFull(errors.Join(full, err))
	}
	s.began = time.Time{} // the next commit writes it
	log.Error(s.explainFull(full), "Could not write which layers are new", "path", s.path(markFile))
	return nil
}

// epoch is the number of the present epoch, for what is committed now.
func (s *Store) epoch() uint64 {
	s.write.Lock()
	defer s.write.Unlock()
	if time.Since(s.began) > epochLength {
		s.began = time.Now()
		s.current++
		if err := s.writeMark(false); err != nil {
			klog.Background().Error(err, "Could not write which layers are new", "path", s.path(markFile))
		}
	}
	return s.current
}

// writeMark need not sync: the sync of each commit takes the mark along.
func (s *Store) writeMark(clean bool) error {
	return writeJSON(s.path(markFile), mark{Version: markVersion, BootID: sys.BootID(), Epoch: s.current, Clean: clean}, atomicfile.NoSync)
}

// lookClosely compares the sizes of a layer's files with what was unpacked. Files
// that a power cut has taken the contents of are empty.
func lookClosely(root string, d digest.Digest, m layerMeta) error {
	dir := filepath.Join(root, "layers", d.Encoded(), layerFS)
	var bytes uint64
	seen := make(map[uint64]bool)
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		if st, ok := fi.Sys().(*syscall.Stat_t); ok && st.Nlink > 1 {
			if seen[st.Ino] {
				return nil
			}
			seen[st.Ino] = true
		}
		bytes += uint64(fi.Size())
		return nil
	})
	if err != nil {
		return err
	}
	if bytes < m.Bytes && !m.Replaced {
		return fmt.Errorf("%s: its files have %d bytes, and had %d when they were unpacked: the disk has lost some", dir, bytes, m.Bytes)
	}
	return nil
}
