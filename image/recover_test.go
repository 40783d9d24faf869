package image

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRecovery: what a crash can leave is repaired, and one bad image costs no other.
func TestRecovery(t *testing.T) {
	srv := newServer(t)
	base := layerOf(t, file("base", "x"))
	top := layerOf(t, file("top", "x"))
	good := srv.push(t, "good:v1", imageOf(t, base))
	bad := srv.push(t, "bad:v1", imageOf(t, base, top))
	topID, _ := top.DiffID()
	for _, c := range []struct {
		name   string
		damage func(root, badRecord string)
	}{
		{"record is empty", func(_, r string) { os.WriteFile(r, nil, 0o600) }},
		{"record is cut", func(_, r string) { os.Truncate(r, 50) }},
		{"record of a later version", func(_, r string) {
			data, _ := os.ReadFile(r)
			os.WriteFile(r, bytes.Replace(data, []byte(`"Version": 1`), []byte(`"Version": 99`), 1), 0o600)
		}},
		{"record's folder layer is no digest", func(_, r string) {
			data, _ := os.ReadFile(r)
			os.WriteFile(r, bytes.Replace(data, []byte(`"Dirs": "`), []byte(`"Dirs": "x`), 1), 0o600)
		}},
		{"layer is gone", func(root, _ string) { os.RemoveAll(filepath.Join(root, "layers", topID.Hex)) }},
		{"layer's files are gone", func(root, _ string) { os.RemoveAll(filepath.Join(root, "layers", topID.Hex, "fs")) }},
		{"layer's description is cut", func(root, _ string) { os.Truncate(filepath.Join(root, "layers", topID.Hex, layerFile), 3) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "store")
			open := func() *Store {
				s, err := New(Options{Root: root, RegistryDirs: []string{}})
				if err != nil {
					t.Fatal(err)
				}
				return s
			}
			s := open()
			pull(t, s, good)
			id := pull(t, s, bad)
			s.Close()
			c.damage(root, filepath.Join(root, "images", id.hex()+".json"))
			for _, litter := range []string{"ingest/1/fs", "trash/1/x", "layers/" + strings.Repeat("ab", 32) + "/fs", "rootfs/unfinished"} {
				os.MkdirAll(filepath.Join(root, litter), 0o700)
			}
			os.WriteFile(filepath.Join(root, "images", ".tmp-x"), nil, 0o600)
			s = open()
			defer func() { s.Close() }()
			if list := s.List(); len(list) != 1 || list[0].RepoTags[0] != good {
				t.Fatalf("List = %v, want the good image", list)
			}
			s.trash.wait()
			checkStore(t, s)
			if q, _ := os.ReadDir(filepath.Join(root, "quarantine")); len(q) != 1 {
				t.Errorf("quarantine holds %v, want the record", q)
			}
			for _, dir := range []string{"ingest", "trash", "rootfs"} {
				if left, _ := os.ReadDir(filepath.Join(root, dir)); len(left) != 0 {
					t.Errorf("%s holds %v", dir, left)
				}
			}
			if again := pull(t, s, bad); again != id {
				t.Errorf("pulled again it is %s, want %s", again, id)
			}
			checkStore(t, s)
			s.Close()
			s = open()
			if len(s.List()) != 2 {
				t.Errorf("after another start List = %d images, want 2", len(s.List()))
			}
		})
	}
}

// In a container, and after a reboot, crid may have the number that it had before.
func TestTrashOfAnEarlierLife(t *testing.T) {
	root := filepath.Join(t.TempDir(), "store")
	for _, n := range []int{1, 2, 10} {
		if err := os.MkdirAll(filepath.Join(root, "trash", fmt.Sprintf("%d-%d", os.Getpid(), n), "x"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s, err := New(Options{Root: root, RegistryDirs: []string{}})
	if err != nil {
		t.Fatalf("New = %v, want what an earlier crid was deleting to be no hindrance", err)
	}
	defer s.Close()
	wantEmpty(t, s)
}
