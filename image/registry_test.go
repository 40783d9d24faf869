package image

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cridproject/crid/internal/errkind"
)

func TestRegistryErrors(t *testing.T) {
	srv := newServer(t)
	ref := srv.push(t, "app:v1", imageOf(t, layerOf(t, file("f", "x"))))
	status := func(code int, on string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, on) {
				return false
			}
			w.WriteHeader(code)
			fmt.Fprint(w, `{"errors":[{"message":"see https://user:secret@x.example/?sig=secret"}]}`)
			return true
		}
	}
	for _, c := range []struct {
		name   string
		before func(http.ResponseWriter, *http.Request) bool
		kind   errkind.Kind
		prefix string
	}{
		{"500", status(500, "/manifests/"), errkind.Unavailable, "RegistryUnavailable: "},
		{"503 for a layer", status(503, "/blobs/"), errkind.Unavailable, "RegistryUnavailable: "},
		{"403", status(403, "/manifests/"), errkind.Other, "pull access to "},
		{"401", status(401, "/manifests/"), errkind.Other, "pull access to "},
		{"404", status(404, "/"), errkind.NotFound, "image " + srv.host},
		{"404 for a layer", status(404, "/blobs/"), errkind.NotFound, "image " + srv.host},
		{"429", status(429, "/manifests/"), errkind.Unavailable, "image " + srv.host},
		{"broken connection", func(w http.ResponseWriter, _ *http.Request) bool { panic(http.ErrAbortHandler) }, errkind.Unavailable, "RegistryUnavailable: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			srv.misbehave(c.before)
			s := newStore(t)
			_, err := s.Pull(t.Context(), PullRequest{Ref: ref})
			wantError(t, err, c.kind, srv.host+"/app:v1")
			if err != nil && (!strings.HasPrefix(err.Error(), c.prefix) || strings.Contains(err.Error(), "secret")) {
				t.Errorf("Pull = %q, want it to begin with %q and tell no secret", err, c.prefix)
			}
			wantEmpty(t, s)
		})
	}
	srv.misbehave(nil)
	srv.Close()
	_, err := newStore(t).Pull(t.Context(), PullRequest{Ref: ref})
	if err == nil || !strings.HasPrefix(err.Error(), "RegistryUnavailable: ") {
		t.Errorf("Pull from nobody = %v, want RegistryUnavailable", err)
	}
	_, err = newStore(t).Pull(t.Context(), PullRequest{Ref: "registry.invalid/app"})
	if err == nil || !strings.HasPrefix(err.Error(), "RegistryUnavailable: ") {
		t.Errorf("Pull from a name that is none = %v, want RegistryUnavailable", err)
	}
}

// authServer makes srv ask for what auth says: a token of a token server, or a
// name and password.
func authServer(t *testing.T, srv *server, want, token string) (tokens *server) {
	t.Helper()
	tokens = &server{}
	tokens.Server = httptest.NewServer(tokens.wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		user, pass, _ := r.BasicAuth()
		given := user + ":" + pass
		if r.Method == http.MethodPost {
			given = r.Form.Get("username") + ":" + r.Form.Get("password")
			if r.Form.Get("grant_type") == "refresh_token" {
				given = "refresh:" + r.Form.Get("refresh_token")
			}
		}
		if given != want {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprintf(w, `{"token":%q,"access_token":%q}`, token, token)
	})))
	tokens.misbehave(watch)
	t.Cleanup(tokens.Close)
	srv.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "Bearer "+token {
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="test",scope="repository:app:pull"`, tokens.URL))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	return tokens
}

func TestPullWithCredentials(t *testing.T) {
	srv := newServer(t)
	ref := srv.push(t, "app:v1", imageOf(t, layerOf(t, file("f", "x"))))
	basic := base64.StdEncoding.EncodeToString([]byte("joe:secret"))
	for _, c := range []struct {
		name string
		want string // what the token server must be given
		auth *Auth
		ok   bool
	}{
		{"password", "joe:secret", &Auth{Username: "joe", Password: "secret"}, true},
		{"auth", "joe:secret", &Auth{Auth: basic}, true},
		{"identity token", "refresh:id-token", &Auth{IdentityToken: "id-token"}, true},
		{"registry token", "nothing", &Auth{RegistryToken: "the-token"}, true},
		{"for this registry", "joe:secret", &Auth{Auth: basic, ServerAddress: "https://" + srv.host + "/v2/"}, true},
		{"for another registry", "joe:secret", &Auth{Auth: basic, ServerAddress: "registry.example"}, false},
		{"wrong password", "joe:secret", &Auth{Username: "joe", Password: "secret2"}, false},
		{"wrong registry token", "nothing", &Auth{RegistryToken: "secret3"}, false},
		{"none", "joe:secret", nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			authServer(t, srv, c.want, "the-token")
			s := newStore(t)
			_, err := s.Pull(t.Context(), PullRequest{Ref: ref, Auth: c.auth})
			if (err == nil) != c.ok {
				t.Errorf("Pull = %v, want ok %v", err, c.ok)
			}
			if err != nil {
				wantError(t, err, errkind.Other, "pull access to "+ref+" denied")
				if strings.Contains(err.Error(), "secret") {
					t.Errorf("Pull = %v, which tells the secret", err)
				}
				wantEmpty(t, s)
			}
		})
	}
	_, err := newStore(t).Pull(t.Context(), PullRequest{Ref: ref, Auth: &Auth{Auth: "%%"}})
	wantError(t, err, errkind.Invalid, "auth: ")
	if got := fmt.Sprintf("%v %+v %#v", Auth{Password: "secret"}, Auth{Password: "secret"}, &Auth{Password: "secret"}); strings.Contains(got, "secret") {
		t.Errorf("Auth prints as %s", got)
	}
}

// TestCredentialsStayHome: a mirror, a redirect and a redirect to another port get
// none.
func TestCredentialsStayHome(t *testing.T) {
	srv, mirror, storage := newServer(t), newServer(t), newServer(t)
	img := imageOf(t, layerOf(t, file("f", "x")))
	ref := srv.push(t, "app:v1", img)
	storage.push(t, "app:v1", img)
	storage.misbehave(watch)
	mirror.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("WWW-Authenticate", `Basic realm="give me all"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	certs := t.TempDir()
	hosts := filepath.Join(certs, strings.Replace(srv.host, ":", "_", 1)+"_")
	if err := os.Mkdir(hosts, 0o700); err != nil {
		t.Fatal(err)
	}
	conf := fmt.Sprintf("server = %q\n[host.%q]\ncapabilities = [\"pull\", \"resolve\"]\n", srv.URL, mirror.URL)
	if err := os.WriteFile(filepath.Join(hosts, "hosts.toml"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, auth := range map[string]*Auth{"password": {Username: "joe", Password: "secret"}, "registry token": {RegistryToken: "the-token"}} {
		t.Run(name, func(t *testing.T) {
			authServer(t, srv, "joe:secret", "the-token")
			checked := srv.before
			srv.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
				if checked(w, r) {
					return true
				}
				if strings.Contains(r.URL.Path, "/blobs/") && r.Method == http.MethodGet {
					http.Redirect(w, r, storage.URL+r.URL.Path+"?sig=secret", http.StatusTemporaryRedirect)
					return true
				}
				return false
			})
			s := newStore(t, func(o *Options) { o.RegistryDirs = []string{filepath.Join(certs, "absent"), certs} })
			if _, err := s.Pull(t.Context(), PullRequest{Ref: ref, Auth: auth}); err != nil {
				t.Fatal(err)
			}
			if mirror.seen("HEAD", "/manifests/") == 0 || storage.seen("GET", "/blobs/") < 2 {
				t.Error("the mirror or the blob store was not asked")
			}
			for _, other := range []*server{mirror, storage} {
				for _, r := range other.requests {
					if r.Header.Get("Authorization") != "" || strings.Contains(r.URL.String(), "joe") {
						t.Errorf("%s %s came with %q", r.Method, r.URL, r.Header.Get("Authorization"))
					}
				}
			}
		})
	}
}

func TestMirrors(t *testing.T) {
	srv := newServer(t)
	img := imageOf(t, layerOf(t, file("f", "x")))
	srv.push(t, "mirrored/pause:3", img)
	srv.misbehave(watch)
	certs := t.TempDir()
	s := newStore(t, func(o *Options) { o.RegistryDirs = []string{certs} })
	write := func(text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(certs, "registry.k8s.io"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(certs, "registry.k8s.io", "hosts.toml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(fmt.Sprintf("server = \"https://registry.invalid\"\n[host.%q]\noverride_path = true\n[host.%q.header]\nx-team = \"green\"\n", srv.URL+"/v2/mirrored", srv.URL+"/v2/mirrored"))
	if got, want := pull(t, s, "registry.k8s.io/pause:3"), idOf(t, img); got != want {
		t.Errorf("Pull through a mirror = %s, want %s", got, want)
	}
	if i, err := s.Image("registry.k8s.io/pause:3"); err != nil || i.RepoTags[0] != "registry.k8s.io/pause:3" {
		t.Errorf("Image = %v, %v", i, err)
	}
	for _, r := range srv.requests {
		if r.Header.Get("X-Team") != "green" || r.URL.Query().Get("ns") != "registry.k8s.io" {
			t.Errorf("%s came without the configured header or the registry's name", r.URL)
		}
	}
	write("# ours\nserver = 'unclosed")
	_, err := s.Pull(t.Context(), PullRequest{Ref: "registry.k8s.io/pause:3"})
	wantError(t, err, errkind.Invalid, "registry.k8s.io/hosts.toml:2: ")
}

func TestPullResumes(t *testing.T) {
	srv := newServer(t)
	body := bytes.Repeat([]byte("0123456789abcdef"), 1<<14)
	for i := range body {
		body[i] ^= byte(i * 7919 >> 5)
	}
	img := imageOf(t, layerOf(t, file("f", string(body))))
	ref := srv.push(t, "app:v1", img)
	layers, _ := img.Layers()
	digest, _ := layers[0].Digest()
	packed, _ := layers[0].Compressed()
	data, _ := io.ReadAll(packed)
	var ranges []string
	srv.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, digest.String()) {
			return false
		}
		ranges = append(ranges, r.Header.Get("Range"))
		from := 0
		fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
		w.Header().Set("Content-Length", fmt.Sprint(len(data)-from))
		if from > 0 {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(data)-1, len(data)))
			w.WriteHeader(http.StatusPartialContent)
		}
		w.Write(data[from:min(len(data), from+len(data)/3+1)]) // and the connection breaks
		if from+len(data)/3+1 < len(data) {
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
		return true
	})
	s := newStore(t)
	pull(t, s, ref)
	if len(ranges) != 3 || ranges[0] != "" || !strings.HasPrefix(ranges[1], "bytes=") {
		t.Errorf("the layer was asked for with the ranges %q, want three that go on", ranges)
	}
}

func TestProgressTimeout(t *testing.T) {
	srv := newServer(t)
	ref := srv.push(t, "app:v1", imageOf(t, layerOf(t, file("f", "x"))))
	srv.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return true
		}
		return false
	})
	s := newStore(t, func(o *Options) { o.ProgressTimeout = 500 * time.Millisecond })
	_, err := s.Pull(t.Context(), PullRequest{Ref: ref})
	wantError(t, err, errkind.Unavailable, "no byte has come for 500ms")
	wantEmpty(t, s)
}

// kubelet sets no deadline: a registry that takes the connection and then says
// nothing must not hold the pod for ever.
func TestSilentRegistry(t *testing.T) {
	srv := newServer(t)
	ref := srv.push(t, "app:v1", imageOf(t, layerOf(t, file("f", "x"))))
	srv.misbehave(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/manifests/") {
			<-r.Context().Done()
			return true
		}
		return false
	})
	s := newStore(t, func(o *Options) { o.ProgressTimeout = 50 * time.Millisecond })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := s.Pull(ctx, PullRequest{Ref: ref})
	wantError(t, err, errkind.Unavailable, registryUnavailable+"image "+ref)
	if ctx.Err() != nil {
		t.Error("it took until the client's deadline")
	}
	wantEmpty(t, s)
}

func TestPullStopsWithItsContext(t *testing.T) {
	srv := newServer(t)
	ref := srv.push(t, "app:v1", imageOf(t, layerOf(t, file("f", "x"))))
	for _, at := range []string{"/manifests/", "/blobs/"} {
		ctx, cancel := context.WithCancel(t.Context())
		srv.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, at) {
				cancel()
				<-r.Context().Done()
				return true
			}
			return false
		})
		s := newStore(t)
		if _, err := s.Pull(ctx, PullRequest{Ref: ref}); !strings.HasSuffix(fmt.Sprint(err), "context canceled") {
			t.Errorf("Pull cancelled at %s = %v", at, err)
		}
		wantEmpty(t, s)
	}
	srv.misbehave(nil)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	<-ctx.Done()
	_, err := newStore(t).Pull(ctx, PullRequest{Ref: ref})
	wantError(t, err, errkind.Timeout, "deadline exceeded")
}
