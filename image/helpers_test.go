package image

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	ggcrname "github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	ggcr "github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"github.com/cridproject/crid/internal/errkind"
)

// server is a registry in the process that can be told to misbehave.
type server struct {
	*httptest.Server
	host    string
	content http.Handler // the registry, which never misbehaves

	mu       sync.Mutex
	requests []*http.Request
	// before may answer a request in the registry's place: then it returns true.
	before func(w http.ResponseWriter, r *http.Request) bool
}

func newServer(tb testing.TB, options ...registry.Option) *server {
	tb.Helper()
	options = append(options, registry.Logger(log.New(io.Discard, "", 0)))
	s := &server{content: registry.New(options...)}
	s.Server = httptest.NewServer(s.wrap(s.content))
	tb.Cleanup(s.Close)
	s.host = strings.TrimPrefix(s.URL, "http://")
	return s
}

func (s *server) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		before := s.before
		if before != nil {
			s.requests = append(s.requests, r)
		}
		s.mu.Unlock()
		if before == nil || !before(w, r) {
			next.ServeHTTP(w, r)
		}
	})
}

// misbehave sets before and forgets the requests so far.
func (s *server) misbehave(before func(http.ResponseWriter, *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before, s.requests = before, nil
}

// hold makes the server wait with what it has below a path that ends with part, until
// release or the test's end. It counts requests, as misbehave does.
func (s *server) hold(t *testing.T, part string) (release func()) {
	held := make(chan struct{})
	s.misbehave(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, part) {
			<-held
		}
		return false
	})
	release = sync.OnceFunc(func() { close(held) })
	t.Cleanup(release)
	return release
}

func watch(http.ResponseWriter, *http.Request) bool { return false }

func (s *server) seen(method, part string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.requests {
		if (method == "" || r.Method == method) && strings.Contains(r.URL.Path, part) {
			n++
		}
	}
	return n
}

func (s *server) push(tb testing.TB, repo string, img v1.Image) string {
	tb.Helper()
	ref, err := ggcrname.ParseReference(s.host + "/" + repo)
	if err != nil {
		tb.Fatal(err)
	}
	if err := ggcr.Write(ref, img, ggcr.WithNondistributable); err != nil {
		tb.Fatal(err)
	}
	return ref.Name()
}

// randomText is letters that do not compress well, the same each time.
func randomText(n int) string {
	rnd := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte('!' + rnd.IntN(90))
	}
	return string(b)
}

// firstLayer is the digest and the compressed size of an image's first layer.
func firstLayer(tb testing.TB, img v1.Image) (digest string, size int) {
	tb.Helper()
	layers, err := img.Layers()
	if err != nil {
		tb.Fatal(err)
	}
	d, err := layers[0].Digest()
	if err != nil {
		tb.Fatal(err)
	}
	n, err := layers[0].Size()
	if err != nil {
		tb.Fatal(err)
	}
	return d.String(), int(n)
}

func gzipped(tb testing.TB, data []byte) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(data); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}

func zstdCompressed(tb testing.TB, data []byte) []byte {
	tb.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		tb.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(data, nil)
}

// testLayer is a layer as it stands: blob is what is fetched, raw the archive.
type testLayer struct {
	v1.Layer
	raw []byte
}

func (l testLayer) DiffID() (v1.Hash, error) {
	h, _, err := v1.SHA256(bytes.NewReader(l.raw))
	return h, err
}

func layerOf(tb testing.TB, entries ...tarEntry) v1.Layer {
	tb.Helper()
	raw := tarOf(tb, entries...)
	return testLayer{static.NewLayer(gzipped(tb, raw), types.OCILayer), raw}
}

func imageOf(tb testing.TB, layers ...v1.Layer) v1.Image {
	tb.Helper()
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	img, err := mutate.AppendLayers(img, layers...)
	if err != nil {
		tb.Fatal(err)
	}
	return img
}

func configured(tb testing.TB, img v1.Image, change func(*v1.Config)) v1.Image {
	tb.Helper()
	file, err := img.ConfigFile()
	if err != nil {
		tb.Fatal(err)
	}
	file = file.DeepCopy()
	change(&file.Config)
	img, err = mutate.ConfigFile(img, file)
	if err != nil {
		tb.Fatal(err)
	}
	return img
}

func idOf(tb testing.TB, img v1.Image) ID {
	tb.Helper()
	h, err := img.ConfigName()
	if err != nil {
		tb.Fatal(err)
	}
	return ID(h.String())
}

func newStore(tb testing.TB, change ...func(*Options)) *Store {
	tb.Helper()
	o := Options{Root: filepath.Join(tb.TempDir(), "store"), RegistryDirs: []string{}}
	for _, c := range change {
		c(&o)
	}
	s, err := New(o)
	if err != nil {
		tb.Fatal(err)
	}
	s.retryPause = time.Millisecond
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

func pull(tb testing.TB, s *Store, ref string) ID {
	tb.Helper()
	id, err := s.Pull(context.Background(), PullRequest{Ref: ref})
	if err != nil {
		tb.Fatalf("Pull(%s) = %v", ref, err)
	}
	return id
}

// wantEmpty fails when a failed pull has left something.
func wantEmpty(t *testing.T, s *Store) {
	t.Helper()
	s.trash.wait()
	for _, dir := range []string{"images", "layers", "ingest", "trash"} {
		if left, _ := os.ReadDir(s.path(dir)); len(left) > 0 {
			t.Errorf("%s still holds %v, want nothing", dir, left)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.layers)+len(s.images)+len(s.flights) > 0 {
		t.Errorf("the store still knows of %d layers, %d images and %d flights", len(s.layers), len(s.images), len(s.flights))
	}
}

func wantError(t *testing.T, err error, kind errkind.Kind, text string) {
	t.Helper()
	if !errkind.Is(err, kind) || !strings.Contains(err.Error(), text) {
		t.Errorf("error = %v (%v), want one of kind %v that says %q", err, errkind.Of(err), kind, text)
	}
}
