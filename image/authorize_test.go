package image

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"

	"github.com/cridproject/crid/internal/errkind"
)

func TestServerAddress(t *testing.T) {
	for _, c := range []struct {
		address, host string
		want          bool
	}{
		{"registry.example", "registry.example", true},
		{"Registry.Example", "registry.example", true},
		{"https://registry.example", "registry.example", true},
		{"https://registry.example/", "registry.example", true},
		{"https://registry.example/v1/", "registry.example", true},
		{"https://registry.example/v2/", "registry.example", true},
		{"registry.example/team", "registry.example", true},
		{"registry.example:443", "registry.example", true},
		{"registry.example", "registry.example:443", true},
		{"registry.example:5000", "registry.example:5000", true},
		{"http://registry.example:5000/v2/", "registry.example:5000", true},
		{"*.registry.example", "eu.registry.example", true},
		{"*.registry.example", "registry.example", false},
		{"*.registry.example", "a.eu.registry.example", false},
		{"[::1]:5000", "[::1]:5000", true},
		{"https://index.docker.io/v1/", "docker.io", true},
		{"https://index.docker.io/v2/", "docker.io", true},
		{"index.docker.io/v1/", "docker.io", true},
		{"docker.io", "docker.io", true},
		{"registry-1.docker.io", "docker.io", true},
		{"registry.example", "registry.example:5000", false},
		{"registry.example:5000", "registry.example", false},
		{"registry.example", "evilregistry.example", false},
		{"registry.example", "registry.example.evil", false},
		{"registry.example@evil.example", "registry.example", false},
		{"https://", "registry.example", false},
		{"%", "registry.example", false},
	} {
		if got := sameRegistry(c.address, c.host); got != c.want {
			t.Errorf("sameRegistry(%q, %q) = %v, want %v", c.address, c.host, got, c.want)
		}
	}
}

// basicServer asks for a name and a password; challenge is what it says it wants.
func basicServer(challenge, user, password string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if u, p, ok := r.BasicAuth(); ok && u == user && p == password {
			return false
		}
		if challenge != "" {
			w.Header().Set("WWW-Authenticate", challenge)
		}
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
}

func TestBasicAuthentication(t *testing.T) {
	srv := newServer(t)
	ref := srv.push(t, "app:v1", imageOf(t, layerOf(t, file("f", "x"))))
	s := newStore(t)
	for name, challenge := range map[string]string{
		"basic": `Basic realm="r"`, "lower case": `basic realm=r`, "no challenge": "", "something else first": `Negotiate, Basic realm="r"`,
		"with parameters": `Basic realm="r", charset="UTF-8"`,
	} {
		t.Run(name, func(t *testing.T) {
			srv.misbehave(basicServer(challenge, "joe", "secret:with:colons"))
			if _, err := s.Pull(t.Context(), PullRequest{Ref: ref, Auth: &Auth{Username: "joe", Password: "secret:with:colons"}}); err != nil {
				t.Error(err)
			}
			for _, c := range []struct {
				auth *Auth
				says string
			}{
				{&Auth{Username: "joe", Password: "secret2"}, "(as user joe): 401 Unauthorized"},
				{&Auth{Username: strings.Repeat("t", 40), Password: "secret2"}, "(as the user given): 401 Unauthorized"},
				{&Auth{IdentityToken: "secret3"}, "(with an identity token): 401"},
				{&Auth{RegistryToken: "secret4"}, "(with a registry token): 401"},
				{&Auth{Username: "joe", Password: "secret", ServerAddress: "other.example"}, "(those given are for other.example)"},
				{nil, "(anonymously): 401 Unauthorized"},
			} {
				srv.misbehave(basicServer(challenge, "joe", "secret:with:colons"))
				_, err := s.Pull(t.Context(), PullRequest{Ref: ref, Auth: c.auth})
				wantError(t, err, errkind.Other, c.says)
				if n := srv.seen("", ""); strings.Contains(fmt.Sprint(err), "secret") || n > 4 {
					t.Errorf("Pull = %v after %d requests, want no secret and at most 4", err, n)
				}
			}
		})
	}
}

// TestTokenExpires: tokens that end in the middle of a pull are renewed, whether the
// token server has said so or the registry refuses them.
func TestTokenExpires(t *testing.T) {
	srv := newServer(t)
	img := imageOf(t, layerOf(t, file("f", randomText(50_000))), layerOf(t, file("g", "x")))
	ref := srv.push(t, "app:v1", img)
	digest, size := firstLayer(t, img)
	for name, answer := range map[string]string{"unannounced": `{"token":%q}`, "announced": `{"access_token":%q,"expires_in":1}`} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			issued, uses := 0, 0
			tokens := newServer(t)
			tokens.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
				if u, p, _ := r.BasicAuth(); u != "joe" || p != "secret" {
					w.WriteHeader(http.StatusUnauthorized)
					return true
				}
				mu.Lock()
				defer mu.Unlock()
				issued++
				uses = 0
				fmt.Fprintf(w, answer, fmt.Sprintf("token%d", issued))
				return true
			})
			broken := false
			srv.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
				mu.Lock()
				defer mu.Unlock()
				// Each token is good for two requests.
				if uses++; r.Header.Get("Authorization") != fmt.Sprintf("Bearer token%d", issued) || uses > 2 {
					w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="s",error="invalid_token"`, tokens.URL))
					w.WriteHeader(http.StatusUnauthorized)
					return true
				}
				if !broken && strings.HasSuffix(r.URL.Path, digest) && r.Method == http.MethodGet {
					broken = true
					w.Header().Set("Content-Length", fmt.Sprint(size))
					w.WriteHeader(http.StatusOK)
					w.(http.Flusher).Flush()
					panic(http.ErrAbortHandler)
				}
				return false
			})
			s := newStore(t, func(o *Options) { o.MaxDownloads = 1 })
			if _, err := s.Pull(t.Context(), PullRequest{Ref: ref, Auth: &Auth{Username: "joe", Password: "secret"}}); err != nil {
				t.Fatal(err)
			}
			if issued < 3 || !broken {
				t.Errorf("%d tokens were issued, want several; the layer broke off: %v", issued, broken)
			}
		})
	}
}

// TestTokenLifetime: a token is renewed before it ends, and one of unknown life is
// used again meanwhile.
func TestTokenLifetime(t *testing.T) {
	srv := newServer(t)
	ref := srv.push(t, "app:v1", imageOf(t, layerOf(t, file("f", "x"))))
	tokens := authServer(t, srv, "joe:secret", "the-token")
	if _, err := newStore(t).Pull(t.Context(), PullRequest{Ref: ref, Auth: &Auth{Username: "joe", Password: "secret"}}); err != nil {
		t.Fatal(err)
	}
	if n := tokens.seen("", ""); n != 1 {
		t.Errorf("%d tokens were asked for, want 1", n)
	}
	parsed, err := ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	src, err := connect(t.Context(), parsed, credentials{user: "joe", secret: "secret"}, nil, time.Minute, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer src.close()
	if _, err := src.resolve(t.Context(), parsed); err != nil {
		t.Fatal(err)
	}
	session := src.auth.session(src.hosts[0].url(nil))
	if left := time.Until(session.until); left < 30*time.Second || left > time.Minute {
		t.Errorf("a token without a lifetime is used for another %v, want nearly a minute", left)
	}
	session.until = time.Now().Add(-time.Second)
	srv.mu.Lock()
	srv.requests = nil
	srv.mu.Unlock()
	if _, err := src.resolve(t.Context(), parsed); err != nil {
		t.Fatal(err)
	}
	if n, asked := tokens.seen("", ""), srv.seen("", ""); n != 3 || asked != 1 {
		t.Errorf("%d tokens in all and %d requests after the token's end, want 3 and 1", n, asked)
	}
}

// TestTokenServerErrors: what is wrong with a token server is told, and what may pass is
// tried again.
func TestTokenServerErrors(t *testing.T) {
	srv := newServer(t)
	ref := srv.push(t, "app:v1", imageOf(t, layerOf(t, file("f", "x"))))
	flaky := 0
	for _, c := range []struct {
		name   string
		answer func(http.ResponseWriter)
		want   string // "" means that the pull works
		kind   errkind.Kind
	}{
		{"503 twice", func(w http.ResponseWriter) {
			if flaky++; flaky <= 2 {
				w.WriteHeader(503)
				return
			}
			fmt.Fprint(w, `{"token":"the-token"}`)
		}, "", 0},
		{"503", func(w http.ResponseWriter) { w.WriteHeader(503) }, registryUnavailable, errkind.Unavailable},
		{"429", func(w http.ResponseWriter) { w.WriteHeader(429) }, "limits how often", errkind.Unavailable},
		{"401", func(w http.ResponseWriter) { w.WriteHeader(401) }, "pull access to " + ref + " denied", errkind.Other},
		{"403", func(w http.ResponseWriter) { w.WriteHeader(403) }, "pull access to " + ref + " denied", errkind.Other},
		{"no JSON", func(w http.ResponseWriter) { fmt.Fprint(w, "hello secret") }, "its answer is no JSON object", errkind.Unavailable},
		{"no token", func(w http.ResponseWriter) { fmt.Fprint(w, `{"token":""}`) }, "its answer has no token", errkind.Unavailable},
		{"token with a line end", func(w http.ResponseWriter) { fmt.Fprint(w, `{"token":"a\nsecret"}`) }, "its answer has no token", errkind.Unavailable},
		{"wrong token", func(w http.ResponseWriter) { fmt.Fprint(w, `{"token":"secret"}`) }, "denied", errkind.Other},
	} {
		t.Run(c.name, func(t *testing.T) {
			tokens := authServer(t, srv, "", "the-token")
			tokens.misbehave(func(w http.ResponseWriter, _ *http.Request) bool {
				c.answer(w)
				return true
			})
			s := newStore(t)
			_, err := s.Pull(t.Context(), PullRequest{Ref: ref, Auth: &Auth{Username: "joe", Password: "secret"}})
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantError(t, err, c.kind, c.want)
			if c.name != "wrong token" {
				wantError(t, err, c.kind, "token server "+tokens.URL)
			}
			if strings.Contains(fmt.Sprint(err), "secret") {
				t.Errorf("Pull = %v, which tells a secret", err)
			}
			wantEmpty(t, s)
		})
	}
}

// TestCredentialsNeedEncryption: a registry with TLS cannot have credentials sent to a
// token server without; nor does a token server's redirect get them.
func TestCredentialsNeedEncryption(t *testing.T) {
	srv, _ := newTLSServer(t, nil)
	sameContent(t, srv).push(t, "app:v1", imageOf(t, layerOf(t, file("f", "x"))))
	thief := newServer(t)
	redirecting, _ := newTLSServer(t, nil)
	redirecting.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, thief.URL+"/token", http.StatusPermanentRedirect)
		return true
	})
	for name, realm := range map[string]string{"plain": thief.URL, "redirect": redirecting.URL} {
		for kind, auth := range map[string]*Auth{
			"password": {Username: "joe", Password: "secret"}, "identity token": {IdentityToken: "secret"}, "registry token": {RegistryToken: "secret"},
		} {
			t.Run(name+" "+kind, func(t *testing.T) {
				thief.misbehave(watch)
				srv.misbehave(func(w http.ResponseWriter, _ *http.Request) bool {
					w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="s"`, realm))
					w.WriteHeader(http.StatusUnauthorized)
					return true
				})
				root := certsDir(t, strings.Replace(srv.host, ":", "_", 1)+"_", fmt.Sprintf("server = %q\nskip_verify = true\n", srv.URL))
				_, err := newStore(t, withCerts(root)).Pull(t.Context(), PullRequest{Ref: srv.host + "/app:v1", Auth: auth})
				if err == nil {
					t.Error("the pull worked")
				}
				thief.mu.Lock()
				defer thief.mu.Unlock()
				for _, r := range thief.requests {
					r.ParseForm()
					if r.Header.Get("Authorization") != "" || strings.Contains(fmt.Sprint(r.URL, r.PostForm), "secret") {
						t.Errorf("%s %s came with credentials", r.Method, r.URL)
					}
				}
			})
		}
	}
}

// TestFallbackIsOfOneHost: a registry on localhost may speak plain HTTP. Its token
// server is asked by TLS as its URL says, and gets nothing when it has none.
func TestFallbackIsOfOneHost(t *testing.T) {
	srv, thief := newServer(t), newServer(t)
	ref := srv.push(t, "app:v1", imageOf(t, layerOf(t, file("f", "x"))))
	for kind, auth := range map[string]*Auth{"password": {Username: "joe", Password: "secret"}, "identity token": {IdentityToken: "secret"}} {
		t.Run(kind, func(t *testing.T) {
			thief.misbehave(watch)
			srv.misbehave(basicServer(fmt.Sprintf(`Bearer realm="https://%s/token"`, thief.host), "", ""))
			if _, err := newStore(t).Pull(t.Context(), PullRequest{Ref: ref, Auth: auth}); err == nil {
				t.Error("the pull worked")
			}
			if n := srv.seen("", ""); n == 0 {
				t.Error("the registry was not asked")
			}
			if n := thief.seen("", ""); n > 0 {
				t.Errorf("the token server got %d requests in the clear", n)
			}
		})
	}
}

// TestHostsFileHeadersStayHome: what hosts.toml adds for one host may be a secret too.
func TestHostsFileHeadersStayHome(t *testing.T) {
	srv, storage := newServer(t), newServer(t)
	img := imageOf(t, layerOf(t, file("f", "x")))
	ref := srv.push(t, "app:v1", img)
	storage.push(t, "app:v1", img)
	storage.misbehave(watch)
	srv.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("X-Api-Key") != "secret" {
			w.WriteHeader(http.StatusForbidden)
			return true
		}
		if strings.Contains(r.URL.Path, "/blobs/") {
			http.Redirect(w, r, storage.URL+r.URL.Path, http.StatusTemporaryRedirect)
			return true
		}
		return false
	})
	root := certsDir(t, strings.Replace(srv.host, ":", "_", 1)+"_", fmt.Sprintf("server = %q\n[header]\nx-api-key = 'secret'\n", srv.URL))
	pull(t, newStore(t, withCerts(root)), ref)
	storage.mu.Lock()
	defer storage.mu.Unlock()
	if len(storage.requests) == 0 {
		t.Error("the blob store was not asked")
	}
	for _, r := range storage.requests {
		if r.Header.Get("X-Api-Key") != "" {
			t.Errorf("%s %s came with the registry's header", r.Method, r.URL)
		}
	}
}

// TestNothingSecretIsLogged pulls in all ways that credentials can be given, with the
// most verbose log, and looks for them there.
func TestNothingSecretIsLogged(t *testing.T) {
	srv, storage := newServer(t), newServer(t)
	img := imageOf(t, layerOf(t, file("f", randomText(5000))))
	ref := srv.push(t, "app:v1", img)
	storage.push(t, "app:v1", img)
	basic := base64.StdEncoding.EncodeToString([]byte("joe:secret"))
	for name, auth := range map[string]*Auth{
		"password": {Username: "joe", Password: "secret"}, "auth": {Auth: basic}, "identity token": {IdentityToken: "secret"},
		"registry token": {RegistryToken: "secret-token"}, "wrong": {Username: "joe", Password: "secret-wrong"},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			config := textlogger.NewConfig(textlogger.Verbosity(10), textlogger.Output(&lockedWriter{w: &log}))
			ctx := klog.NewContext(t.Context(), textlogger.NewLogger(config))
			want := "joe:secret"
			if auth.IdentityToken != "" {
				want = "refresh:secret"
			}
			authServer(t, srv, want, "secret-token")
			checked := srv.before
			srv.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
				if checked(w, r) {
					return true
				}
				if strings.Contains(r.URL.Path, "/blobs/") {
					http.Redirect(w, r, storage.URL+r.URL.Path+"?sig=secret", http.StatusTemporaryRedirect)
					return true
				}
				return false
			})
			broken := false
			storage.misbehave(func(http.ResponseWriter, *http.Request) bool {
				if !broken {
					broken = true
					panic(http.ErrAbortHandler)
				}
				return false
			})
			_, err := newStore(t).Pull(ctx, PullRequest{Ref: ref, Auth: auth})
			if (err != nil) != (name == "wrong") {
				t.Errorf("Pull = %v", err)
			}
			text := log.String() + fmt.Sprint(err)
			for _, secret := range []string{"secret", basic, "sig="} {
				if strings.Contains(text, secret) {
					t.Errorf("the log or the error has %q:\n%s", secret, text)
				}
			}
			if !strings.Contains(text, "Asked registry") {
				t.Error("the log has nothing of the requests: this test proves nothing")
			}
		})
	}
}

type lockedWriter struct {
	mu sync.Mutex
	w  *bytes.Buffer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// TestTokenWaiterIsNotCancelled: a request that is given up while it asks for a token
// takes no other with it, which the token would serve as well.
func TestTokenWaiterIsNotCancelled(t *testing.T) {
	srv := newServer(t)
	ref, err := ParseReference(srv.push(t, "app:v1", imageOf(t, layerOf(t, file("f", "x")))))
	if err != nil {
		t.Fatal(err)
	}
	tokens := authServer(t, srv, ":", "the-token")
	asked := make(chan struct{})
	var once sync.Once
	first := true
	tokens.misbehave(func(_ http.ResponseWriter, r *http.Request) bool {
		once.Do(func() { close(asked) })
		if first {
			first = false
			<-r.Context().Done()
			return true
		}
		return false
	})
	src, err := connect(t.Context(), ref, credentials{}, nil, time.Minute, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer src.close()
	ctx, cancel := context.WithCancel(t.Context())
	gaveUp, got := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := src.resolve(ctx, ref)
		gaveUp <- err
	}()
	<-asked
	go func() {
		_, err := src.resolve(t.Context(), ref)
		got <- err
	}()
	cancel()
	if err := <-gaveUp; !errors.Is(err, context.Canceled) {
		t.Errorf("the request given up ended with %v", err)
	}
	if err := <-got; err != nil {
		t.Errorf("the other request ended with %v", err)
	}
}
