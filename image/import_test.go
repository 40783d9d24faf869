package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	ggcrname "github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/cridproject/crid/internal/errkind"
)

// dockerArchive is what docker save writes.
func dockerArchive(t *testing.T, images map[string]v1.Image) []byte {
	t.Helper()
	refs := make(map[ggcrname.Tag]v1.Image)
	for tag, img := range images {
		ref, err := ggcrname.NewTag(tag)
		if err != nil {
			t.Fatal(err)
		}
		refs[ref] = img
	}
	var buf bytes.Buffer
	if err := tarball.MultiWrite(refs, &buf); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// ociArchive is an OCI layout as a tar; annotations are those of its images.
func ociArchive(t *testing.T, images []v1.Image, annotations ...map[string]string) []byte {
	t.Helper()
	dir := t.TempDir()
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	for i, img := range images {
		var o []layout.Option
		if i < len(annotations) {
			o = append(o, layout.WithAnnotations(annotations[i]))
		}
		if err := path.AppendImage(img, o...); err != nil {
			t.Fatal(err)
		}
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	w.Close()
	return buf.Bytes()
}

func TestImport(t *testing.T) {
	one := imageOf(t, layerOf(t, file("f", "1")), layerOf(t, file("g", "2")))
	two := imageOf(t, layerOf(t, file("f", "1")), layerOf(t, file("h", "3")))
	docker := dockerArchive(t, map[string]v1.Image{"busybox:v1": one})
	oci := ociArchive(t, []v1.Image{one}, map[string]string{"org.opencontainers.image.ref.name": "registry.example/one:v1"})
	for _, c := range []struct {
		name string
		in   []byte
		o    ImportOptions
		want map[ID][]string
	}{
		{"docker", docker, ImportOptions{}, map[ID][]string{idOf(t, one): {"docker.io/library/busybox:v1"}}},
		{"docker gzip", gzipped(t, docker), ImportOptions{}, map[ID][]string{idOf(t, one): {"docker.io/library/busybox:v1"}}},
		{
			"docker two names", dockerArchive(t, map[string]v1.Image{"a:1": one, "b:1": one, "c:1": two}),
			ImportOptions{},
			map[ID][]string{idOf(t, one): {"docker.io/library/a:1", "docker.io/library/b:1"}, idOf(t, two): {"docker.io/library/c:1"}},
		},
		{"oci", oci, ImportOptions{}, map[ID][]string{idOf(t, one): {"registry.example/one:v1"}}},
		{"oci zstd", zstdCompressed(t, oci), ImportOptions{}, map[ID][]string{idOf(t, one): {"registry.example/one:v1"}}},
		{
			"oci two", ociArchive(t, []v1.Image{one, two}, map[string]string{containerdName: "docker.io/library/x:1", "org.opencontainers.image.ref.name": "1"}, nil),
			ImportOptions{},
			map[ID][]string{idOf(t, one): {"docker.io/library/x:1"}, idOf(t, two): nil},
		},
		{"oci tag only", ociArchive(t, []v1.Image{one}, map[string]string{"org.opencontainers.image.ref.name": "latest"}), ImportOptions{}, map[ID][]string{idOf(t, one): nil}},
		{"given a name", oci, ImportOptions{Name: "mine"}, map[ID][]string{idOf(t, one): {"docker.io/library/mine:latest"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStore(t)
			got, err := s.Import(t.Context(), iotest.HalfReader(bytes.NewReader(c.in)), c.o)
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != len(c.want) || len(s.List()) != len(c.want) {
				t.Errorf("Import = %d images, want %d", len(got), len(c.want))
			}
			for _, i := range got {
				if !slices.Equal(i.RepoTags, c.want[i.ID]) {
					t.Errorf("%s has the names %v, want %v", i.ID, i.RepoTags, c.want[i.ID])
				}
			}
			checkStore(t, s)
			s.trash.wait()
			if left, _ := os.ReadDir(s.path("ingest")); len(left) > 0 {
				t.Errorf("ingest holds %v", left)
			}
		})
	}
}

// TestImportIsPull: the same image from a registry and an archive is one.
func TestImportIsPull(t *testing.T) {
	srv := newServer(t)
	img := imageOf(t, layerOf(t, file("f", "1")))
	s := newStore(t)
	id := pull(t, s, srv.push(t, "app:v1", img))
	if _, err := s.Import(t.Context(), bytes.NewReader(dockerArchive(t, map[string]v1.Image{"app:v2": img})), ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	if i, err := s.Image("app:v2"); err != nil || i.ID != id || len(i.RepoTags) != 2 || len(s.List()) != 1 {
		t.Errorf("Image = %+v, %v", i, err)
	}
}

func TestImportRefuses(t *testing.T) {
	img := imageOf(t, layerOf(t, file("f", strings.Repeat("1", 4000))))
	good := dockerArchive(t, map[string]v1.Image{"a:1": img})
	oci := ociArchive(t, []v1.Image{img})
	cut := func(in []byte, name string, change func(body []byte) []byte) []byte {
		return rewriteTar(t, in, name, change)
	}
	for _, c := range []struct {
		name string
		in   []byte
		want string
	}{
		{"nothing", nil, "neither"},
		{"garbage", bytes.Repeat([]byte("garbage!"), 300), "corrupt tar"},
		{"cut", good[:700], "corrupt tar"},
		{"cut gzip", gzipped(t, good)[:200], "corrupt gzip"},
		{"other tar", tarOf(t, file("f", "x")), "neither"},
		{"layer missing", cut(good, ".tar.gz", nil), "which is a layer"},
		{"layer changed", cut(good, ".tar.gz", func([]byte) []byte { return gzipped(t, tarOf(t, file("f", "2"))) }), "configuration says"},
		{"layer escapes", tarOf(t, escaping(t)...), "leads out"},
		{"blob missing", cut(oci, "blobs/", nil), "it has no file"},
		{"blob cut", cut(oci, "blobs/", func(b []byte) []byte { return b[:len(b)/2] }), "shorter than"},
		{"manifest.json is no JSON", tarOf(t, file("manifest.json", "[")), "manifest.json"},
		{"long names", tarOf(t, slices.Repeat([]tarEntry{file(strings.Repeat("x", 1<<20-100), "")}, 17)...), "more than 16 MiB"},
		{"large configurations", tarOf(t,
			file("c", "the later one counts"), file("c", `{"architecture": "`+runtime.GOARCH+`", "os": "linux", "rootfs": {"type": "layers"}}`+strings.Repeat(" ", maxConfig-200)),
			file("manifest.json", "["+strings.Repeat(`{"Config": "c"}, `, 5)+`{}]`)), "more than 32 MiB"},
		{"bad name", dockerNamed(t, good, "UPPER//x"), "image name"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStore(t)
			_, err := s.Import(t.Context(), bytes.NewReader(c.in), ImportOptions{})
			wantError(t, err, errkind.Invalid, c.want)
			wantEmpty(t, s)
		})
	}
	s := newStore(t)
	_, err := s.Import(t.Context(), bytes.NewReader(dockerArchive(t, map[string]v1.Image{"a:1": img, "b:1": imageOf(t)})), ImportOptions{Name: "x"})
	wantError(t, err, errkind.Invalid, "one image, not 2")
	_, err = s.Import(t.Context(), bytes.NewReader(good), ImportOptions{Name: "x@" + someDigest})
	wantError(t, err, errkind.Invalid, "must have a tag")
}

// rewriteTar changes the files whose name contains part; nil removes them.
func rewriteTar(t *testing.T, in []byte, part string, change func([]byte) []byte) []byte {
	t.Helper()
	var out []tarEntry
	for r := tar.NewReader(bytes.NewReader(in)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return tarOf(t, out...)
		}
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(r)
		if strings.Contains(h.Name, part) {
			if change == nil {
				continue
			}
			body = change(body)
		}
		out = append(out, tarEntry{tar.Header{Name: h.Name, Typeflag: h.Typeflag, Mode: h.Mode}, string(body)})
	}
}

func dockerNamed(t *testing.T, in []byte, name string) []byte {
	return rewriteTar(t, in, "manifest.json", func(body []byte) []byte {
		var m []map[string]any
		if err := json.Unmarshal(body, &m); err != nil {
			t.Fatal(err)
		}
		m[0]["RepoTags"] = []string{name}
		body, _ = json.Marshal(m)
		return body
	})
}

// escaping is a docker archive whose layer, and whose own names, lead out.
func escaping(t *testing.T) []tarEntry {
	raw := tarOf(t, file("../../f", "x"))
	d, _ := testLayer{raw: raw}.DiffID()
	config := fmt.Sprintf(`{"os":"linux","rootfs":{"type":"layers","diff_ids":[%q]}}`, d)
	return []tarEntry{
		file("../../../c.json", config), file("/etc/layer.tar", string(raw)),
		symlink("x/layer.tar", "../etc/layer.tar"), symlink("y", filepath.Join("/", "etc", "passwd")),
		file("manifest.json", `[{"Config":"../c.json","Layers":["x/layer.tar"]}]`),
	}
}
