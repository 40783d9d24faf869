package image

import (
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/reference"

	"github.com/cridproject/crid/internal/errkind"
)

const someDigest = "sha256:7cc4b5aefd1d0cadf8d97d4350462ba51c694ebca145b08d7d41b41acc8db5aa"

func TestParseReference(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"busybox", "docker.io/library/busybox:latest"},
		{"busybox:1.36", "docker.io/library/busybox:1.36"},
		{"index.docker.io/busybox", "docker.io/library/busybox:latest"},
		{"user/app", "docker.io/user/app:latest"},
		{"registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"},
		{"localhost:5000/app", "localhost:5000/app:latest"},
		{"localhost/app", "localhost/app:latest"},
		{"127.0.0.1:5000/a/b/c:v1", "127.0.0.1:5000/a/b/c:v1"},
		{"[::1]:5000/app:v1", "[::1]:5000/app:v1"},
		{"busybox@" + someDigest, "docker.io/library/busybox@" + someDigest},
		{"busybox:1.36@" + someDigest, "docker.io/library/busybox@" + someDigest},
	} {
		got, err := ParseReference(c.in)
		if err != nil || got.String() != c.want {
			t.Errorf("ParseReference(%q) = %v, %v, want %s", c.in, got, err, c.want)
		}
	}
	for _, in := range []string{
		"", " ", "Busybox", "busybox:", "busybox@sha256:12", "a//b", "https://registry.example/a", "../a", "a b", "registry.example/", ":tag",
		strings.Repeat("a", 300), someDigest[7:], "busybox@md5:7cc4b5aefd1d0cadf8d97d4350462ba5",
	} {
		if got, err := ParseReference(in); !errkind.Is(err, errkind.Invalid) {
			t.Errorf("ParseReference(%q) = %v, %v, want Invalid", in, got, err)
		}
	}
}

// FuzzParseReference: what is accepted has one canonical form, and the registry
// client sees the same host in it: credentials are chosen by ours.
func FuzzParseReference(f *testing.F) {
	for _, s := range []string{"busybox", "localhost:5000/a:b", "[::1]:80/x", "a.b/c@" + someDigest, "A/b", "x:y:z"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseReference(s)
		if err != nil {
			return
		}
		again, err := ParseReference(r.String())
		if err != nil || again != r {
			t.Errorf("ParseReference(%q) = %v, which reads back as %v, %v", s, r, again, err)
		}
		theirs, err := reference.Parse(r.String())
		if err == nil && (theirs.Hostname() != r.Host || theirs.Locator != r.Name() || theirs.Digest() != r.Digest) {
			t.Errorf("%q is %+v to the registry client, %+v here", s, theirs, r)
		}
	})
}
