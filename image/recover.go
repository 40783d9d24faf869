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
// each record and each layer's folder, but not at the files of a layer.
func (s *Store) recover(log klog.Logger) error {
	if err := s.trash.empty(); err != nil {
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
	if err := s.recoverImages(log); err != nil {
		return err
	}
	if err := s.recoverRootfs(log); err != nil {
		return err
	}
	if err := s.sweepLayers(log); err != nil {
		return err
	}
	s.publish()
	return nil
}

func (s *Store) recoverImages(log klog.Logger) error {
	records, bad, err := readRecords(s.root)
	if err != nil {
		return err
	}
	for path, cause := range bad {
		log.Error(cause, "Set aside the damaged record of an image; pull it again", "path", path)
		if err := s.quarantine(path); err != nil {
			return err
		}
	}
	// An image without its layers must not keep a name that another can answer for.
	var whole []*record
	for _, r := range records {
		if err := s.loadLayers(r.uses()); err != nil {
			log.Error(err, "Set aside the record of an image that is not complete; pull it again", "image", r.ID)
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

// loadLayers makes the layers known, or says which is missing.
func (s *Store) loadLayers(ds []digest.Digest) error {
	for _, d := range ds {
		if s.layers[d] != nil {
			continue
		}
		m, err := readLayer(s.root, d)
		if err != nil {
			return fmt.Errorf("layer %s: %w", d, err)
		}
		s.layers[d] = &layer{meta: m}
	}
	return nil
}

// quarantine moves a file that cannot be used out of the way, for people to look
// at. One of the same name from an earlier time is replaced.
func (s *Store) quarantine(path string) error {
	if err := os.MkdirAll(s.path("quarantine"), 0o700); err != nil {
		return err
	}
	return os.Rename(path, s.path("quarantine", filepath.Base(path)))
}

func (s *Store) recoverRootfs(log klog.Logger) error {
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
		if err := s.loadLayers(r.Layers); err != nil {
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
