package image

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
)

// Each problem says what to do. What is wrong with an image is mended by a start,
// which sets it aside, and a pull.
const (
	mendImage  = "restart crid, it sets the image aside, and pull the image again"
	mendRootfs = "remove the container; a new one can be made after its image has been pulled again"
	mendLitter = "the next start of crid removes it"
)

// Check compares the records with the folders, and the open store with both. It
// reads no layer's files, and changes nothing. Commits and removals wait for it.
func (s *Store) Check(ctx context.Context) []error {
	s.write.Lock()
	defer s.write.Unlock()
	errs := checkRoot(ctx, s.root, s)
	records, _, err := readRecords(s.root)
	if err != nil {
		return append(errs, err)
	}
	onDisk := make(map[ID]bool)
	for _, r := range records {
		onDisk[r.ID] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.images {
		if !onDisk[id] {
			errs = append(errs, fmt.Errorf("image %s: it is listed but has no record; pull it again", id))
		}
		delete(onDisk, id)
	}
	for id := range onDisk {
		errs = append(errs, fmt.Errorf("image %s: it has a record but is not listed; restart crid", id))
	}
	for d, l := range s.layers {
		if l.refs <= 0 {
			errs = append(errs, fmt.Errorf("layer %s: it is kept, and nothing uses it; restart crid", d))
		}
	}
	return errs
}

// CheckRoot is Check for a store at root that no process has open. A root without a
// store is right.
func CheckRoot(ctx context.Context, root string) []error { return checkRoot(ctx, root, nil) }

// checkRoot checks the folders. open is the store that has them open, or nil.
func checkRoot(ctx context.Context, root string, open *Store) []error {
	records, bad, err := readRecords(root)
	if isGone(err) {
		return nil
	}
	if err != nil {
		return []error{err}
	}
	var errs []error
	for _, path := range slices.Sorted(maps.Keys(bad)) {
		errs = append(errs, fmt.Errorf("image record: %w; %s", bad[path], mendImage))
	}
	used := make(map[digest.Digest]bool)
	names := make(map[string]ID)
	for _, r := range records {
		for _, d := range r.uses() {
			used[d] = true
			if _, err := readLayer(root, d); err != nil {
				errs = append(errs, fmt.Errorf("image %s: layer %s: %w; %s", r.ID, d, err, mendImage))
			}
		}
		for _, n := range r.Names {
			if other, ok := names[n.Ref]; ok && other != r.ID {
				errs = append(errs, fmt.Errorf("images %s and %s both have the name %s; restart crid, the one that got it last keeps it", other, r.ID, n.Ref))
			}
			names[n.Ref] = r.ID
		}
		if ctx.Err() != nil {
			return append(errs, context.Cause(ctx))
		}
	}
	errs = append(errs, checkRootfs(root, used, open)...)
	return append(errs, checkLayers(root, used, open)...)
}

// checkRootfs checks the root file systems and adds the layers they use. Those that
// are being made or removed are left out.
func checkRootfs(root string, used map[digest.Digest]bool, open *Store) (errs []error) {
	entries, err := os.ReadDir(filepath.Join(root, "rootfs"))
	if isGone(err) {
		return nil
	}
	if err != nil {
		return []error{err}
	}
	for _, e := range entries {
		dir := filepath.Join(root, "rootfs", e.Name())
		var r rootfsRecord
		if err := readJSON(filepath.Join(dir, rootfsFile), &r); err != nil {
			_, there := os.Lstat(dir)
			if !isGone(there) && !(isGone(err) && open != nil && open.prepares(e.Name())) {
				errs = append(errs, fmt.Errorf("root file system %s: %w; %s", e.Name(), err, mendLitter))
			}
			continue
		}
		for _, d := range unique(r.Layers) {
			used[d] = true
			if _, err := readLayer(root, d); err != nil {
				if _, there := os.Lstat(dir); isGone(there) {
					break // released meanwhile
				}
				errs = append(errs, fmt.Errorf("root file system %s: layer %s: %w; %s", e.Name(), d, err, mendRootfs))
			}
		}
	}
	return errs
}

// checkLayers looks for layers that nothing uses: pulls under way count.
func checkLayers(root string, used map[digest.Digest]bool, open *Store) (errs []error) {
	entries, err := os.ReadDir(filepath.Join(root, "layers"))
	if isGone(err) {
		return nil
	}
	if err != nil {
		return []error{err}
	}
	for _, e := range entries {
		d := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
		if !used[d] && (open == nil || !open.has(d)) {
			errs = append(errs, fmt.Errorf("layer %s: nothing uses it; %s", filepath.Join(root, "layers", e.Name()), mendLitter))
		}
	}
	return errs
}

func (s *Store) prepares(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rootfs[key] != nil
}

func (s *Store) has(d digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.layers[d] != nil
}
