package image

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/cridproject/crid/internal/errkind"
)

// TestPowerCutOnALyingDisk: files that have lost their contents are found after the
// machine has stopped without notice, in what was pulled last and not before. The
// images that have them are set aside and mended by the next pull; their containers
// are told.
func TestPowerCutOnALyingDisk(t *testing.T) {
	srv := newServer(t)
	shared := layerOf(t, folder("d/"), file("d/f", "shared"), hardlink("d/g", "d/f"))
	bad, good := srv.push(t, "bad:v1", imageOf(t, shared, layerOf(t, file("top", "x")))), srv.push(t, "good:v1", imageOf(t, layerOf(t, file("f", "good"))))
	also := srv.push(t, "also:v1", imageOf(t, shared))
	// Its figures are too large: the archive replaces a file of its own.
	twice := srv.push(t, "twice:v1", imageOf(t, layerOf(t, file("f", "longer than the other"), file("f", "y"))))
	sharedID, _ := shared.DiffID()
	const cut, crash, end = "power cut", "crash of crid", "clean end"
	for _, c := range []struct {
		name   string
		before []string // ends after the pull, before the damage; the last one is where it happens
		lost   bool
	}{
		{"power cut", []string{cut}, true},
		{"crash and power cut", []string{crash, cut}, true},
		{"only a crash", []string{crash}, false},
		{"clean end and power cut", []string{end, cut}, false},
		{"second power cut", []string{cut, cut}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := filepath.Join(fastDir(t), "store")
			open := func() *Store {
				s, err := New(Options{Root: root, RegistryDirs: []string{}})
				if err != nil {
					t.Fatal(err)
				}
				return s
			}
			s := open()
			for _, ref := range []string{good, bad, also, twice} {
				pull(t, s, ref)
			}
			i, _ := s.Image(bad)
			for _, ref := range []string{bad, good} {
				i, _ := s.Image(ref)
				if _, err := s.Prepare(t.Context(), i.ID, "c-"+i.ID.hex()); err != nil {
					t.Fatal(err)
				}
			}
			for n, how := range c.before {
				if n == len(c.before)-1 {
					if err := os.Truncate(filepath.Join(root, "layers", sharedID.Hex, layerFS, "d/f"), 0); err != nil {
						t.Fatal(err)
					}
				}
				left, _ := os.ReadFile(filepath.Join(root, markFile))
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				if how != end {
					if how == cut {
						left = fmt.Appendf(nil, `{"Version": 1, "BootID": "another", "Epoch": %d}`, s.current)
					}
					if err := os.WriteFile(filepath.Join(root, markFile), left, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				s = open()
			}
			defer func() { s.Close() }()
			want := 4
			if c.lost {
				want = 2
			}
			if list := s.List(); len(list) != want {
				t.Fatalf("%d images are left, want %d: %v", len(list), want, list)
			}
			if !c.lost {
				checkStore(t, s)
				return
			}
			for _, ref := range []string{good, twice} {
				if _, err := s.Image(ref); err != nil {
					t.Errorf("an image that nothing has happened to: %v", err)
				}
			}
			// As kubelet does: absent, so pull.
			if _, err := s.Image(bad); !errkind.Is(err, errkind.NotFound) {
				t.Errorf("Image(%s) = %v, want NotFound", bad, err)
			}
			_, err := s.Prepare(t.Context(), i.ID, "c-"+i.ID.hex())
			wantError(t, err, errkind.BadState, "has lost layers")
			for _, ref := range []string{bad, also} {
				id := pull(t, s, ref)
				if _, err := s.Prepare(t.Context(), id, "new-"+id.hex()); err != nil {
					t.Error(err)
				}
			}
			if got, err := os.ReadFile(filepath.Join(s.layerPath(i.Layers[0]), layerFS, "d/g")); err != nil || string(got) != "shared" {
				t.Errorf("the mended file holds %q, %v", got, err)
			}
			if q, _ := os.ReadDir(s.path("quarantine")); len(q) != 0 {
				t.Errorf("quarantine holds %v, want nothing of what is mended", q)
			}
			if err := s.Release(t.Context(), "c-"+i.ID.hex()); err != nil {
				t.Error(err)
			}
			checkStore(t, s)
		})
	}
}

// A start that ends in the middle, as by a second crash, leaves the look to the next one.
func TestPowerCutThenAStartThatFails(t *testing.T) {
	srv := newServer(t)
	layer := layerOf(t, file("f", "x"))
	ref := srv.push(t, "app:v1", imageOf(t, layer))
	diffID, _ := layer.DiffID()
	root := filepath.Join(fastDir(t), "store")
	s, err := New(Options{Root: root, RegistryDirs: []string{}})
	if err != nil {
		t.Fatal(err)
	}
	pull(t, s, ref)
	epoch := s.current
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	inTheWay := filepath.Join(root, "quarantine")
	for path, content := range map[string]string{
		filepath.Join(root, markFile):                           fmt.Sprintf(`{"Version": 1, "BootID": "another", "Epoch": %d}`, epoch),
		filepath.Join(root, "layers", diffID.Hex, layerFS, "f"): "",
		inTheWay: "",
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if s, err := New(Options{Root: root, RegistryDirs: []string{}}); err == nil {
		t.Errorf("New = %v, want an error: nothing can be set aside", s.List())
	}
	if err := os.Remove(inTheWay); err != nil {
		t.Fatal(err)
	}
	s = newStore(t, func(o *Options) { o.Root = root })
	if list := s.List(); len(list) != 0 {
		t.Errorf("List = %v, want nothing: its only file is empty", list)
	}
}

// A mark that cannot be read is damage of its own: everything is looked at.
func TestUnreadableMark(t *testing.T) {
	srv := newServer(t)
	layer := layerOf(t, file("f", "x"))
	ref := srv.push(t, "app:v1", imageOf(t, layer))
	diffID, _ := layer.DiffID()
	for _, content := range []string{"", "{", `{"Version": 99, "Clean": true}`} {
		root := filepath.Join(fastDir(t), "store")
		s, err := New(Options{Root: root, RegistryDirs: []string{}})
		if err != nil {
			t.Fatal(err)
		}
		pull(t, s, ref)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, markFile), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(filepath.Join(root, "layers", diffID.Hex, layerFS, "f"), 0); err != nil {
			t.Fatal(err)
		}
		s = newStore(t, func(o *Options) { o.Root = root })
		if len(s.List()) != 0 {
			t.Errorf("mark %q: the damaged image is listed", content)
		}
		pull(t, s, ref)
		checkStore(t, s)
	}
}
