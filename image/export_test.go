package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ggcrname "github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
)

func export(t *testing.T, s *Store, o ExportOptions) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := s.Export(t.Context(), &buf, o); err != nil {
		t.Fatalf("Export(%v) = %v", o.Images, err)
	}
	return buf.Bytes()
}

// TestExportImport: what is exported is, imported elsewhere, the same image with
// the same files.
func TestExportImport(t *testing.T) {
	testutil.RequireRoot(t)
	srv := newServer(t)
	rich := layerOf(t, damageable()...)
	one := srv.push(t, "one:v1", imageOf(t, rich, layerOf(t, file("x", "1")), rich))
	two := srv.push(t, "two:v2", imageOf(t, rich, layerOf(t)))
	s := newStore(t)
	ids := []ID{pull(t, s, one), pull(t, s, two)}
	for _, format := range []ExportFormat{FormatOCI, FormatDocker, ""} {
		t.Run(string(format), func(t *testing.T) {
			p := &Progress{}
			archive := export(t, s, ExportOptions{Images: []string{one, string(ids[1]), one}, Format: format, Progress: p})
			if again := export(t, s, ExportOptions{Images: []string{one, string(ids[1])}, Format: format}); !bytes.Equal(again, archive) {
				t.Error("a second export differs")
			}
			for _, st := range p.Steps() {
				if st.State != StepDone || st.Done != st.Total {
					t.Errorf("step %+v is not done", st)
				}
			}
			if n := len(p.Steps()); n != 3 {
				t.Errorf("%d layers in the archive, want the 3 that differ", n)
			}
			other := newStore(t)
			got, err := other.Import(t.Context(), bytes.NewReader(archive), ImportOptions{})
			if err != nil || len(got) != 2 {
				t.Fatalf("Import = %v, %v", got, err)
			}
			for i, ref := range []string{one, two} {
				want := must(s.Image(ref))
				if got[i].ID != ids[i] || !slices.Equal(got[i].Layers, want.Layers) || !slices.Equal(got[i].RepoTags, []string{ref}) || got[i].Size != want.Size {
					t.Errorf("imported %+v, want %+v", got[i], want)
				}
				for _, d := range want.Layers {
					a, b := listing(t, filepath.Join(s.layerPath(d), layerFS)), listing(t, filepath.Join(other.layerPath(d), layerFS))
					if !slices.Equal(a, b) {
						t.Errorf("the files of layer %s differ:\n%q\n%q", d, a, b)
					}
				}
				if v := verify(t, other, ref); len(v.Damage) > 0 {
					t.Errorf("damage after import: %v", v.Damage)
				}
			}
		})
	}
	checkStore(t, s)
}

// TestExportIsRead: an independent reader takes both forms and finds no fault.
func TestExportIsRead(t *testing.T) {
	srv := newServer(t)
	s := newStore(t)
	ref := srv.push(t, "team/app:v1", imageOf(t, layerOf(t, folder("a/"), file("a/f", "x")), layerOf(t, file("g", "y"))))
	id := pull(t, s, ref)

	opener := func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(export(t, s, ExportOptions{Images: []string{ref}, Format: FormatDocker}))), nil
	}
	tag := must(ggcrname.NewTag(ref))
	img, err := tarball.Image(opener, &tag)
	if err != nil {
		t.Fatal(err)
	}
	readable(t, img, id)

	dir := t.TempDir()
	untar(t, export(t, s, ExportOptions{Images: []string{ref}}), dir)
	ix := must(must(layout.FromPath(dir)).ImageIndex())
	m := must(ix.IndexManifest())
	if len(m.Manifests) != 1 || m.Manifests[0].Annotations["io.containerd.image.name"] != ref || m.Manifests[0].Annotations["org.opencontainers.image.ref.name"] != "v1" {
		t.Errorf("index.json lists %+v", m.Manifests)
	}
	readable(t, must(ix.Image(m.Manifests[0].Digest)), id)
}

func readable(t *testing.T, img v1.Image, id ID) {
	t.Helper()
	config := must(img.ConfigFile())
	for i, l := range must(img.Layers()) {
		r, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		h, _, err := v1.SHA256(r)
		if want := config.RootFS.DiffIDs[i]; err != nil || h != want || must(l.DiffID()) != want {
			t.Errorf("layer %d is read as %s, %v; want %s", i, h, err, want)
		}
		r.Close()
	}
	if got := idOf(t, img); got != id {
		t.Errorf("ID = %s, want %s", got, id)
	}
}

func untar(t *testing.T, archive []byte, dir string) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, h.Name)
		data, err := io.ReadAll(r)
		if err := errors.Join(err, os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, data, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestExportRefuses(t *testing.T) {
	srv := newServer(t)
	s := newStore(t)
	ref := srv.push(t, "one:v1", imageOf(t, layerOf(t, file("a", strings.Repeat("x", 100_000)))))
	id := pull(t, s, ref)
	refuse := func(what string, w io.Writer, o ExportOptions, kind errkind.Kind, text string) {
		t.Helper()
		err := s.Export(t.Context(), w, o)
		if !errkind.Is(err, kind) || !strings.Contains(err.Error(), text) {
			t.Errorf("Export with %s = %v (%v), want one of kind %v that says %q", what, err, errkind.Of(err), kind, text)
		}
	}
	refuse("no image", io.Discard, ExportOptions{}, errkind.Invalid, "no image is named")
	refuse("an absent image", io.Discard, ExportOptions{Images: []string{ref, "absent:v1"}}, errkind.NotFound, "absent")
	refuse("an unknown form", io.Discard, ExportOptions{Images: []string{ref}, Format: "zip"}, errkind.Invalid, `"zip"`)
	r, w := io.Pipe()
	r.CloseWithError(io.ErrShortWrite)
	refuse("a reader that goes away", w, ExportOptions{Images: []string{ref}}, errkind.Other, io.ErrShortWrite.Error())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Export(ctx, io.Discard, ExportOptions{Images: []string{ref}}); !errors.Is(err, context.Canceled) {
		t.Errorf("Export with a cancelled context = %v", err)
	}

	d := must(s.Image(string(id))).Layers[0]
	at := filepath.Join(s.layerPath(d), layerFS, "a")
	if err := poke(at, 50_000); err != nil {
		t.Fatal(err)
	}
	refuse("a changed file", io.Discard, ExportOptions{Images: []string{ref}}, errkind.BadState, "/a: its contents have changed; `crid image verify` tells how")
	s.mu.Lock()
	s.layers[d].meta.Archive = 0
	s.mu.Unlock()
	refuse("a layer of an older crid", io.Discard, ExportOptions{Images: []string{ref}}, errkind.BadState, "an older crid has pulled it")
	checkStore(t, s)
}
