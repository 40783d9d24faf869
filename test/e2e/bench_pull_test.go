package e2e

import (
	"bytes"
	"crypto/rand"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var rootFlag = flag.String("bench-root", "", "folder of what the other runtime keeps of images, with -endpoint: its size is measured")

// BenchmarkPull pulls, unpacks and removes images: a large one of eight layers (this
// machine's Go toolchain), one layer that cannot be compressed, sixty tiny layers.
// The registry is in this process; with one machine for both, its share is in the
// figures. tar-s is the limit: the same layers unpacked by tar -x, one by one.
func BenchmarkPull(b *testing.B) {
	for name, layers := range map[string]func(*testing.B) []v1.Layer{
		"EightLayers": largeLayers, "Incompressible": randomLayer, "SixtyTiny": tinyLayers,
	} {
		b.Run(name, func(b *testing.B) { benchmarkPull(b, layers(b)) })
	}
}

func benchmarkPull(b *testing.B, layers []v1.Layer) {
	n := benchNode(b)
	n.Registry.Push("bench/image:1", Image(b, v1.Config{}, layers...))
	// Runtimes take a registry on a loopback address for one without TLS.
	ref := &cri.ImageSpec{Image: n.Registry.Addr + "/bench/image:1"}
	root := *rootFlag
	if *endpointFlag == "" {
		root = n.path("root")
	}
	before := diskKiB(b, root)
	var pull, remove time.Duration
	rounds, kib := 0, 0
	for b.Loop() {
		began := time.Now()
		if _, err := n.Images.PullImage(n.Ctx(), &cri.PullImageRequest{Image: ref}); err != nil {
			b.Fatal(err)
		}
		pull += time.Since(began)
		kib = diskKiB(b, root) - before
		began = time.Now()
		if _, err := n.Images.RemoveImage(n.Ctx(), &cri.RemoveImageRequest{Image: ref}); err != nil {
			b.Fatal(err)
		}
		remove += time.Since(began)
		n.settle(func() bool { return diskKiB(b, root) <= before+kib/10 }) // what is deleted in the background
		rounds++
	}
	b.ReportMetric(pull.Seconds()/float64(rounds), "pull-s")
	b.ReportMetric(remove.Seconds()*1000/float64(rounds), "remove-ms")
	b.ReportMetric(float64(kib)/1024, "disk-MiB")
	untar(b, layers)
}

// diskKiB is what the files below dir take; 0 without dir.
func diskKiB(b *testing.B, dir string) int {
	b.Helper()
	if dir == "" {
		return 0
	}
	out, _ := exec.Command("du", "-sk", dir).Output() // files may go while it looks
	kib, err := strconv.Atoi(strings.Fields(string(out) + " ?")[0])
	if err != nil {
		b.Fatalf("du %s: %q", dir, out)
	}
	return kib
}

// untar unpacks the layers with tar, and reports how long it took, and what they are.
func untar(b *testing.B, layers []v1.Layer) {
	dir := b.TempDir()
	var took time.Duration
	var compressed int
	for _, l := range layers {
		r, err := l.Compressed()
		if err != nil {
			b.Fatal(err)
		}
		data, err := io.ReadAll(r)
		_ = r.Close()
		if err != nil {
			b.Fatal(err)
		}
		compressed += len(data)
		tar := exec.Command("tar", "-xz", "-C", dir)
		tar.Stdin = bytes.NewReader(data)
		began := time.Now()
		if out, err := tar.CombinedOutput(); err != nil {
			b.Fatalf("tar: %v: %s", err, out)
		}
		took += time.Since(began)
	}
	files := 0
	_ = filepath.WalkDir(dir, func(string, fs.DirEntry, error) error { files++; return nil })
	b.ReportMetric(took.Seconds(), "tar-s")
	b.ReportMetric(float64(compressed)/(1<<20), "compressed-MiB")
	b.ReportMetric(float64(files), "files")
}

func largeLayers(b *testing.B) []v1.Layer {
	b.Helper()
	const most = 520 << 20
	parts := make([][]File, 8)
	total, files := 0, 0
	root := filepath.Join(goroot(b), "..")
	err := filepath.Walk(goroot(b), func(p string, fi os.FileInfo, err error) error {
		if err != nil || !fi.Mode().IsRegular() || total > most {
			return err
		}
		data, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		i := files % len(parts)
		parts[i] = append(parts[i], File{Path: fmt.Sprintf("l%d/%s", i, rel), Mode: int64(fi.Mode().Perm()), Data: data})
		total += len(data)
		files++
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	var made []v1.Layer
	for _, part := range parts {
		made = append(made, Layer(b, part...))
	}
	return made
}

func randomLayer(b *testing.B) []v1.Layer {
	data := make([]byte, 200<<20)
	_, _ = rand.Read(data) // never fails
	return []v1.Layer{Layer(b, File{Path: "blob", Mode: 0o644, Data: data})}
}

func tinyLayers(b *testing.B) (made []v1.Layer) {
	for i := range 60 {
		made = append(made, Layer(b, File{Path: fmt.Sprintf("f%d", i), Mode: 0o644, Data: []byte(strings.Repeat("tiny ", i))}))
	}
	return made
}

func goroot(b *testing.B) string {
	b.Helper()
	for _, dir := range []string{os.Getenv("GOROOT"), "/usr/local/go"} {
		if _, err := os.Stat(filepath.Join(dir, "src")); dir != "" && err == nil {
			return dir
		}
	}
	b.Skip("no Go source tree to make a large image of")
	return ""
}
