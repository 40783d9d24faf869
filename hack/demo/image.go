package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// imageName is under a domain that cannot exist: nothing is ever pulled for it.
const imageName = "demo.invalid/web:1"

// links are the names under which the image's one program does something else.
var links = [...]string{"hostname", "ls", "cat", "env", "ps", "id"}

// writeImage makes an archive, as `docker save` does, of an image that holds
// program as its web server.
func writeImage(archive, program string) error {
	layer, err := layerOf(program)
	if err != nil {
		return err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return fmt.Errorf("make image: %w", err)
	}
	base, err := img.ConfigFile()
	if err != nil {
		return fmt.Errorf("make image: %w", err)
	}
	config := base.DeepCopy() // without a date: the same program makes the same image
	config.OS, config.Architecture = runtime.GOOS, runtime.GOARCH
	config.Config = v1.Config{
		Entrypoint: []string{"/bin/web"},
		Env:        []string{"PATH=/bin"},
		WorkingDir: "/",
		User:       "www",
		StopSignal: "SIGTERM",
	}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return fmt.Errorf("make image: %w", err)
	}
	tag, err := name.NewTag(imageName)
	if err != nil {
		return fmt.Errorf("make image: %w", err)
	}
	if err := tarball.WriteToFile(archive, tag, img); err != nil {
		return fmt.Errorf("write image: %w", err)
	}
	return nil
}

// layerOf is the root file system: the program, its links, two users.
func layerOf(program string) (v1.Layer, error) {
	binary, err := os.ReadFile(program)
	if err != nil {
		return nil, fmt.Errorf("read program of image: %w", err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	write := func(h tar.Header, data []byte) {
		h.Size = int64(len(data))
		if err == nil {
			err = w.WriteHeader(&h)
		}
		if err == nil {
			_, err = w.Write(data)
		}
	}
	for _, dir := range []string{"bin/", "etc/", "tmp/"} {
		write(tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}, nil)
	}
	write(tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0::/:\nwww:x:80:80::/:\n"))
	write(tar.Header{Typeflag: tar.TypeReg, Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\nwww:x:80:\n"))
	write(tar.Header{Typeflag: tar.TypeReg, Name: "bin/web", Mode: 0o755}, binary)
	for _, l := range links {
		write(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + l, Linkname: "web", Mode: 0o777}, nil)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("make layer: %w", err)
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
}
