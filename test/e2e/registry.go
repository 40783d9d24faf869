package e2e

import (
	"archive/tar"
	"bytes"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Registry is a registry in this process on a loopback address. The node
// reaches it as registry.k8s.io, docker.io and e2e.test.
type Registry struct {
	Addr string
	// Break, when set, answers a request in the registry's stead if it returns true.
	Break atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]

	t testing.TB
}

// NewRegistry starts a registry that ends with t.
func NewRegistry(t testing.TB) *Registry {
	r := &Registry{t: t}
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if f := r.Break.Load(); f != nil && (*f)(w, q) {
			return
		}
		h.ServeHTTP(w, q)
	}))
	t.Cleanup(srv.Close)
	r.Addr = strings.TrimPrefix(srv.URL, "http://")
	return r
}

// Push stores img as repo:tag and returns its digest.
func (r *Registry) Push(repoTag string, img v1.Image) v1.Hash {
	r.t.Helper()
	ref, err := name.NewTag(r.Addr+"/"+repoTag, name.Insecure)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		r.t.Fatal(err)
	}
	d, err := img.Digest()
	if err != nil {
		r.t.Fatal(err)
	}
	return d
}

// File is one entry of a layer.
type File struct {
	Path string
	Mode int64
	Data []byte
	Link string // hard link to this path
	Sym  string // symbolic link to this target
	Dir  bool
	UID  int
}

// Tar is files as an archive.
func Tar(t testing.TB, files []File) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Name: strings.TrimPrefix(f.Path, "/"), Mode: f.Mode, Uid: f.UID, Typeflag: tar.TypeReg, Size: int64(len(f.Data))}
		switch {
		case f.Dir:
			h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
		case f.Link != "":
			h.Typeflag, h.Linkname = tar.TypeLink, strings.TrimPrefix(f.Link, "/")
		case f.Sym != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.Sym
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.Data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// Layer is files as a gzip layer.
func Layer(t testing.TB, files ...File) v1.Layer {
	t.Helper()
	b := Tar(t, files)
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Image puts layers and a configuration together.
func Image(t testing.TB, cfg v1.Config, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture, cf.Config = "linux", goarch, cfg
	img, err = mutate.ConfigFile(img, cf)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// BusyboxLayer is the machine's static busybox with a link for each applet.
func BusyboxLayer(t testing.TB) v1.Layer {
	t.Helper()
	const bb = "/bin/busybox"
	prog, err := os.ReadFile(bb)
	if err != nil {
		t.Fatalf("busybox-static is needed for the tests' images (hack/deps.sh installs it): %v", err)
	}
	applets, err := exec.Command(bb, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	files := []File{
		{Path: "bin", Mode: 0o755, Dir: true},
		{Path: "etc", Mode: 0o755, Dir: true},
		{Path: "root", Mode: 0o700, Dir: true},
		{Path: "tmp", Mode: 0o1777, Dir: true},
		{Path: "www", Mode: 0o755, Dir: true},
		{Path: "bin/busybox", Mode: 0o755, Data: prog},
		{Path: "etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0:root:/root:/bin/sh\nwww:x:33:33:www:/www:/bin/sh\n")},
		{Path: "etc/group", Mode: 0o644, Data: []byte("root:x:0:\nwww:x:33:\nextra:x:500:www\n")},
		{Path: "www/index.html", Mode: 0o644, Data: []byte("hello from a pod\n")},
	}
	for _, a := range strings.Fields(string(applets)) {
		if a != "busybox" {
			files = append(files, File{Path: "bin/" + a, Mode: 0o755, Link: "bin/busybox"})
		}
	}
	return Layer(t, files...)
}

// Busybox is an image of the machine's busybox that runs a shell.
func Busybox(t testing.TB) v1.Image {
	t.Helper()
	return Image(t, v1.Config{Cmd: []string{"sh"}, Env: []string{"PATH=/bin", "FROM_IMAGE=yes"}}, BusyboxLayer(t))
}

// WriteDockerArchive writes img as `docker save` would.
func WriteDockerArchive(t testing.TB, path, ref string, img v1.Image) {
	t.Helper()
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(path, tag, img); err != nil {
		t.Fatal(err)
	}
}
