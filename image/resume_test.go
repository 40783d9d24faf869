package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
)

// flaky answers the first n requests whose path has part by bad, the others as usual.
func flaky(n int, part string, bad func(http.ResponseWriter)) (before func(http.ResponseWriter, *http.Request) bool) {
	var mu sync.Mutex
	return func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if n == 0 || !strings.Contains(r.URL.Path, part) {
			return false
		}
		n--
		bad(w)
		return true
	}
}

// TestRetries: what may pass is tried again, for manifests and for blobs.
func TestRetries(t *testing.T) {
	srv := newServer(t)
	ref := srv.push(t, "app:v1", imageOf(t, layerOf(t, file("f", "x"))))
	status := func(code int, retryAfter string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			if retryAfter != "" {
				w.Header().Set("Retry-After", retryAfter)
			}
			w.WriteHeader(code)
		}
	}
	abort := func(http.ResponseWriter) { panic(http.ErrAbortHandler) }
	for _, part := range []string{"/manifests/", "/blobs/"} {
		for _, c := range []struct {
			name  string
			bad   func(http.ResponseWriter)
			times int
			works bool
		}{
			{"500", status(500, ""), 4, true},
			{"502", status(502, ""), 4, true},
			{"503 with a date", status(503, time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat)), 4, true},
			{"504", status(504, ""), 4, true},
			{"429", status(429, "0"), 4, true},
			{"408", status(408, ""), 1, true},
			{"reset", abort, 4, true},
			{"too often", status(503, ""), 5, false},
			{"asks to wait for an hour", status(429, "3600"), 1, false},
			{"400", status(400, ""), 2, false}, // with HEAD, and with GET for the reason
			{"404", status(404, ""), 1, false},
			{"451", status(451, ""), 2, false},
			{"501", status(501, ""), 1, false},
		} {
			t.Run(c.name+" for "+part, func(t *testing.T) {
				srv.misbehave(flaky(c.times, part, c.bad))
				s := newStore(t)
				_, err := s.Pull(t.Context(), PullRequest{Ref: ref})
				if (err == nil) != c.works {
					t.Errorf("Pull = %v, want that it works: %v", err, c.works)
				}
				if n := srv.seen("", part); err != nil && n > c.times {
					t.Errorf("%d requests, want at most %d", n, c.times)
				}
				if err != nil {
					wantEmpty(t, s)
				}
			})
		}
	}
}

// TestPause: the pause grows, differs from node to node, and is at least what the
// registry asks for.
func TestPause(t *testing.T) {
	r := &remote{pause: 200 * time.Millisecond}
	seen := make(map[time.Duration]bool)
	for range 50 {
		for tries, want := range []time.Duration{200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond, 1600 * time.Millisecond} {
			got := r.pauseAfter(errors.New("x"), tries+1)
			if got < want/2 || got > want*3/2 {
				t.Fatalf("pause %d is %v, want about %v", tries+1, got, want)
			}
			seen[got] = true
		}
	}
	if len(seen) < 20 {
		t.Errorf("200 pauses have only %d lengths", len(seen))
	}
	e := &endpoint{}
	r.hosts = []*endpoint{e}
	limited := &chainError{remote: r, tries: []hostError{{e, &statusError{code: 429, retryAfter: 7 * time.Second}}}}
	if got := r.pauseAfter(limited, 1); got != 7*time.Second {
		t.Errorf("pause = %v, want the 7 s that the registry asks for", got)
	}
	for value, want := range map[string]time.Duration{"": 0, "5": 5 * time.Second, "-1": 0, "soon": 0, "Thu, 01 Jan 1970 00:02:00 GMT": 2 * time.Minute, "Wed, 31 Dec 1969 00:00:00 GMT": 0} {
		if got := retryAfter(value, time.Unix(0, 0)); got != want {
			t.Errorf("retryAfter(%q) = %v, want %v", value, got, want)
		}
	}
}

// TestResumeAtOddServers breaks a layer off in the middle and looks what happens at
// servers that do not know ranges, or do not know them well.
func TestResumeAtOddServers(t *testing.T) {
	srv := newServer(t)
	img := imageOf(t, layerOf(t, file("f", randomText(100_000))))
	ref := srv.push(t, "app:v1", img)
	digest, size := firstLayer(t, img)
	path := "/v2/app/blobs/" + digest
	rec := httptest.NewRecorder()
	srv.content.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, path, nil))
	data := rec.Body.Bytes()
	if len(data) != size {
		t.Fatalf("the layer has %d bytes, want %d", len(data), size)
	}
	all := func(w http.ResponseWriter) { w.Write(data) }
	partial := func(w http.ResponseWriter, first, total int, body []byte) {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, first+len(body)-1, total))
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		w.WriteHeader(http.StatusPartialContent)
		w.Write(body)
	}
	for _, c := range []struct {
		name   string
		answer func(w http.ResponseWriter, ranged bool)
		ok     bool
	}{
		{"ignores ranges", func(w http.ResponseWriter, _ bool) { all(w) }, true},
		{"416", func(w http.ResponseWriter, ranged bool) {
			if ranged {
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return
			}
			all(w)
		}, true},
		{"sends what was asked for", func(w http.ResponseWriter, _ bool) { partial(w, size/2, size, data[size/2:]) }, true},
		{"sends another range", func(w http.ResponseWriter, _ bool) { partial(w, 0, size, data) }, false},
		{"has another size", func(w http.ResponseWriter, _ bool) { partial(w, size/2, size+1, data[size/2:]) }, false},
		{"206 without a range", func(w http.ResponseWriter, _ bool) { w.WriteHeader(206); w.Write(data[size/2:]) }, false},
		{"other bytes of this size", func(w http.ResponseWriter, _ bool) {
			other := slices.Clone(data[size/2:])
			other[len(other)/2] ^= 1
			partial(w, size/2, size, other)
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := 0
			srv.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method != http.MethodGet || r.URL.Path != path {
					return false
				}
				if n++; n > 1 {
					c.answer(w, r.Header.Get("Range") != "")
					return true
				}
				w.Header().Set("Content-Length", fmt.Sprint(size))
				w.Write(data[:size/2])
				w.(http.Flusher).Flush()
				panic(http.ErrAbortHandler)
			})
			s := newStore(t)
			_, err := s.Pull(t.Context(), PullRequest{Ref: ref})
			if (err == nil) != c.ok {
				t.Errorf("Pull = %v, want that it works: %v", err, c.ok)
			}
			if err != nil {
				wantError(t, err, errkind.Invalid, digest)
				wantEmpty(t, s)
			}
		})
	}
}

// TestStallAtAMirror: when nothing comes any more from a mirror, the next host goes on.
func TestStallAtAMirror(t *testing.T) {
	srv := newServer(t)
	img := imageOf(t, layerOf(t, file("f", randomText(100_000))))
	srv.push(t, "app:v1", img)
	digest, size := firstLayer(t, img)
	mirror := sameContent(t, srv)
	mirror.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, digest) {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(size))
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return true
	})
	root := certsDir(t, "registry.example", fmt.Sprintf("server = %q\n[host.%q]\n", srv.URL, mirror.URL))
	s := newStore(t, withCerts(root), func(o *Options) { o.ProgressTimeout = time.Second })
	pull(t, s, "registry.example/app:v1")
}

// TestSilence: a server that takes a request and says nothing, at each kind of request.
func TestSilence(t *testing.T) {
	srv := newServer(t)
	ref := srv.push(t, "app:v1", imageOf(t, layerOf(t, file("f", "x"))))
	silent := func(part string) func(http.ResponseWriter, *http.Request) bool {
		return func(_ http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, part) {
				return false
			}
			<-r.Context().Done()
			return true
		}
	}
	for _, where := range []string{"/manifests/", "/blobs/", "token"} {
		t.Run(where, func(t *testing.T) {
			srv.misbehave(silent(where))
			if where == "token" {
				authServer(t, srv, ":", "the-token").misbehave(silent(where))
			}
			s := newStore(t, func(o *Options) { o.ProgressTimeout = 50 * time.Millisecond })
			_, err := s.Pull(t.Context(), PullRequest{Ref: ref})
			wantError(t, err, errkind.Unavailable, "no answer within 50ms")
			if err != nil && !strings.HasPrefix(err.Error(), registryUnavailable) {
				t.Errorf("Pull = %v, want it to begin with %q", err, registryUnavailable)
			}
			wantEmpty(t, s)
		})
	}
}

// TestHalfAnAnswer: a server that begins an answer of a few bytes and does not end it.
func TestHalfAnAnswer(t *testing.T) {
	// half answers requests for part with a code and the first byte.
	half := func(part string, code int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, part) {
				return false
			}
			w.WriteHeader(code)
			_, _ = io.WriteString(w, "{")
			w.(http.Flusher).Flush()
			if r.Method != http.MethodHead { // that has been answered
				<-r.Context().Done()
			}
			return true
		}
	}
	for name, c := range map[string]struct {
		part string
		code int
		says string
	}{
		"manifest that must be measured": {"/manifests/", http.StatusOK, "no answer within 50ms"},
		"error":                          {"/blobs/", http.StatusInternalServerError, "500 Internal Server Error"},
		"token":                          {"token", http.StatusOK, "no answer within 50ms"},
		"token server's error":           {"token", http.StatusBadGateway, "502 Bad Gateway"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := newServer(t)
			ref := srv.push(t, "app:v1", imageOf(t, layerOf(t, file("f", "x"))))
			srv.misbehave(half(c.part, c.code))
			if c.part == "token" {
				authServer(t, srv, ":", "the-token").misbehave(half(c.part, c.code))
			}
			s := newStore(t, func(o *Options) { o.ProgressTimeout = 50 * time.Millisecond })
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			_, err := s.Pull(ctx, PullRequest{Ref: ref})
			wantError(t, err, errkind.Unavailable, c.says)
			wantEmpty(t, s)
		})
	}
}

// TestWhoSharesDownloads: pulls with the same credentials, however they are written, share a
// layer's download; others do not.
func TestWhoSharesDownloads(t *testing.T) {
	srv := newServer(t)
	img := imageOf(t, layerOf(t, file("f", randomText(10_000))))
	ref := srv.push(t, "app:v1", img)
	digest, _ := firstLayer(t, img)
	joe, ann := &Auth{Username: "joe", Password: "secret"}, &Auth{Username: "ann", Password: "secret"}
	basic := &Auth{Auth: "am9lOnNlY3JldA=="} // joe's, written otherwise
	for _, c := range []struct {
		name  string
		auths []*Auth
		want  int // downloads of the layer
	}{
		{"one written otherwise", []*Auth{joe, joe, basic}, 1},
		{"three ways", []*Auth{nil, joe, ann, nil, basic}, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			release := srv.hold(t, digest)
			s := newStore(t)
			errs := make(chan error)
			for _, auth := range c.auths {
				go func() {
					_, err := s.Pull(t.Context(), PullRequest{Ref: ref, Auth: auth})
					errs <- err
				}()
			}
			testutil.WaitFor(t, "the pulls to wait for the layer", func() bool { return s.waiters() == len(c.auths) })
			release()
			for range c.auths {
				if err := <-errs; err != nil {
					t.Error(err)
				}
			}
			if n := srv.seen("GET", digest); n != c.want {
				t.Errorf("the layer was fetched %d times, want %d", n, c.want)
			}
			if n := layerFolders(t, s); n != 1 {
				t.Errorf("%d layers are stored, want one", n)
			}
			checkStore(t, s)
		})
	}
}

// waiters is how many pulls wait for a layer.
func (s *Store) waiters() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waitersLocked()
}

// +checklocks:s.mu
func (s *Store) waitersLocked() (n int) {
	for _, f := range s.flights {
		n += f.waiters
	}
	return n
}

// TestSharedDownloadOutlivesItsPull: who joined a download keeps it when the pull that
// began it is given up.
func TestSharedDownloadOutlivesItsPull(t *testing.T) {
	srv := newServer(t)
	img := imageOf(t, layerOf(t, file("f", randomText(10_000))))
	ref := srv.push(t, "app:v1", img)
	digest, _ := firstLayer(t, img)
	release := srv.hold(t, digest)
	s := newStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := s.Pull(ctx, PullRequest{Ref: ref})
		first <- err
	}()
	testutil.WaitFor(t, "the pulls to wait for the layer", func() bool { return s.waiters() == 1 })
	go func() {
		_, err := s.Pull(t.Context(), PullRequest{Ref: ref})
		second <- err
	}()
	testutil.WaitFor(t, "the pulls to wait for the layer", func() bool { return s.waiters() == 2 })
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the pull given up ended with %v", err)
	}
	release()
	if err := <-second; err != nil {
		t.Error(err)
	}
	if n := srv.seen("GET", digest); n != 1 {
		t.Errorf("the layer was fetched %d times, want once", n)
	}
}
