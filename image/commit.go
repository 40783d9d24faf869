package image

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"k8s.io/klog/v2"

	"github.com/cridproject/crid/image/dirfd"
	"github.com/cridproject/crid/internal/atomicfile"
	"github.com/cridproject/crid/internal/failpoint"
	"github.com/cridproject/crid/internal/trace"
)

// hold keeps the layers from being removed. It reports whether all are there;
// otherwise nothing is held.
func (s *Store) hold(ds ...digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.holdLocked(ds...)
}

// Preconditions: s.mu is held.
func (s *Store) holdLocked(ds ...digest.Digest) bool {
	for _, d := range ds {
		if s.layers[d] == nil {
			return false
		}
	}
	for _, d := range ds {
		s.layers[d].refs++
	}
	return true
}

// drop gives back what hold has kept. Layers that nothing holds any more are
// moved to the trash before it returns.
func (s *Store) drop(ctx context.Context, ds ...digest.Digest) {
	s.write.Lock()
	defer s.write.Unlock()
	s.dropLocked(ctx, ds...)
}

// Preconditions: s.write is held, so that nobody stores the layer again between
// its leaving the map and its leaving the folder.
func (s *Store) dropLocked(ctx context.Context, ds ...digest.Digest) {
	var gone []digest.Digest
	s.mu.Lock()
	for _, d := range ds {
		l := s.layers[d]
		if l.refs--; l.refs == 0 {
			delete(s.layers, d)
			gone = append(gone, d)
		}
	}
	if len(gone) > 0 {
		s.publish()
	}
	s.mu.Unlock()
	for _, d := range gone {
		if err := s.trash.addAwaited(s.layerPath(d)); err != nil {
			klog.FromContext(ctx).Error(err, "Could not remove a layer, will try again at the next start", "path", s.layerPath(d))
		}
	}
}

// storeLayer makes the finished layer in the staged folder dir one of the store's
// and holds it. When the store has it already, dir is left to be discarded.
func (s *Store) storeLayer(dir string, m layerMeta) error {
	s.write.Lock()
	defer s.write.Unlock()
	if s.hold(m.DiffID) {
		return nil
	}
	if err := failpoint.Hit("image.layer.store"); err != nil {
		return err
	}
	to := s.layerPath(m.DiffID)
	// A folder that the map does not know is rubbish that could not be removed.
	if err := s.trash.add(to); err != nil {
		return err
	}
	if err := os.Rename(dir, to); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.layers[m.DiffID] = &layer{meta: m, refs: 1}
	return nil
}

// addDirs works out the image's layer of folders, see dirs.go, and holds it.
func (s *Store) addDirs(ctx context.Context, diffIDs []digest.Digest) (digest.Digest, error) {
	metas := make([]layerMeta, len(diffIDs))
	lower := make([]string, 0, len(diffIDs))
	s.mu.Lock()
	for i, d := range diffIDs {
		metas[i] = s.layers[d].meta
	}
	s.mu.Unlock()
	for _, d := range slices.Backward(diffIDs) {
		lower = append(lower, filepath.Join(s.layerPath(d), layerFS))
	}
	entries, err := dirEntries(metas, lower)
	if err != nil || len(entries) == 0 {
		return "", err
	}
	id, err := dirsDigest(entries)
	if err != nil {
		return "", err
	}
	if s.hold(id) {
		return id, nil
	}
	dir, err := s.stage()
	if err != nil {
		return "", err
	}
	defer s.discard(ctx, dir)
	m, err := makeDirs(entries, id, dir)
	if err != nil {
		return "", err
	}
	return id, s.storeLayer(dir, m)
}

// commit makes an image of layers that the caller holds. On success the holds
// are the image's; on error they are still the caller's. names are canonical
// references that were looked up after turn was taken; those that another image
// has are taken from it, unless it got them by a later turn.
func (s *Store) commit(ctx context.Context, p *parts, names []string, turn uint64) (err error) {
	ctx, end := trace.Start(ctx, "image.commit")
	defer func() { end(err) }()
	diffIDs := make([]digest.Digest, len(p.layers))
	for i, b := range p.layers {
		diffIDs[i] = b.diffID
	}
	dirs, err := s.addDirs(ctx, diffIDs)
	if err != nil {
		return fmt.Errorf("image %s: %w", p.id.Short(), err)
	}
	r := &record{Version: recordVersion, ID: p.id, Dirs: dirs, Config: p.config, Pulled: time.Now().UTC(), layers: diffIDs, Epoch: s.epoch()}
	err = s.syncLayers(r.uses())
	if err == nil {
		err = s.commitRecord(ctx, r, names, turn)
	}
	if err != nil && dirs != "" {
		s.drop(context.WithoutCancel(ctx), dirs)
	}
	return err
}

// syncLayers makes the layers survive a power cut: one call for all their files,
// and none when an earlier pull has made it.
func (s *Store) syncLayers(ds []digest.Digest) error {
	s.mu.Lock()
	durable := true
	for _, d := range ds {
		durable = durable && s.layers[d].durable
	}
	s.mu.Unlock()
	if durable {
		return nil
	}
	if err := failpoint.Hit("image.commit.sync"); err != nil {
		return err
	}
	if err := dirfd.SyncFS(s.path("layers")); err != nil {
		return fmt.Errorf("write layers to disk: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range ds {
		s.layers[d].durable = true
	}
	return nil
}

// commitRecord writes the record and publishes the image.
func (s *Store) commitRecord(ctx context.Context, r *record, names []string, turn uint64) error {
	s.write.Lock()
	defer s.write.Unlock()
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	s.mu.Lock()
	old := s.images[r.ID]
	if old != nil {
		r.Names, r.Pulled, r.Epoch = slices.Clone(old.Names), old.Pulled, old.Epoch
	}
	for _, ref := range names {
		if s.seqLocked(ref) > turn {
			continue // a pull that began later has been faster
		}
		r.Names = slices.DeleteFunc(r.Names, func(n name) bool { return n.Ref == ref })
		r.Names = append(r.Names, name{ref, turn})
	}
	losers := s.losersLocked(r)
	s.mu.Unlock()
	if err := failpoint.Hit("image.commit.record"); err != nil {
		return err
	}
	if err := s.writeRecord(r); err != nil {
		return fmt.Errorf("record of image %s: %w", r.ID.Short(), err)
	}
	s.mu.Lock()
	s.images[r.ID] = r
	for _, l := range losers {
		s.images[l.ID] = l
	}
	s.publish()
	s.mu.Unlock()
	for _, l := range losers {
		// The image is there; should this not reach the disk, the numbers tell at
		// the next start who has the name.
		if err := s.writeRecord(l); err != nil {
			klog.FromContext(ctx).Error(err, "Could not write that an image has lost a name", "image", l.ID)
		}
	}
	if old != nil {
		s.dropLocked(ctx, old.uses()...)
	}
	// What was set aside is mended.
	if err := atomicfile.Remove(s.quarantinePath(s.recordPath(r.ID))); err != nil {
		klog.FromContext(ctx).Error(err, "Could not remove a record that was set aside", "image", r.ID)
	}
	return nil
}

// turn is the next number of the order in which names are given. Who looks a
// name up takes it first: of two pulls of a tag that has moved meanwhile, the one
// that asked later is right, whichever ends first.
func (s *Store) turn() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seq++
	return s.seq
}

// seqLocked is the turn by which a name was given; 0 when nobody has it.
//
// Preconditions: s.mu is held.
func (s *Store) seqLocked(ref string) uint64 {
	i := s.published.Load().byName[ref]
	if i == nil {
		return 0
	}
	for _, n := range s.images[i.ID].Names {
		if n.Ref == ref {
			return n.Seq
		}
	}
	return 0
}

// losersLocked returns the records, changed, of other images that have a name of r.
//
// Preconditions: s.mu is held.
func (s *Store) losersLocked(r *record) []*record {
	taken := make(map[string]bool, len(r.Names))
	for _, n := range r.Names {
		taken[n.Ref] = true
	}
	var losers []*record
	for _, id := range slices.Sorted(maps.Keys(s.images)) {
		other := s.images[id]
		has := func(n name) bool { return taken[n.Ref] }
		if id == r.ID || !slices.ContainsFunc(other.Names, has) {
			continue
		}
		changed := *other
		changed.image = nil
		changed.Names = slices.DeleteFunc(slices.Clone(other.Names), has)
		losers = append(losers, &changed)
	}
	return losers
}
