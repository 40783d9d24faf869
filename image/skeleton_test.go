package image

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// storedLayer unpacks the archive raw as a store does, into a folder of its own.
func storedLayer(tb testing.TB, raw []byte) (dir string, m layerMeta, err error) {
	tb.Helper()
	dir = tb.TempDir()
	if err := os.Mkdir(filepath.Join(dir, layerFS), 0o755); err != nil {
		tb.Fatal(err)
	}
	m, err = unpackStream(tb.Context(), bytes.NewReader(raw), func() {}, dir, Limits{Bytes: 64 << 20, Entries: 200_000})
	return dir, m, err
}

// exact fails unless the archive can be put together again from its layer, which
// verification must find whole. Archives that cannot be unpacked are passed over,
// unless they must.
func exact(tb testing.TB, raw []byte, must bool) {
	tb.Helper()
	dir, m, err := storedLayer(tb, raw)
	if err != nil {
		if must {
			tb.Errorf("unpack = %v", err)
		}
		return
	}
	l, err := openLayer(dir)
	if err != nil {
		tb.Fatal(err)
	}
	defer l.close()
	got, err := io.ReadAll(l)
	// Fuzzing may hit on bytes that unpackStream takes for compressed.
	if d := digest.FromBytes(got); err != nil || d != m.DiffID || int64(len(got)) != m.Archive {
		tb.Errorf("the archive made again has %d bytes and the digest %s, want %d and %s; error %v", len(got), d, m.Archive, m.DiffID, err)
	}
	if must && !bytes.Equal(got, raw) {
		tb.Errorf("the archive made again differs")
	}
	found, err := verifyLayer(tb.Context(), dir, m, (*Progress)(nil).add("", 0))
	if err != nil || len(found) > 0 {
		tb.Errorf("verification of what was just unpacked = %v, %v", found, err)
	}
}

// TestExactArchive: what is in no file of the layer comes back as well.
func TestExactArchive(t *testing.T) {
	long := strings.Repeat("long/", 60) + strings.Repeat("n", 250)
	gnu := tar.Header{Name: long, Format: tar.FormatGNU}
	pax := tar.Header{
		Name: long, Format: tar.FormatPAX, ModTime: time.Unix(1_700_000_000, 123456789),
		PAXRecords: map[string]string{"SCHILY.xattr.user.a": "1", "comment": "c"},
	}
	plain := tarOf(t, file("a", "x"), file("b", ""), symlink("l", "a"))
	noise := make([]byte, 100_000)
	for i := range noise {
		noise[i] = byte(i * i >> 7)
	}
	for name, raw := range map[string][]byte{
		"empty":                    tarOf(t),
		"no end mark":              plain[:len(plain)-1024],
		"much padding":             append(bytes.Clone(plain), make([]byte, 1<<20)...),
		"rubbish after the end":    append(bytes.Clone(plain), noise...),
		"GNU long name":            tarOf(t, tarEntry{gnu, "x"}),
		"PAX records and times":    tarOf(t, tarEntry{pax, "x"}),
		"contents of a whiteout":   tarOf(t, file(".wh.a", "contents that are nowhere"), file("b", "x")),
		"contents that are passed": tarOf(t, file(".wh..wh.aufs", string(noise)), file("b", "x")),
		"large and small files":    tarOf(t, file("a", string(noise)), file("b", "x"), file("c", strings.Repeat("y", 512)), file("d", strings.Repeat("z", 513))),
		"every name three times":   tarOf(t, file("a", "1"), file("a", "22"), file("a", "333")),
		"replaced below replaced":  tarOf(t, file("d/f", "1"), file("d/f", "2"), file("d", "3"), folder("d/"), file("d/f", "4")),
		"a link cut, then another": tarOf(t, file("f", "1"), hardlink("g", "f"), file("f", "2"), hardlink("g", "f"), file("g", "3")),
		"through links that go":    tarOf(t, folder("usr/lib/"), symlink("lib", "usr/lib"), file("lib/f", "1"), folder("lib/"), file("lib/f", "2")),
		"global header":            append(globalHeader(), plain...),
		"old GNU sparse file":      oldSparse(),
	} {
		t.Run(name, func(t *testing.T) { exact(t, raw, true) })
	}
}

// globalHeader is a PAX header for all that follows, as git archive writes one.
func globalHeader() []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "c"}})
	_ = w.Flush()
	return buf.Bytes()
}

// oldSparse is an archive with a file of 20,000 bytes that are zero but for four,
// in GNU's first form: the pieces are listed in the header.
func oldSparse() []byte {
	h := make([]byte, 512)
	copy(h, "sparse")
	for at, text := range map[int]string{
		100: "0000644\x00", 108: "0000000\x00", 116: "0000000\x00", 124: "00000000004\x00", 136: "13650332000\x00",
		156: "S", 257: "ustar  \x00", 386: "00000010000\x00", 398: "00000000004\x00", 410: "00000047040\x00", 422: "00000000000\x00", 483: "00000047040\x00",
	} {
		copy(h[at:], text)
	}
	copy(h[148:], "        ")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:], []byte{'0' + byte(sum>>15&7), '0' + byte(sum>>12&7), '0' + byte(sum>>9&7), '0' + byte(sum>>6&7), '0' + byte(sum>>3&7), '0' + byte(sum&7), 0, ' '})
	body := make([]byte, 512)
	copy(body, "data")
	return slices.Concat(h, body, make([]byte, 1024))
}

// TestSparseFileStaysSparse: holes of the archive are holes on disk.
func TestSparseFileStaysSparse(t *testing.T) {
	dir, _, err := storedLayer(t, oldSparse())
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, layerFS, "sparse"))
	want := make([]byte, 20_000)
	copy(want[4096:], "data")
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("the file has %d bytes, %v; want 20,000 with data at 4,096", len(got), err)
	}
	if blocks := statOf(t, filepath.Join(dir, layerFS, "sparse")).Blocks; blocks > 8 {
		t.Errorf("the file takes %d blocks of 512 bytes, want 8", blocks)
	}
}

func statOf(tb testing.TB, path string) *syscall.Stat_t {
	tb.Helper()
	fi, err := os.Lstat(path)
	if err != nil {
		tb.Fatal(err)
	}
	return fi.Sys().(*syscall.Stat_t)
}
