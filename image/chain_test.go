package image

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestExplain(t *testing.T) {
	certPEM, keyPEM := selfSigned(t)
	mirror, ca := newTLSServer(t, nil)
	mirror.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/cache/" || r.Header.Get("X-Api-Key") != "secret" {
			t.Errorf("%s was asked for", r.URL)
		}
		return false
	})
	plain := newServer(t)
	t.Setenv("HTTP_PROXY", "http://user:secret@127.0.0.1:1")
	text := fmt.Sprintf(`
server = "http://registry.example"
wrong = 1
[host.%q]
ca = "ca.pem"
client = [["cert.pem", "key.pem"]]
override_path = true
capabilities = ["pull"]
header = {x-api-key = "secret"}
[host.%q]
dial_timeout = "30s"
`, mirror.URL+"/cache", plain.URL)
	root := certsDir(t, "registry.example", text)
	for name, data := range map[string][]byte{"ca.pem": ca, "cert.pem": certPEM, "key.pem": keyPEM} {
		writeFile(t, filepath.Join(root, "registry.example", name), data)
	}
	c, err := Explain(t.Context(), "registry.example/app", []string{"/absent", root}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for i := range c.Hosts {
		c.Hosts[i].Took = ""
	}
	all := []string{"pull", "referrers", "resolve"}
	want := &Chain{
		Image: "registry.example/app:latest", HostsFile: filepath.Join(root, "registry.example", hostsFile), Searched: []string{"/absent", root},
		UnknownKeys: []string{"wrong"}, Credentials: []string{"http://registry.example"},
		Hosts: []ChainHost{
			{
				Repository: mirror.URL + "/cache/app", Capabilities: []string{"pull"}, CA: []string{"ca.pem"}, ClientCert: []string{"cert.pem", "key.pem"},
				Headers: []string{"x-api-key"}, Answer: "404 Not Found",
			},
			{Repository: plain.URL + "/v2/app", Capabilities: all, PlainHTTP: true, DialTimeout: "30s", Answer: "200 OK", Answered: true},
			{
				Repository: "http://registry.example/v2/app", Registry: true, Capabilities: all, PlainHTTP: true,
				Proxy: "http://user:xxxxx@127.0.0.1:1", Answer: "proxyconnect tcp: dial tcp 127.0.0.1:1: connect: connection refused",
			},
		},
	}
	if !reflect.DeepEqual(c, want) {
		got, _ := json.MarshalIndent(c, "", " ")
		wanted, _ := json.MarshalIndent(want, "", " ")
		t.Errorf("Explain = %s\nwant %s", got, wanted)
	}
	if got, _ := json.Marshal(c); strings.Contains(string(got), "secret") {
		t.Errorf("Explain = %s, which tells a secret", got)
	}
}

func TestExplainASilentHost(t *testing.T) {
	silent := newServer(t)
	silent.misbehave(func(_ http.ResponseWriter, r *http.Request) bool {
		<-r.Context().Done()
		return true
	})
	root := certsDir(t, "registry.example", fmt.Sprintf("server = %q", silent.URL))
	c, err := Explain(t.Context(), "registry.example/app", []string{root}, 50*time.Millisecond)
	if err != nil || len(c.Hosts) != 1 || c.Hosts[0].Answered || c.Hosts[0].Answer != "no answer within 50ms" {
		t.Errorf("Explain = %+v, %v", c, err)
	}
}

// TestProxy pulls through a proxy that knows all registries.
func TestProxy(t *testing.T) {
	srv := newServer(t)
	img := imageOf(t, layerOf(t, file("f", "x")))
	srv.push(t, "app:v1", img)
	proxy := sameContent(t, srv)
	proxy.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if !r.URL.IsAbs() {
			w.WriteHeader(http.StatusBadRequest)
			return true
		}
		r.URL.Scheme, r.URL.Host = "", ""
		return false
	})
	root := certsDir(t, "registry.example", `server = "http://registry.example"`)
	t.Setenv("HTTP_PROXY", proxy.URL)
	pull(t, newStore(t, withCerts(root)), "registry.example/app:v1")
	if proxy.seen("GET", "/blobs/") == 0 {
		t.Error("the proxy was not asked")
	}
	t.Setenv("NO_PROXY", "other.example,.example")
	proxy.misbehave(watch)
	root = certsDir(t, "registry.example", "server = \"http://registry.example\"\ndial_timeout = \"1ns\"")
	_, err := newStore(t, withCerts(root)).Pull(t.Context(), PullRequest{Ref: "registry.example/app:v1"})
	if err == nil || proxy.seen("", "") != 0 {
		t.Errorf("Pull = %v with %d requests at the proxy, which NO_PROXY excludes", err, proxy.seen("", ""))
	}
}
