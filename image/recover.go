package image

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/atomicfile"
)

// recover fills the maps from the disk, before the store is used. It looks at
// each record and each layer's folder, but not at the files of a layer, except
// after a power cut at those of the latest; see mark.
func (s *Store) recover(log klog.Logger) error {
	if err := s.trash.resume(); err != nil {
		return err
	}
	if err := s.trash.add(s.path("ingest")); err != nil {
		return err
	}
	if err := os.Mkdir(s.path("ingest"), 0o700); err != nil {
		return err
	}
	if err := atomicfile.Clean(s.path("images")); err != nil {
		return err
	}
	bad := make(damage)
	if err := s.recoverImages(log, bad); err != nil {
		return err
	}
	if err := s.recoverRootfs(log, bad); err != nil {
		return err
	}
	if err := s.sweepLayers(log); err != nil {
		return err
	}
	if err := s.beginMark(log); err != nil {
		return err
	}
	s.publish()
	return nil
}

// damage is what is wrong with layers that were looked at.
type damage map[digest.Digest]error

func (s *Store) recoverImages(log klog.Logger, bad damage) error {
	records, unreadable, err := readRecords(s.root)
	if err != nil {
		return err
	}
	for path, cause := range unreadable {
		log.Error(cause, "Set aside the damaged record of an image; the next pull mends it", "path", path)
		if err := s.quarantine(path); err != nil {
			return err
		}
	}
	s.inspectLatest(log, records, bad)
	// An image without its layers must not keep a name that another can answer for.
	var whole []*record
	for _, r := range records {
		if err := s.loadLayers(r.uses(), bad); err != nil {
			log.Error(err, "Set aside the record of an image that is not complete; the next pull mends it", "image", r.ID)
			if err := s.quarantine(s.recordPath(r.ID)); err != nil {
				return err
			}
			continue
		}
		whole = append(whole, r)
	}
	for _, r := range resolveNames(whole) {
		if err := s.writeRecord(r); err != nil {
			return err
		}
	}
	for _, r := range whole {
		s.images[r.ID] = r
		for _, n := range r.Names {
			s.seq = max(s.seq, n.Seq)
		}
		for _, d := range r.uses() {
			s.layers[d].refs++
			s.layers[d].durable = true
		}
	}
	return nil
}

// inspectLatest looks closely at the layers that a power cut may have damaged. It
// comes before any is used: an older image may share one.
func (s *Store) inspectLatest(log klog.Logger, records []*record, bad damage) {
	newest := uint64(0)
	for _, r := range records {
		newest = max(newest, r.Epoch)
	}
	suspect := s.openMark(log, newest)
	seen := make(map[digest.Digest]bool)
	for _, r := range records {
		if r.Epoch < suspect || s.loadLayers(r.uses(), bad) != nil {
			continue
		}
		for _, d := range r.uses() {
			if seen[d] {
				continue
			}
			seen[d] = true
			if err := lookClosely(s.root, d, s.layers[d].meta); err != nil {
				bad[d] = err
			}
		}
	}
}

// loadLayers makes the layers known, or says which is missing or damaged.
func (s *Store) loadLayers(ds []digest.Digest, bad damage) error {
	for _, d := range ds {
		if s.layers[d] == nil && bad[d] == nil {
			m, err := readLayer(s.root, d)
			if err != nil {
				bad[d] = err
			} else {
				s.layers[d] = &layer{meta: m}
			}
		}
		if err := bad[d]; err != nil {
			return fmt.Errorf("layer %s: %w", d, err)
		}
	}
	return nil
}

// quarantine moves a file that cannot be used out of the way, for people to look
// at. One of the same name from an earlier time is replaced.
func (s *Store) quarantine(path string) error {
	if err := os.MkdirAll(s.path("quarantine"), 0o700); err != nil {
		return err
	}
	return os.Rename(path, s.quarantinePath(path))
}

func (s *Store) quarantinePath(path string) string { return s.path("quarantine", filepath.Base(path)) }

func (s *Store) recoverRootfs(log klog.Logger, bad damage) error {
	entries, err := os.ReadDir(s.path("rootfs"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		dir := s.path("rootfs", e.Name())
		var r rootfsRecord
		if err := readJSON(filepath.Join(dir, rootfsFile), &r); err != nil || r.Key != e.Name() {
			// The record is the first thing in the folder: nothing has used it.
			log.V(2).Info("Removed an unfinished root file system", "path", dir, "err", err)
			if err := s.trash.add(dir); err != nil {
				return err
			}
			continue
		}
		if err := s.loadLayers(r.Layers, bad); err != nil {
			log.Error(err, "A root file system has lost a layer; its container cannot be started again", "path", dir)
			r.Layers, r.lost = nil, true
		}
		for _, d := range unique(r.Layers) {
			s.layers[d].refs++
		}
		s.rootfs[r.Key] = &r
	}
	return nil
}

// sweepLayers removes the folders of layers that nothing holds.
func (s *Store) sweepLayers(log klog.Logger) error {
	entries, err := os.ReadDir(s.path("layers"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		d := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
		if l := s.layers[d]; l != nil && l.refs > 0 && !strings.HasPrefix(e.Name(), ".") {
			continue
		}
		delete(s.layers, d)
		log.V(2).Info("Removed a layer that no image has", "path", e.Name())
		if err := s.trash.add(s.path("layers", e.Name())); err != nil {
			return err
		}
	}
	return nil
}
