package image

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cridproject/crid/internal/testutil"
)

// TestCheck: what is wrong is told once, with what to do, with and without the store
// being open; a start and a pull mend it.
func TestCheck(t *testing.T) {
	srv := newServer(t)
	base, top := layerOf(t, file("base", "x")), layerOf(t, file("top", "x"))
	ref := srv.push(t, "app:v1", imageOf(t, base, top))
	other := srv.push(t, "other:v1", imageOf(t, base))
	topID, _ := top.DiffID()
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, root string, id ID)
		want   string // part of one problem, and of no other
	}{
		{"a layer's folder", func(t *testing.T, root string, _ ID) {
			remove(t, filepath.Join(root, "layers", topID.Hex))
		}, "layer " + topID.String() + ": open "},
		{"a layer's files", func(t *testing.T, root string, _ ID) {
			remove(t, filepath.Join(root, "layers", topID.Hex, layerFS))
		}, "; restart crid, it sets the image aside, and pull the image again"},
		{"a record", func(t *testing.T, root string, id ID) {
			write(t, filepath.Join(root, "images", id.hex()+".json"), "{")
		}, "image record: "},
		{"a strange layer", func(t *testing.T, root string, _ ID) {
			write(t, filepath.Join(root, "layers", strings.Repeat("ab", 32), "x"), "x")
		}, "nothing uses it; the next start of crid removes it"},
		{"a container's record", func(t *testing.T, root string, _ ID) {
			write(t, filepath.Join(root, "rootfs", "c", rootfsFile), "")
		}, "root file system c: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := filepath.Join(fastDir(t), "store")
			s, err := New(Options{Root: root, RegistryDirs: []string{}})
			if err != nil {
				t.Fatal(err)
			}
			id := pull(t, s, ref)
			pull(t, s, other)
			checkStore(t, s)
			c.damage(t, root, id)
			for name, errs := range map[string][]error{"open": s.Check(t.Context()), "closed": CheckRoot(t.Context(), root)} {
				found := 0
				for _, err := range errs {
					if strings.Contains(err.Error(), c.want) {
						found++
					}
				}
				if found != 1 {
					t.Errorf("Check of the %s store = %q, want one that says %q", name, errs, c.want)
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = newStore(t, func(o *Options) { o.Root = root })
			checkStore(t, s)
			if _, err := s.Image(other); err != nil {
				t.Errorf("the other image after a start: %v", err)
			}
			if again := pull(t, s, ref); again != id {
				t.Errorf("pulled again it is %s, want %s", again.Short(), id.Short())
			}
			checkStore(t, s)
		})
	}
	if errs := CheckRoot(t.Context(), t.TempDir()); len(errs) > 0 {
		t.Errorf("CheckRoot without a store = %v, want nothing", errs)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestCheckBesidePull: the layers of a pull under way belong to it.
func TestCheckBesidePull(t *testing.T) {
	srv := newServer(t)
	quick, slow := layerOf(t, file("f", "x")), layerOf(t, file("g", "x"))
	slowDigest, _ := slow.Digest()
	ref := srv.push(t, "app:v1", imageOf(t, quick, slow))
	s := newStore(t, inMemory(t))
	release := srv.hold(t, slowDigest.String())
	done := make(chan error, 1)
	go func() {
		_, err := s.Pull(t.Context(), PullRequest{Ref: ref})
		done <- err
	}()
	testutil.WaitFor(t, "the first layer", func() bool { return layerFolders(t, s) == 1 })
	checkStore(t, s)
	if errs := CheckRoot(t.Context(), s.root); len(errs) != 1 || !strings.Contains(errs[0].Error(), "nothing uses it") {
		t.Errorf("CheckRoot, which cannot know of the pull = %v", errs)
	}
	release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	checkStore(t, s)
}
