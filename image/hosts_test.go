package image

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/cridproject/crid/image/signature"
	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
)

// certsDir makes a tree of registry configuration with one hosts.toml.
func certsDir(t *testing.T, folder, text string) (root string) {
	t.Helper()
	root = t.TempDir()
	writeFile(t, filepath.Join(root, folder, hostsFile), []byte(text))
	return root
}

func writeFile(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func withCerts(dirs ...string) func(*Options) {
	return func(o *Options) { o.RegistryDirs = dirs }
}

// newTLSServer is a registry that speaks TLS. ca is its certificate, as PEM.
func newTLSServer(t *testing.T, change func(*tls.Config)) (s *server, ca []byte) {
	t.Helper()
	s = &server{content: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	s.Server = httptest.NewUnstartedServer(s.wrap(s.content))
	s.TLS = &tls.Config{}
	if change != nil {
		change(s.TLS)
	}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	s.host = strings.TrimPrefix(s.URL, "https://")
	return s, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}

// sameContent is another server of a server's content, whatever that one does.
func sameContent(t *testing.T, of *server) *server {
	t.Helper()
	s := &server{content: of.content}
	s.Server = httptest.NewServer(s.wrap(s.content))
	t.Cleanup(s.Close)
	s.host = strings.TrimPrefix(s.URL, "http://")
	s.misbehave(watch)
	return s
}

// answerWith answers each request with a status.
func answerWith(code int) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(code)
		return true
	}
}

// TestMirrorsAlone: a node that reaches its mirrors only is told what they say, and
// that the registry was not asked in vain.
func TestMirrorsAlone(t *testing.T) {
	srv := newServer(t)
	gone := newServer(t)
	gone.Close()
	for _, c := range []struct {
		code   int
		kind   errkind.Kind
		prefix string
	}{
		{404, errkind.NotFound, "image registry.example/none:1: not found at a mirror, and the registry cannot be reached: "},
		{403, errkind.Unavailable, "RegistryUnavailable: "},
		{500, errkind.Unavailable, "RegistryUnavailable: "},
	} {
		srv.misbehave(answerWith(c.code))
		s := newStore(t, withCerts(certsDir(t, "registry.example", fmt.Sprintf("server = %q\n[host.%q]\n", gone.URL, srv.URL))))
		_, err := s.Pull(t.Context(), PullRequest{Ref: "registry.example/none:1"})
		wantError(t, err, c.kind, srv.URL)
		wantError(t, err, c.kind, gone.URL)
		if err != nil && !strings.HasPrefix(err.Error(), c.prefix) {
			t.Errorf("Pull with a mirror that says %d = %q, want it to begin with %q", c.code, err, c.prefix)
		}
	}
}

// TestMirrorsInOrder: whatever is wrong with a mirror, the next host is asked, and at
// the end the registry itself.
func TestMirrorsInOrder(t *testing.T) {
	srv := newServer(t)
	img := imageOf(t, layerOf(t, file("f", "x")))
	srv.push(t, "app:v1", img)
	good := sameContent(t, srv)
	for _, c := range []struct {
		name string
		bad  func(http.ResponseWriter, *http.Request) bool
	}{
		{"404", answerWith(404)},
		{"401", answerWith(401)},
		{"403", answerWith(403)},
		{"429", answerWith(429)},
		{"500", answerWith(500)},
		{"503", answerWith(503)},
		{"broken connection", func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }},
		{"other content", func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodHead {
				return false
			}
			fmt.Fprint(w, "<html>log in first</html>")
			return true
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			bad, last := sameContent(t, srv), sameContent(t, srv)
			bad.misbehave(c.bad)
			good.misbehave(watch)
			root := certsDir(t, "registry.example", fmt.Sprintf("server = %q\n[host.%q]\n[host.%q]\n", last.URL, bad.URL, good.URL))
			s := newStore(t, withCerts(root))
			if got, want := pull(t, s, "registry.example/app:v1"), idOf(t, img); got != want {
				t.Errorf("Pull = %s, want %s", got, want)
			}
			if bad.seen("", "") == 0 || good.seen("GET", "/blobs/") == 0 || last.seen("", "") != 0 {
				t.Errorf("the first mirror was asked %d times, the second %d, the registry %d; want some, some, none",
					bad.seen("", ""), good.seen("", ""), last.seen("", ""))
			}
			good.misbehave(c.bad)
			s = newStore(t, withCerts(root))
			pull(t, s, "registry.example/app:v1")
			if last.seen("GET", "/blobs/") == 0 {
				t.Error("the registry itself was not asked for blobs when both mirrors failed")
			}
		})
	}
}

// TestMirrorDiesInABlob: a mirror that breaks off within a layer, each time, does not
// keep the next host from sending the rest.
func TestMirrorDiesInABlob(t *testing.T) {
	srv := newServer(t)
	img := imageOf(t, layerOf(t, file("f", strings.Repeat("0123456789", 10_000)+randomText(200_000))))
	srv.push(t, "app:v1", img)
	mirror, last := sameContent(t, srv), sameContent(t, srv)
	digest, size := firstLayer(t, img)
	broke := 0
	mirror.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, digest) {
			return false
		}
		rec := httptest.NewRecorder()
		srv.content.ServeHTTP(rec, r)
		w.Header().Set("Content-Length", fmt.Sprint(size))
		if broke++; broke == 1 {
			w.Write(rec.Body.Bytes()[:size/2])
			w.(http.Flusher).Flush()
		}
		panic(http.ErrAbortHandler)
	})
	root := certsDir(t, "registry.example", fmt.Sprintf("server = %q\n[host.%q]\n", last.URL, mirror.URL))
	s := newStore(t, withCerts(root))
	pull(t, s, "registry.example/app:v1")
	last.mu.Lock()
	defer last.mu.Unlock()
	if broke != 1 || len(last.requests) != 1 || last.requests[0].Header.Get("Range") != fmt.Sprintf("bytes=%d-%d", size/2, size-1) {
		t.Errorf("the mirror was asked %d times for the layer; the registry %v; want one request for the rest", broke, last.requests)
	}
}

func TestCapabilities(t *testing.T) {
	srv := newServer(t)
	img := imageOf(t, layerOf(t, file("f", "x")))
	srv.push(t, "app:v1", img)
	for capabilities, c := range map[string]struct{ resolves, pulls int }{
		`["pull"]`:            {0, 3}, // manifest, configuration, layer
		`["pull", "resolve"]`: {1, 3},
		`["resolve"]`:         {0, 0}, // a tag that it resolves might be nowhere else
		`["push"]`:            {0, 0},
	} {
		mirror, last := sameContent(t, srv), sameContent(t, srv)
		root := certsDir(t, "registry.example", fmt.Sprintf("server = %q\n[host.%q]\ncapabilities = %s\n", last.URL, mirror.URL, capabilities))
		pull(t, newStore(t, withCerts(root)), "registry.example/app:v1")
		if got := mirror.seen("HEAD", "/manifests/v1"); got != c.resolves {
			t.Errorf("%s: the mirror was asked %d times for the tag, want %d", capabilities, got, c.resolves)
		}
		if got := mirror.seen("GET", "/"); got != c.pulls {
			t.Errorf("%s: the mirror was asked %d times for content, want %d", capabilities, got, c.pulls)
		}
	}
}

// TestHostFolders: which folder is used for a registry.
func TestHostFolders(t *testing.T) {
	srv := newServer(t)
	img := imageOf(t, layerOf(t, file("f", "x")))
	srv.push(t, "app:v1", img)
	first, second := sameContent(t, srv), sameContent(t, srv)
	to := func(s *server) string { return fmt.Sprintf("server = %q\n[host.%q]\n", "http://127.0.0.1:1", s.URL) }
	for _, c := range []struct {
		name, folder1, folder2, ref string
		want                        *server
	}{
		{"name", "registry.example", "", "registry.example/app:v1", first},
		{"default", "_default", "", "registry.example/app:v1", first},
		{"port", "registry.example_5000_", "", "registry.example:5000/app:v1", first},
		{"port with a colon", "registry.example:5000", "", "registry.example:5000/app:v1", first},
		{"the first tree wins", "registry.example", "registry.example", "registry.example/app:v1", first},
		{"second tree", "other.example", "registry.example", "registry.example/app:v1", second},
	} {
		t.Run(c.name, func(t *testing.T) {
			first.misbehave(watch)
			second.misbehave(watch)
			roots := []string{certsDir(t, c.folder1, to(first))}
			if c.folder2 != "" {
				roots = append(roots, certsDir(t, c.folder2, to(second)))
			}
			pull(t, newStore(t, withCerts(roots...)), c.ref)
			if c.want.seen("", "") == 0 {
				t.Error("the host of another folder was asked")
			}
		})
	}
}

// TestRegistryTLS: certificates of registries and clients.
func TestRegistryTLS(t *testing.T) {
	certPEM, keyPEM := selfSigned(t)
	srv, ca := newTLSServer(t, func(c *tls.Config) { c.ClientAuth = tls.RequestClientCert })
	img := imageOf(t, layerOf(t, file("f", "x")))
	sameContent(t, srv).push(t, "app:v1", img)
	needsClient := func(w http.ResponseWriter, r *http.Request) bool {
		if len(r.TLS.PeerCertificates) == 1 && r.TLS.PeerCertificates[0].Subject.CommonName == "node-1" {
			return false
		}
		w.WriteHeader(http.StatusForbidden)
		return true
	}
	for _, c := range []struct {
		name, text string
		before     func(http.ResponseWriter, *http.Request) bool
		want       string // "" means that it works
	}{
		{"unknown CA", "", watch, registryUnavailable + "image registry.example/app:v1: https://"},
		{"CA", `ca = "ca.pem"`, watch, ""},
		{"CAs", `ca = ["ca.pem"]`, watch, ""},
		{"skip_verify", `skip_verify = true`, watch, ""},
		{"CA that is not there", `ca = "absent.pem"`, watch, "absent.pem"},
		{"CA that is none", `ca = "key.pem"`, watch, "key.pem"},
		{"no client certificate", `ca = "ca.pem"`, needsClient, "pull access to registry.example/app:v1 denied"},
		{"client certificate", "ca = 'ca.pem'\nclient = [['cert.pem', 'key.pem']]", needsClient, ""},
		{"client certificate in one file", "ca = 'ca.pem'\nclient = 'both.pem'", needsClient, ""},
		{"client certificate without key", "ca = 'ca.pem'\nclient = 'cert.pem'", needsClient, "hosts.toml"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := certsDir(t, "registry.example", fmt.Sprintf("server = %q\n%s\n", srv.URL, c.text))
			for name, data := range map[string][]byte{"ca.pem": ca, "cert.pem": certPEM, "key.pem": keyPEM, "both.pem": append(certPEM, keyPEM...)} {
				writeFile(t, filepath.Join(root, "registry.example", name), data)
			}
			srv.misbehave(c.before)
			_, err := newStore(t, withCerts(root)).Pull(t.Context(), PullRequest{Ref: "registry.example/app:v1"})
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("Pull = %v, want %q", err, c.want)
			}
		})
	}
}

// TestDialTimeout: the limit of one host, for a server that takes no connection.
func TestDialTimeout(t *testing.T) {
	srv := newServer(t)
	srv.push(t, "app:v1", imageOf(t, layerOf(t, file("f", "x"))))
	// A listener whose queue is full lets connections hang.
	full, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	root := certsDir(t, "registry.example", fmt.Sprintf("server = %q\n[host.%q]\ndial_timeout = \"1ns\"\n", srv.URL, "http://"+full.Addr().String()))
	pull(t, newStore(t, withCerts(root)), "registry.example/app:v1")
	srv.Close()
	_, err = newStore(t, withCerts(root)).Pull(t.Context(), PullRequest{Ref: "registry.example/app:v1"})
	wantError(t, err, errkind.Unavailable, "i/o timeout; then "+srv.URL)
}

// TestHostsFileErrors: a file that the client would go past in silence fails the pull.
func TestHostsFileErrors(t *testing.T) {
	for _, text := range []string{
		"server = 'unclosed", "[host.'http://m.example']\ncapabilities = ['pul']", "ca = 5", "client = [['a']]",
		"[host.'http://m.example']\ndial_timeout = 'soon'", "[header]\nx = 5", "server = 'https://a b'",
	} {
		root := certsDir(t, "registry.example", text)
		_, err := newStore(t, withCerts(root)).Pull(t.Context(), PullRequest{Ref: "registry.example/app:v1"})
		wantError(t, err, errkind.Invalid, filepath.Join(root, "registry.example", hostsFile))
	}
}

func selfSigned(t *testing.T) (certPEM, keyPEM []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "node-1"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

// TestSignaturesNeedTheRegistry: a mirror that has no signature says nothing about the
// registry, which cannot be reached. "Not signed" would send people looking in the wrong place.
func TestSignaturesNeedTheRegistry(t *testing.T) {
	srv := newServer(t)
	srv.push(t, "app:1", imageOf(t, layerOf(t, file("f", "x"))))
	gone := newServer(t)
	gone.Close()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	policy := filepath.Join(t.TempDir(), "policy.json")
	writeFile(t, policy, fmt.Appendf(nil, `{"default": [{"type": "sigstoreSigned", "keyData": %q}]}`, testutil.KeyData(t, key.Public())))
	rules, err := signature.New(signature.Options{PolicyFile: policy, Program: "/bin/false"})
	if err != nil {
		t.Fatal(err)
	}
	s := newStore(t, withCerts(certsDir(t, "registry.example", fmt.Sprintf("server = %q\n[host.%q]\n", gone.URL, srv.URL))),
		func(o *Options) { o.Signatures = rules })
	_, err = s.Pull(t.Context(), PullRequest{Ref: "registry.example/app:1"})
	wantError(t, err, errkind.Unavailable, gone.URL)
	if err != nil && !strings.HasPrefix(err.Error(), "RegistryUnavailable: ") {
		t.Errorf("Pull = %q, want RegistryUnavailable", err)
	}
}
