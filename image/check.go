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

// Check compares the records with the folders, and the open store with both. It
// reads no layer's files and changes nothing. A pull or a removal under way can
// make it report what is about to go.
func (s *Store) Check(ctx context.Context) []error {
	errs := CheckRoot(ctx, s.root)
	records, _, err := readRecords(s.root)
	if err != nil {
		return append(errs, err)
	}
	onDisk := make(map[ID]bool)
	for _, r := range records {
		onDisk[r.ID] = true
	}
	s.mu.Lock()
	known := maps.Clone(s.images)
	s.mu.Unlock()
	for id := range known {
		if !onDisk[id] {
			errs = append(errs, fmt.Errorf("image %s: it is listed but has no record", id))
		}
		delete(onDisk, id)
	}
	for id := range onDisk {
		errs = append(errs, fmt.Errorf("image %s: it has a record but is not listed", id))
	}
	return errs
}

// CheckRoot is Check for a store at root that another process may have open.
func CheckRoot(ctx context.Context, root string) []error {
	records, bad, err := readRecords(root)
	if err != nil {
		return []error{err}
	}
	var errs []error
	for _, path := range slices.Sorted(maps.Keys(bad)) {
		errs = append(errs, fmt.Errorf("image record: %w", bad[path]))
	}
	used := make(map[digest.Digest]bool)
	names := make(map[string]ID)
	for _, r := range records {
		for _, d := range r.uses() {
			used[d] = true
			if _, err := readLayer(root, d); err != nil {
				errs = append(errs, fmt.Errorf("image %s: layer %s: %w", r.ID, d, err))
			}
		}
		for _, n := range r.Names {
			if other, ok := names[n.Ref]; ok && other != r.ID {
				errs = append(errs, fmt.Errorf("images %s and %s both have the name %s", other, r.ID, n.Ref))
			}
			names[n.Ref] = r.ID
		}
		if ctx.Err() != nil {
			return append(errs, context.Cause(ctx))
		}
	}
	for _, check := range []func(string, map[digest.Digest]bool) []error{checkRootfs, checkLayers} {
		errs = append(errs, check(root, used)...)
	}
	return errs
}

// checkRootfs checks the root file systems and adds the layers they use.
func checkRootfs(root string, used map[digest.Digest]bool) (errs []error) {
	entries, err := os.ReadDir(filepath.Join(root, "rootfs"))
	if err != nil {
		return []error{err}
	}
	for _, e := range entries {
		var r rootfsRecord
		if err := readJSON(filepath.Join(root, "rootfs", e.Name(), rootfsFile), &r); err != nil {
			errs = append(errs, fmt.Errorf("root file system %s: %w", e.Name(), err))
			continue
		}
		for _, d := range unique(r.Layers) {
			used[d] = true
			if _, err := readLayer(root, d); err != nil {
				errs = append(errs, fmt.Errorf("root file system %s: layer %s: %w", e.Name(), d, err))
			}
		}
	}
	return errs
}

// checkLayers looks for layers that nothing uses.
func checkLayers(root string, used map[digest.Digest]bool) (errs []error) {
	entries, err := os.ReadDir(filepath.Join(root, "layers"))
	if err != nil {
		return []error{err}
	}
	for _, e := range entries {
		if !used[digest.NewDigestFromEncoded(digest.SHA256, e.Name())] {
			errs = append(errs, fmt.Errorf("layer %s: nothing uses it", filepath.Join(root, "layers", e.Name())))
		}
	}
	return errs
}
