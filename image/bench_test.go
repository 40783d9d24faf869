package image

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/internal/testutil"
)

// benchLayers makes about 150 MiB, compressed, in ten layers of 1,780 files, of
// data that compresses about as programs do. archives are the layers unpacked.
func benchLayers(b *testing.B) (layers []v1.Layer, packed [][]byte) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for l := range 10 {
		entries := []tarEntry{folder(fmt.Sprintf("layer%d/", l))}
		for f := range 1780 {
			if f%30 == 0 {
				entries = append(entries, folder(fmt.Sprintf("layer%d/dir%d/", l, f/30)))
			}
			body := make([]byte, 2000+rnd.IntN(34_000))
			for i := 0; i < len(body); {
				if rnd.IntN(3) > 0 || i < 64 { // literal bytes of few kinds
					for n := 0; n < 24 && i < len(body); n++ {
						body[i] = byte(rnd.IntN(90))
						i++
					}
					continue
				}
				n := min(8+rnd.IntN(40), len(body)-i, i)
				copy(body[i:i+n], body[i-n:])
				i += n
			}
			entries = append(entries, file(fmt.Sprintf("layer%d/dir%d/file%d", l, f/30, f), string(body)))
		}
		raw := tarOf(b, entries...)
		gz := gzipped(b, raw)
		packed = append(packed, gz)
		layers = append(layers, testLayer{static.NewLayer(gz, types.OCILayer), raw})
	}
	return layers, packed
}

// BenchmarkPull pulls and unpacks; beside it stands tar -xz with the same bytes,
// one layer after the other, and two at a time.
func BenchmarkPull(b *testing.B) {
	layers, packed := benchLayers(b)
	size := 0
	for _, p := range packed {
		size += len(p)
	}
	b.Logf("%d MiB compressed", size>>20)
	srv := newServer(b)
	ref := srv.push(b, "bench:v1", imageOf(b, layers...))
	b.Run("crid", func(b *testing.B) {
		b.SetBytes(int64(size))
		for b.Loop() {
			s := newStore(b)
			pull(b, s, ref)
		}
	})
	b.Run("tar", func(b *testing.B) {
		b.SetBytes(int64(size))
		for b.Loop() {
			dir := b.TempDir()
			for _, p := range packed {
				cmd := exec.Command("tar", "-xz", "-C", dir)
				cmd.Stdin = bytes.NewReader(p)
				if out, err := cmd.CombinedOutput(); err != nil {
					b.Fatalf("tar: %v: %s", err, out)
				}
			}
		}
	})
	b.Run("remove", func(b *testing.B) {
		s := newStore(b)
		for b.Loop() {
			b.StopTimer()
			pull(b, s, ref)
			b.StartTimer()
			if err := s.Remove(b.Context(), ref); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkPrepare is what an image adds to the start of a container.
func BenchmarkPrepare(b *testing.B) {
	srv := newServer(b)
	var layers []v1.Layer
	for l := range 10 {
		layers = append(layers, layerOf(b, folder("etc/"), file(fmt.Sprintf("etc/f%d", l), "x")))
	}
	layers[0] = layerOf(b, folder("etc/"), file("etc/passwd", "root:x:0:0::/:/bin/sh\n"), file("etc/group", "root:x:0:\n"))
	s := newStore(b)
	id := pull(b, s, srv.push(b, "bench:v1", imageOf(b, layers...)))
	for n := 0; b.Loop(); n++ {
		if _, err := s.Prepare(b.Context(), id, fmt.Sprint(n)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkList is List with 300 images.
func BenchmarkList(b *testing.B) {
	srv := newServer(b)
	s := newStore(b)
	base := layerOf(b, file("f", "x"))
	for n := range 300 {
		img := configured(b, imageOf(b, base), func(c *v1.Config) { c.Env = []string{fmt.Sprintf("N=%d", n)} })
		pull(b, s, srv.push(b, fmt.Sprintf("app%d:v1", n), img))
	}
	for b.Loop() {
		if len(s.List()) != 300 {
			b.Fatal("an image is missing")
		}
	}
}

// BenchmarkWritten asks for the figures of 60 writable layers, of which one has
// 200,000 files: of the kernel, and by the walk that stands in for it.
func BenchmarkWritten(b *testing.B) {
	const layers, files = 60, 200_000
	fill := func(b *testing.B, root string) []string {
		b.Helper()
		var dirs []string
		for i := range layers {
			dirs = append(dirs, filepath.Join(root, fmt.Sprintf("layer%d", i)))
			if err := os.Mkdir(dirs[i], 0o700); err != nil {
				b.Fatal(err)
			}
		}
		return dirs
	}
	many := func(b *testing.B, dir string) {
		b.Helper()
		for i := range files {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o600); err != nil {
				b.Fatal(err)
			}
		}
	}
	for _, kind := range testutil.QuotaKinds {
		b.Run(kind, func(b *testing.B) {
			root := testutil.QuotaFS(b, kind)
			q, err := sys.OpenProjectQuota(root)
			if err != nil {
				b.Fatal(err)
			}
			defer q.Close()
			dirs := fill(b, root)
			for i, dir := range dirs {
				if err := q.Assign(dir, firstProject+uint32(i)); err != nil {
					b.Fatal(err)
				}
			}
			many(b, dirs[0])
			b.Run("quota", func(b *testing.B) {
				for b.Loop() {
					for i := range dirs {
						if _, err := q.Usage(firstProject + uint32(i)); err != nil {
							b.Fatal(err)
						}
					}
				}
			})
			b.Run("walk", func(b *testing.B) { walkAll(b, dirs) })
		})
	}
	b.Run("walk", func(b *testing.B) {
		dirs := fill(b, b.TempDir())
		many(b, dirs[0])
		walkAll(b, dirs)
	})
}

func walkAll(b *testing.B, dirs []string) {
	for b.Loop() {
		for _, dir := range dirs {
			usageOf(dir, func() bool { return true })
		}
	}
}

// BenchmarkUnpack is the work of one layer without the network: an archive of
// what CRID_BENCH_ARCHIVE names (a tar, best of some of /usr), or of made-up data,
// unpacked with and without its skeleton. Each round does both, so that their
// ratio can be believed on a busy machine.
func BenchmarkUnpack(b *testing.B) {
	raw, err := os.ReadFile(os.Getenv("CRID_BENCH_ARCHIVE"))
	if err != nil {
		_, packed := benchLayers(b)
		r, err := gzip.NewReader(bytes.NewReader(packed[0]))
		if err != nil {
			b.Fatal(err)
		}
		if raw, err = io.ReadAll(r); err != nil {
			b.Fatal(err)
		}
	}
	gz := gzipped(b, raw)
	parent := b.TempDir()
	var with, without time.Duration
	var meta layerMeta
	var skeleton int64
	once := func(skeletonToo bool) time.Duration {
		dir, err := os.MkdirTemp(parent, "")
		if err == nil {
			err = os.Mkdir(filepath.Join(dir, layerFS), 0o755)
		}
		if err != nil {
			b.Fatal(err)
		}
		began := cpuTime(b)
		if skeletonToo {
			meta, err = unpackStream(b.Context(), bytes.NewReader(gz), func() {}, dir, Limits{})
		} else {
			err = unpackOnly(b.Context(), bytes.NewReader(gz), dir)
		}
		took := cpuTime(b) - began
		if err != nil {
			b.Fatal(err)
		}
		if fi, err := os.Stat(filepath.Join(dir, skeletonFile)); err == nil {
			skeleton = fi.Size()
		}
		if err := os.RemoveAll(dir); err != nil {
			b.Fatal(err)
		}
		return took
	}
	for b.Loop() {
		without += once(false)
		with += once(true)
	}
	b.ReportMetric(with.Seconds()/float64(b.N), "cpu-s/unpack")
	b.ReportMetric(100*(with-without).Seconds()/without.Seconds(), "%cpu-for-skeleton")
	b.ReportMetric(float64(skeleton)/float64(meta.Inodes)*1000, "skeleton-bytes/1000-files")
}

func unpackOnly(ctx context.Context, packed io.Reader, dir string) error {
	raw, closeRaw, err := decompress(packed)
	if err != nil {
		return err
	}
	defer closeRaw()
	ahead := readAhead(raw)
	defer ahead.close()
	_, err = unpack(ctx, filepath.Join(dir, layerFS), newHashReader(ahead, digest.SHA256), Limits{})
	return err
}

// cpuTime is what the process has used so far, in all its threads.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
