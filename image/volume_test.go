package image

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
)

func TestVolume(t *testing.T) {
	testutil.RequireRoot(t)
	srv := newServer(t)
	for name, layers := range map[string][]v1.Layer{
		"one layer":  {layerOf(t, file("f", "x"))},
		"two layers": {layerOf(t, file("f", "x")), layerOf(t, file("g", "x"))},
		"no layer":   {},
	} {
		t.Run(name, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "store")
			s, err := New(Options{Root: root, RegistryDirs: []string{}})
			if err != nil {
				t.Fatal(err)
			}
			ref := srv.push(t, "data:v1", imageOf(t, layers...))
			id := pull(t, s, ref)
			key := VolumeKey("c1", 3)
			lower, err := s.PrepareVolume(t.Context(), id, key)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := s.PrepareVolume(t.Context(), id, key); err != nil || !slices.Equal(again, lower) {
				t.Errorf("PrepareVolume again = %v, %v, want %v", again, err, lower)
			}
			if len(lower) < len(layers)+1 || len(lower) < 2 {
				t.Fatalf("%d layers, want those of the image and an empty one: %v", len(lower), lower)
			}
			for i, dir := range lower {
				if entries, err := os.ReadDir(dir); err != nil || i < len(layers) && len(entries) == 0 || i == len(lower)-1 && len(entries) > 0 {
					t.Errorf("layer %s holds %v, %v", dir, entries, err)
				}
			}
			_, err = s.Prepare(t.Context(), id, key)
			wantError(t, err, errkind.Exists, "is there already")

			if _, err := s.Prepare(t.Context(), id, "c2"); err != nil { // is in nobody's way
				t.Fatal(err)
			}
			wantError(t, s.Remove(t.Context(), ref), errkind.BadState, "container c1;")
			if _, err := s.Image(ref); err != nil {
				t.Errorf("after a refused removal: %v", err)
			}

			// As after a restart of crid.
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = newStore(t, func(o *Options) { o.Root = root })
			if keys := s.Prepared(); !slices.Equal(keys, []string{key, "c2"}) || VolumeOwner(keys[0]) != "c1" || VolumeOwner(keys[1]) != "c2" {
				t.Errorf("Prepared = %v", keys)
			}
			wantError(t, s.Remove(t.Context(), string(id)), errkind.BadState, "container c1;")
			if again, err := s.PrepareVolume(t.Context(), id, key); err != nil || !slices.Equal(again, lower) {
				t.Errorf("PrepareVolume after a restart = %v, %v, want %v", again, err, lower)
			}
			for _, k := range []string{key, key, "c2"} {
				if err := s.Release(t.Context(), k); err != nil {
					t.Error(err)
				}
			}
			if _, err := os.Lstat(filepath.Join(root, "rootfs", key)); !os.IsNotExist(err) {
				t.Errorf("the volume's folder after Release: %v", err)
			}
			if err := s.Remove(t.Context(), ref); err != nil {
				t.Error(err)
			}
			wantEmpty(t, s)
		})
	}
}
