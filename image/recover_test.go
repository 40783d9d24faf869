package image

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
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

// TestStress: pulls, removals and root file systems at once; then all must fit.
func TestStress(t *testing.T) {
	testutil.LeakCheck(t)
	srv := newServer(t)
	t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)
	var layers []v1.Layer
	for i := range 6 {
		layers = append(layers, layerOf(t, folder("d/"), file(fmt.Sprintf("d/f%d", i), fmt.Sprint(i))))
	}
	var refs []string
	for i := range 6 {
		refs = append(refs, srv.push(t, fmt.Sprintf("app%d:v1", i), imageOf(t, layers[i], layers[(i+1)%6], layers[(i+2)%6])))
	}
	const seed = 20240607
	s := newStore(t)
	var wg sync.WaitGroup
	for worker := range 8 {
		rnd := rand.New(rand.NewPCG(seed, uint64(worker)))
		wg.Go(func() {
			for n := range 40 {
				ref := refs[rnd.IntN(len(refs))]
				switch rnd.IntN(4) {
				case 0:
					if err := s.Remove(t.Context(), ref); err != nil {
						t.Errorf("Remove(%s) = %v", ref, err)
					}
				case 1, 2:
					if _, err := s.Pull(t.Context(), PullRequest{Ref: ref}); err != nil {
						t.Errorf("Pull(%s) = %v", ref, err)
					}
				case 3:
					stressRootfs(t, s, ref, fmt.Sprintf("c-%d-%d", worker, n))
				}
				s.List()
			}
		})
	}
	wg.Wait()
	checkStore(t, s)
	for _, ref := range refs {
		if err := s.Remove(t.Context(), ref); err != nil {
			t.Error(err)
		}
	}
	wantEmpty(t, s)
}

func stressRootfs(t *testing.T, s *Store, ref, key string) {
	i, err := s.Image(ref)
	if err != nil {
		return
	}
	fs, err := s.Prepare(t.Context(), i.ID, key)
	if errkind.Is(err, errkind.NotFound) {
		return // removed meanwhile
	}
	if err != nil {
		t.Errorf("Prepare = %v", err)
		return
	}
	for _, dir := range fs.Lower {
		if entries, err := os.ReadDir(filepath.Join(dir, "d")); err != nil || len(entries) != 1 {
			t.Errorf("layer %s of a prepared root file system holds %v, %v", dir, entries, err)
		}
	}
	if err := s.Release(t.Context(), key); err != nil {
		t.Errorf("Release = %v", err)
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
