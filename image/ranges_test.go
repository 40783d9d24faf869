package image

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
)

// blobServer has one blob and nothing else.
type blobServer struct {
	*server
	data []byte
	desc ocispec.Descriptor

	now, most int // requests being answered; +checklocks:server.mu
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	var seed [32]byte
	_, _ = rand.NewChaCha8(seed).Read(b)
	return b
}

// newBlobServer serves data, by ranges if it is asked to.
func newBlobServer(tb testing.TB, data []byte, ranges bool) *blobServer {
	tb.Helper()
	b := &blobServer{server: &server{}, data: data, desc: ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}}
	b.content = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.count(1)
		defer b.count(-1)
		if !ranges {
			r.Header.Del("Range")
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	})
	b.Server = httptest.NewServer(b.wrap(b.content))
	tb.Cleanup(b.Close)
	b.misbehave(watch)
	return b
}

func (b *blobServer) count(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.now += n
	b.most = max(b.most, b.now)
}

// peak is how many requests were answered at once at most.
func (b *blobServer) peak() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.most
}

// connectTo is a source that asks the servers in turn.
func connectTo(tb testing.TB, s *Store, servers ...string) *remote {
	tb.Helper()
	text := fmt.Sprintf("server = %q\n", servers[len(servers)-1])
	for _, m := range servers[:len(servers)-1] {
		text += fmt.Sprintf("[host.%q]\n", m)
	}
	root := tb.TempDir()
	if err := os.Mkdir(filepath.Join(root, "registry.example"), 0o700); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "registry.example", hostsFile), []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
	ref, err := ParseReference("registry.example/app:v1")
	if err != nil {
		tb.Fatal(err)
	}
	r, err := connect(tb.Context(), ref, credentials{}, []string{root}, time.Minute, time.Millisecond)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(r.close)
	return r
}

// wantPlaces fails when not all places of Store.ranges are free.
func wantPlaces(t *testing.T, s *Store) {
	t.Helper()
	if !s.ranges.TryAcquire(int64(s.maxDownloads)) {
		t.Error("places for parts are still taken")
		return
	}
	s.ranges.Release(int64(s.maxDownloads))
}

func fetchLarge(t *testing.T, s *Store, src source, b *blobServer) error {
	t.Helper()
	l := s.openLayer(t.Context(), src, b.desc)
	defer l.Close()
	h := digest.SHA256.Hash()
	n, err := io.Copy(h, l)
	if err == nil && (n != b.desc.Size || digest.NewDigest(digest.SHA256, h) != b.desc.Digest) {
		t.Errorf("%d bytes came that are not the blob's %d", n, b.desc.Size)
	}
	return err
}

func TestLargeLayerInParts(t *testing.T) {
	data := randomBytes(9*rangeBytes + 12345)
	for _, c := range []struct {
		name       string
		ranges     bool
		downloads  int
		requests   [2]int // at least, at most
		concurrent int    // at most
	}{
		{"ranges", true, 6, [2]int{4, 10}, 4},
		{"few places", true, 2, [2]int{3, 10}, 3},
		{"one connection", true, 1, [2]int{1, 1}, 1},
		{"a server without ranges", false, 6, [2]int{1, 1}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			testutil.LeakCheck(t)
			srv := newBlobServer(t, data, c.ranges)
			s := newStore(t, func(o *Options) { o.MaxDownloads = c.downloads })
			if err := fetchLarge(t, s, connectTo(t, s, srv.URL), srv); err != nil {
				t.Fatal(err)
			}
			wantPlaces(t, s)
			if n := srv.seen("", ""); n < c.requests[0] || n > c.requests[1] || srv.peak() > c.concurrent {
				t.Errorf("%d requests, %d at once, want between %d and %d, at most %d at once", n, srv.peak(), c.requests[0], c.requests[1], c.concurrent)
			}
		})
	}
}

// TestLayersSharePlaces: parts that wait in memory are bounded for all layers together,
// and layers that get no place go on.
func TestLayersSharePlaces(t *testing.T) {
	data := randomBytes(6 * rangeBytes)
	srv := newBlobServer(t, data, true)
	s := newStore(t, func(o *Options) { o.MaxDownloads = 3 })
	src := connectTo(t, s, srv.URL)
	// The first takes all places and then is not read: the others must not wait for it.
	hog := s.openLayer(t.Context(), src, srv.desc)
	if _, err := io.ReadFull(hog, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	if s.ranges.TryAcquire(1) {
		t.Fatal("the first layer has not taken all places")
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if err := fetchLarge(t, s, src, srv); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	hog.Close()
	wantPlaces(t, s)
}

// TestPartsBreakOff breaks each part off once.
func TestPartsBreakOff(t *testing.T) {
	srv := newBlobServer(t, randomBytes(5*rangeBytes), true)
	var mu sync.Mutex
	broken := make(map[string]bool)
	srv.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		var first, last int
		fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last)
		mu.Lock()
		again := broken[fmt.Sprint(last)]
		broken[fmt.Sprint(last)] = true
		mu.Unlock()
		if again {
			return false
		}
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, len(srv.data)))
		w.Header().Set("Content-Length", fmt.Sprint(last-first+1))
		w.WriteHeader(http.StatusPartialContent)
		w.Write(srv.data[first : first+rangeBytes/3])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	s := newStore(t)
	if err := fetchLarge(t, s, connectTo(t, s, srv.URL), srv); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(broken) < 3 {
		t.Errorf("%d parts broke off, want some", len(broken))
	}
	wantPlaces(t, s)
}

// TestPartsOfTwoHosts: a mirror dies, and the registry behind it knows no ranges.
func TestPartsOfTwoHosts(t *testing.T) {
	data := randomBytes(8 * rangeBytes)
	mirror, last := newBlobServer(t, data, true), newBlobServer(t, data, false)
	n := 0
	mirror.misbehave(func(http.ResponseWriter, *http.Request) bool {
		mirror.mu.Lock()
		defer mirror.mu.Unlock()
		if n++; n > 3 {
			panic(http.ErrAbortHandler)
		}
		return false
	})
	s := newStore(t)
	if err := fetchLarge(t, s, connectTo(t, s, mirror.URL, last.URL), mirror); err != nil {
		t.Fatal(err)
	}
	mirror.mu.Lock()
	defer mirror.mu.Unlock()
	if n <= 3 || last.seen("", "") == 0 {
		t.Errorf("the mirror was asked %d times, the registry %d: want both", n, last.seen("", ""))
	}
	wantPlaces(t, s)
}

// TestPartFails: a part that cannot be had fails the layer, and closing it in the middle
// leaves nothing.
func TestPartFails(t *testing.T) {
	testutil.LeakCheck(t)
	srv := newBlobServer(t, randomBytes(8*rangeBytes), true)
	srv.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.Header.Get("Range"), "bytes=0-") {
			return false
		}
		w.WriteHeader(http.StatusForbidden)
		return true
	})
	s := newStore(t)
	err := fetchLarge(t, s, connectTo(t, s, srv.URL), srv)
	wantError(t, err, errkind.Other, "pull access to registry.example/app:v1")
	wantPlaces(t, s)

	srv.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasPrefix(r.Header.Get("Range"), "bytes=0-") {
			<-r.Context().Done()
			return true
		}
		return false
	})
	src := connectTo(t, s, srv.URL)
	l := s.openLayer(t.Context(), src, srv.desc)
	if _, err := io.ReadFull(l, make([]byte, rangeBytes)); err != nil {
		t.Fatal(err)
	}
	l.Close()
	src.close()
	wantPlaces(t, s)
}

// throttled lets each connection send only so many bytes in a second.
type throttled struct {
	net.Listener
	rate int
}

func (l throttled) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return throttledConn{c, l.rate}, err
}

type throttledConn struct {
	net.Conn
	rate int
}

func (c throttledConn) Write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		piece := p[:min(len(p), 64<<10)]
		<-time.After(time.Duration(len(piece)) * time.Second / time.Duration(c.rate))
		var m int
		m, err = c.Conn.Write(piece)
		n += m
		p = p[m:]
	}
	return n, err
}

// BenchmarkLayerFetch fetches a layer of 48 MiB: from a server that gives each
// connection 20 MB in a second, from one on this machine, and from one with HTTP/2;
// over one connection and in parts.
func BenchmarkLayerFetch(b *testing.B) {
	data := randomBytes(48 << 20)
	for _, c := range []struct {
		name string
		make func(*blobServer)
	}{
		{"throttled", func(s *blobServer) { s.Listener = throttled{s.Listener, 20_000_000}; s.Start() }},
		{"local", func(s *blobServer) { s.Start() }},
		{"TLS", func(s *blobServer) { s.StartTLS() }},
		{"HTTP2", func(s *blobServer) { s.EnableHTTP2 = true; s.StartTLS() }},
		{"HTTP2 throttled", func(s *blobServer) {
			s.EnableHTTP2, s.Listener = true, throttled{s.Listener, 20_000_000}
			s.StartTLS()
		}},
	} {
		for _, downloads := range []int{1, 6} {
			b.Run(fmt.Sprintf("%s/%d", c.name, downloads), func(b *testing.B) {
				srv := newBlobServer(b, data, true)
				srv.Server.Close()
				srv.Server = httptest.NewUnstartedServer(srv.content)
				c.make(srv)
				b.Cleanup(srv.Close)
				s := newStore(b, func(o *Options) { o.MaxDownloads = downloads })
				b.SetBytes(int64(len(data)))
				for b.Loop() {
					src := connectTo(b, s, srv.URL)
					for _, t := range src.hosts[0].transports {
						t.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // of the test's own server
						t.ForceAttemptHTTP2 = srv.EnableHTTP2
					}
					l := s.openLayer(b.Context(), src, srv.desc)
					if n, err := io.Copy(io.Discard, l); n != srv.desc.Size || err != nil {
						b.Fatal(n, err)
					}
					l.Close()
					src.close()
				}
			})
		}
	}
}
