package image

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	ggcr "github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	ggcrname "github.com/google/go-containerregistry/pkg/name"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
)

func checkStore(t *testing.T, s *Store) {
	t.Helper()
	for _, err := range s.Check(t.Context()) {
		t.Errorf("Check: %v", err)
	}
}

func layerFolders(t *testing.T, s *Store) int {
	t.Helper()
	entries, err := os.ReadDir(s.path("layers"))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestPullListRemove(t *testing.T) {
	testutil.LeakCheck(t)
	srv := newServer(t)
	t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)
	img := configured(t, imageOf(t, layerOf(t, file("f", "12345")), layerOf(t, file("g", "123"))), func(c *v1.Config) {
		c.User, c.Env, c.Entrypoint, c.Cmd, c.WorkingDir, c.StopSignal = "1000:5", []string{"A=b"}, []string{"/bin/sh"}, []string{"-c"}, "/srv", "SIGQUIT"
	})
	ref := srv.push(t, "team/app:v1", img)
	srv.push(t, "team/app:v2", img)
	s := newStore(t)
	id := pull(t, s, ref)
	if id != idOf(t, img) {
		t.Errorf("Pull = %s, want %s", id, idOf(t, img))
	}
	pull(t, s, strings.Replace(ref, "v1", "v2", 1))
	d, _ := img.Digest()
	byDigest := srv.host + "/team/app@" + d.String()
	pull(t, s, byDigest)
	list := s.List()
	if len(list) != 1 {
		t.Fatalf("List = %d images, want 1", len(list))
	}
	i := list[0]
	if !slices.Equal(i.RepoTags, []string{srv.host + "/team/app:v1", srv.host + "/team/app:v2"}) || !slices.Equal(i.RepoDigests, []string{byDigest}) {
		t.Errorf("names = %v %v", i.RepoTags, i.RepoDigests)
	}
	if i.UID == nil || *i.UID != 1000 || i.Username != "" || i.Config.Env[0] != "A=b" || i.Config.StopSignal != "SIGQUIT" || i.Config.WorkingDir != "/srv" {
		t.Errorf("image = %+v", i)
	}
	if i.Size != uint64(8+len(i.ConfigJSON)) {
		t.Errorf("Size = %d, want 8 bytes and the configuration's %d", i.Size, len(i.ConfigJSON))
	}
	for _, name := range []string{string(id), string(id[7:]), string(id[7:15]), string(id[:20]), ref, byDigest, strings.Replace(ref, "v1", "v1@"+d.String(), 1)} {
		if got, err := s.Image(name); err != nil || got.ID != id {
			t.Errorf("Image(%q) = %s, %v", name, got.ID, err)
		}
	}
	for _, name := range []string{"busybox", srv.host + "/team/app", "ffffffff", "sha256:00"} {
		if _, err := s.Image(name); !errkind.Is(err, errkind.NotFound) {
			t.Errorf("Image(%q) = %v, want NotFound", name, err)
		}
	}
	if _, err := s.Image("Busybox"); !errkind.Is(err, errkind.Invalid) {
		t.Errorf("Image of no name = %v, want Invalid", err)
	}
	fi, err := s.FsInfo(t.Context())
	if err != nil || fi.Images.UsedBytes < 8192 || fi.Images.Inodes != 4 || fi.Images.At.IsZero() || fi.Images.Mountpoint == "" {
		t.Errorf("FsInfo = %+v, %v", fi, err)
	}
	// kubelet compares the words.
	if fi.Containers.Mountpoint != fi.Images.Mountpoint {
		t.Errorf("FsInfo has containers on %s and images on %s, want one file system", fi.Containers.Mountpoint, fi.Images.Mountpoint)
	}
	checkStore(t, s)
	for range 2 {
		if err := s.Remove(t.Context(), ref); err != nil {
			t.Errorf("Remove = %v", err)
		}
	}
	if len(s.List()) != 0 {
		t.Error("the image is listed after Remove")
	}
	wantEmpty(t, s)
	checkStore(t, s)
	s.usage.wait()
}

func TestTagMoves(t *testing.T) {
	srv := newServer(t)
	base := layerOf(t, file("base", "x"))
	s := newStore(t)
	old := imageOf(t, base, layerOf(t, file("f", "1")))
	ref := srv.push(t, "app:latest", old)
	pull(t, s, ref)
	fresh := imageOf(t, base, layerOf(t, file("f", "2")))
	srv.push(t, "app:latest", fresh)
	pull(t, s, ref)
	if i, err := s.Image(ref); err != nil || i.ID != idOf(t, fresh) {
		t.Errorf("Image(%s) = %s, %v, want the new one", ref, i.ID, err)
	}
	i, err := s.Image(string(idOf(t, old)))
	if err != nil || len(i.RepoTags) != 0 || len(i.RepoDigests) != 1 {
		t.Errorf("the old image = %v, %v, want one without tags", i, err)
	}
	if n := layerFolders(t, s); n != 3 {
		t.Errorf("%d layers are stored, want 3: the base once", n)
	}
	if err := s.Remove(t.Context(), string(idOf(t, old))); err != nil {
		t.Error(err)
	}
	if n := layerFolders(t, s); n != 2 {
		t.Errorf("%d layers are stored, want 2", n)
	}
	checkStore(t, s)
}

func TestStoredLayersAreNotFetchedAgain(t *testing.T) {
	srv := newServer(t)
	base := layerOf(t, file("base", "x"))
	s := newStore(t)
	pull(t, s, srv.push(t, "a:1", imageOf(t, base)))
	ref := srv.push(t, "b:1", imageOf(t, base, layerOf(t, file("f", "1"))))
	srv.misbehave(watch)
	pull(t, s, ref)
	if n := srv.seen("GET", "/blobs/"); n != 2 { // configuration and one layer
		t.Errorf("%d blobs were fetched, want 2", n)
	}
}

// TestCorruptImages: each is refused with a reason and leaves nothing.
func TestCorruptImages(t *testing.T) {
	raw := tarOf(t, file("f", strings.Repeat("x", 5000)))
	gz := gzipped(t, raw)
	good := testLayer{static.NewLayer(gz, types.OCILayer), raw}
	lie := func(blob, raw []byte, mt types.MediaType) v1.Image { // raw says the diff ID
		return imageOf(t, testLayer{static.NewLayer(blob, mt), raw})
	}
	for _, c := range []struct {
		name string
		img  v1.Image
		want string
		kind errkind.Kind
	}{
		{"truncated gzip", lie(gz[:len(gz)-20], raw, types.OCILayer), "corrupt gzip data", errkind.Invalid},
		{"truncated tar", lie(gzipped(t, raw[:2000]), raw[:2000], types.OCILayer), "corrupt tar data", errkind.Invalid},
		{"wrong diff ID", lie(gz, []byte("something else"), types.OCILayer), "configuration says", errkind.Invalid},
		{"path escape", imageOf(t, layerOf(t, file("../f", "x"))), "leads out", errkind.Invalid},
		{"garbage", lie([]byte("garbage"), []byte("garbage"), types.OCILayer), "corrupt tar data", errkind.Invalid},
		{"bomb", imageOf(t, layerOf(t, file("f", strings.Repeat("x", 1<<20)))), "more space", errkind.Invalid},
		{"padding", lie(gzipped(t, append(slices.Clone(raw), make([]byte, 1<<20)...)), raw, types.OCILayer), "configuration says", errkind.Invalid},
		{"layer of unknown type", lie(gz, raw, "application/x-unknown"), "not that of a layer", errkind.Invalid},
		{"artifact", mutate.ConfigMediaType(imageOf(t, good), "application/vnd.example+json"), "not an image", errkind.Invalid},
		{"for Windows", configFile(t, imageOf(t, good), func(f *v1.ConfigFile) { f.OS = "windows" }), "not for Linux", errkind.Invalid},
		{"fewer layers", configFile(t, imageOf(t, good), func(f *v1.ConfigFile) { f.RootFS.DiffIDs = nil }), "1 layers and its configuration 0", errkind.Invalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			srv := newServer(t)
			ref := srv.push(t, "app:v1", c.img)
			s := newStore(t, func(o *Options) { o.Limits.Bytes = 512 << 10 })
			_, err := s.Pull(t.Context(), PullRequest{Ref: ref})
			wantError(t, err, c.kind, c.want)
			wantEmpty(t, s)
		})
	}
}

func configFile(t *testing.T, img v1.Image, change func(*v1.ConfigFile)) v1.Image {
	t.Helper()
	f, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	f = f.DeepCopy()
	change(f)
	if img, err = mutate.ConfigFile(img, f); err != nil {
		t.Fatal(err)
	}
	return img
}

// TestLyingRegistry: what is served is not what its digest says.
func TestLyingRegistry(t *testing.T) {
	img := imageOf(t, layerOf(t, file("f", strings.Repeat("x", 5000))))
	layers, _ := img.Layers()
	layer, _ := layers[0].Digest()
	config, _ := img.ConfigName()
	manifest, _ := img.Digest()
	for _, c := range []struct{ name, path, answer, want string }{
		{"layer", layer.String(), "", "has the digest"},
		{"longer layer", layer.String(), strings.Repeat("y", 6000), ""},
		{"config", config.String(), "same size", "something else"},
		{"manifest", "manifests/" + manifest.String(), "same size", "something else"},
		{"schema 1", "/manifests/", `{"schemaVersion":1,"fsLayers":[]}`, "schema 1"},
		{"neither image nor index", "/manifests/", `{"hello":"world"}`, "neither an image nor an index"},
		{"both", "/manifests/", `{"config":{},"manifests":[]}`, "has layers as well"},
		{"not JSON", "/manifests/", `<html>`, "manifest"},
	} {
		t.Run(c.name, func(t *testing.T) {
			srv := newServer(t)
			ref := srv.push(t, "app:v1", img)
			answer := []byte(c.answer)
			if c.name == "layer" {
				answer = gzipped(t, tarOf(t, file("f", strings.Repeat("y", 5000))))
			}
			if c.answer == "same size" {
				body, _ := img.RawConfigFile()
				if c.name == "manifest" {
					body, _ = img.RawManifest()
				}
				answer = bytes.ToUpper(body)
			}
			srv.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, c.path) || c.path != "/manifests/" && r.Method != http.MethodGet {
					return false
				}
				d := digest.FromBytes(answer)
				w.Header().Set("Docker-Content-Digest", d.String())
				w.Header().Set("Content-Type", "application/json")
				w.Header().Set("Content-Length", fmt.Sprint(len(answer)))
				if r.Method == http.MethodGet {
					w.Write(answer)
				}
				return true
			})
			s := newStore(t)
			_, err := s.Pull(t.Context(), PullRequest{Ref: ref})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Pull = %v, want an error that says %q", err, c.want)
			}
			wantEmpty(t, s)
		})
	}
}

func TestPullFormats(t *testing.T) {
	raw := tarOf(t, file("f", "x"))
	docker, err := mutate.AppendLayers(empty.Image, testLayer{static.NewLayer(gzipped(t, raw), types.DockerLayer), raw})
	if err != nil {
		t.Fatal(err)
	}
	srv := newServer(t)
	s := newStore(t)
	for name, img := range map[string]v1.Image{
		"docker":   docker,
		"plain":    imageOf(t, testLayer{static.NewLayer(raw, types.OCIUncompressedLayer), raw}),
		"zstd":     imageOf(t, testLayer{static.NewLayer(zstdCompressed(t, raw), types.OCILayerZStd), raw}),
		"mislabel": imageOf(t, testLayer{static.NewLayer(raw, types.OCILayer), raw}),
		"foreign":  imageOf(t, testLayer{static.NewLayer(gzipped(t, raw), types.DockerForeignLayer), raw}),
		"limited":  imageOf(t, testLayer{static.NewLayer(gzipped(t, raw), types.OCIRestrictedLayer), raw}),
		"none":     imageOf(t),
		"twice":    imageOf(t, layerOf(t, file("f", "x")), layerOf(t, file("g", "x")), layerOf(t, file("f", "x"))),
	} {
		t.Run(name, func(t *testing.T) {
			id := pull(t, s, srv.push(t, name+":v1", img))
			fs, err := s.Prepare(t.Context(), id, name)
			if err != nil || len(fs.Lower) == 0 {
				t.Fatalf("Prepare = %+v, %v", fs, err)
			}
			if name != "none" {
				if got, err := os.ReadFile(filepath.Join(fs.Lower[len(fs.Lower)-1], "f")); len(fs.Lower) == 1 && (err != nil || string(got) != "x") {
					t.Errorf("the file holds %q, %v", got, err)
				}
			}
		})
	}
	checkStore(t, s)
}

func TestPlatforms(t *testing.T) {
	srv := newServer(t)
	var ix v1.ImageIndex = empty.Index
	ids := make(map[string]ID)
	for _, p := range []string{"linux/arm/v6", "linux/arm/v7", "linux/amd64", "linux/amd64/v2", "linux/amd64/v3", "windows/amd64", "unknown/unknown"} {
		platform, _ := v1.ParsePlatform(p)
		img := imageOf(t, layerOf(t, file("platform", p)))
		ids[p] = idOf(t, img)
		ix = mutate.AppendManifests(ix, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: platform}})
	}
	ref, _ := ggcrname.ParseReference(srv.host + "/multi:v1")
	if err := ggcr.WriteIndex(ref, ix); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		arch, variant, want string
	}{
		{"amd64", "", "linux/amd64"}, {"amd64", "v2", "linux/amd64/v2"}, {"amd64", "v4", "linux/amd64/v3"}, {"arm", "v8", "linux/arm/v7"}, {"arm", "v7", "linux/arm/v7"}, {"arm", "v6", "linux/arm/v6"}, {"arm64", "v8", "linux/arm/v7"}, {"s390x", "", ""},
	} {
		s := newStore(t, func(o *Options) {
			o.Platform = &ocispec.Platform{OS: "linux", Architecture: c.arch, Variant: c.variant}
		})
		id, err := s.Pull(t.Context(), PullRequest{Ref: ref.Name()})
		if c.want == "" {
			wantError(t, err, errkind.NotFound, "no image for linux/s390x")
			continue
		}
		if err != nil || id != ids[c.want] {
			t.Errorf("Pull on %s%s = %s, %v, want the image for %s", c.arch, c.variant, id, err, c.want)
		}
		d, _ := ix.Digest()
		if i, _ := s.Image(ref.Name()); len(i.RepoDigests) != 1 || !strings.HasSuffix(i.RepoDigests[0], d.String()) {
			t.Errorf("RepoDigests = %v, want the index's %s", i.RepoDigests, d)
		}
	}
}

func TestOneStoreOpen(t *testing.T) {
	s := newStore(t)
	_, err := New(Options{Root: s.root})
	wantError(t, err, errkind.BadState, "another process")
	if _, err := New(Options{}); !errkind.Is(err, errkind.Invalid) {
		t.Errorf("New without a root = %v", err)
	}
}

func TestResolveNames(t *testing.T) {
	a := &record{ID: "sha256:a", Names: []name{{"x:1", 3}, {"y:1", 1}}}
	b := &record{ID: "sha256:b", Names: []name{{"x:1", 5}}}
	changed := resolveNames([]*record{a, b})
	if len(changed) != 1 || changed[0] != a || len(a.Names) != 1 || a.Names[0].Ref != "y:1" || len(b.Names) != 1 {
		t.Errorf("resolveNames: a = %v, b = %v, changed %d", a.Names, b.Names, len(changed))
	}
}
