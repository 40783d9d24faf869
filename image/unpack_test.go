package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cridproject/crid/internal/errkind"
)

// tarOf makes an archive of entries as they stand.
func tarOf(tb testing.TB, entries ...tarEntry) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := e.Header
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(e.body))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1_600_000_000, 0)
		}
		if err := w.WriteHeader(&h); err != nil {
			tb.Fatal(err)
		}
		if _, err := w.Write([]byte(e.body)); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}

type tarEntry struct {
	tar.Header
	body string
}

func file(name, body string) tarEntry { return tarEntry{tar.Header{Name: name}, body} }
func folder(name string) tarEntry {
	return tarEntry{Header: tar.Header{Name: name, Typeflag: tar.TypeDir}}
}

func symlink(name, target string) tarEntry {
	return tarEntry{Header: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}}
}

func hardlink(name, target string) tarEntry {
	return tarEntry{Header: tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}}
}

// listing is a folder as text: a line for each file, with what is of interest.
func listing(t *testing.T, dir string) []string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		line := strings.TrimPrefix(p, dir+"/")
		switch d.Type() {
		case fs.ModeDir:
			line += "/"
			if x := xattr(p, opaqueXattr); x != "" {
				line += " opaque"
			}
		case fs.ModeSymlink:
			target, _ := os.Readlink(p)
			line += " -> " + target
		case 0:
			body, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += " = " + string(body)
		default:
			fi, _ := d.Info()
			line += " " + fi.Mode().String()
			if fi.Mode()&fs.ModeCharDevice != 0 && fi.Sys().(*syscall.Stat_t).Rdev == 0 {
				line += " whiteout"
			}
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(lines)
	return lines
}

func xattr(path, name string) string {
	buf := make([]byte, 256)
	n, err := syscall.Getxattr(path, name, buf)
	if err != nil {
		return ""
	}
	return string(buf[:n])
}

// sandboxed makes a folder to unpack into, with a file beside it that must stay.
func sandboxed(tb testing.TB) (outer, dir string) {
	tb.Helper()
	outer = tb.TempDir()
	dir = filepath.Join(outer, "layer")
	if err := os.Mkdir(dir, 0o700); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(outer, "victim"), []byte("victim"), 0o600); err != nil {
		tb.Fatal(err)
	}
	return outer, dir
}

// checkOuter fails when anything but the layer's folder has changed.
func checkOuter(tb testing.TB, outer string) {
	tb.Helper()
	names, err := os.ReadDir(outer)
	if err != nil {
		tb.Fatal(err)
	}
	body, err := os.ReadFile(filepath.Join(outer, "victim"))
	fi, _ := os.Stat(filepath.Join(outer, "victim"))
	if len(names) != 2 || err != nil || string(body) != "victim" || fi.Mode() != 0o600 || fi.Sys().(*syscall.Stat_t).Nlink != 1 {
		tb.Errorf("something outside the layer has changed: %v, victim = %q", names, body)
	}
}

func TestUnpack(t *testing.T) {
	for _, c := range []struct {
		name string
		in   []tarEntry
		want []string
	}{
		{"plain", []tarEntry{folder("a/"), file("a/f", "x"), symlink("a/l", "f")}, []string{"a/", "a/f = x", "a/l -> f"}},
		{"names are taken from the root", []tarEntry{file("/etc/f", "x"), file("./g", "y")}, []string{"etc/", "etc/f = x", "g = y"}},
		{
			"hard link across folders",
			[]tarEntry{file("a/f", "x"), hardlink("b/c/g", "a/f"), hardlink("h", "/b/c/g")},
			[]string{"a/", "a/f = x", "b/", "b/c/", "b/c/g = x", "h = x"},
		},
		{"hard link to a symlink", []tarEntry{symlink("l", "/victim"), hardlink("m", "l")}, []string{"l -> /victim", "m -> /victim"}},
		{"whiteout", []tarEntry{file("a/.wh.f", "")}, []string{"a/", "a/f Dc--------- whiteout"}},
		{"whiteout then folder", []tarEntry{file(".wh.a", ""), folder("a/"), file("a/f", "x")}, []string{"a/ opaque", "a/f = x"}},
		{"whiteout then file in the folder", []tarEntry{file(".wh.a", ""), file("a/f", "x")}, []string{"a/ opaque", "a/f = x"}},
		{"folder then whiteout", []tarEntry{folder("a/"), file(".wh.a", "")}, []string{"a/ opaque"}},
		{"file then whiteout", []tarEntry{file("f", "x"), file(".wh.f", "")}, []string{"f = x"}},
		{"whiteout then file", []tarEntry{file(".wh.f", ""), file("f", "x")}, []string{"f = x"}},
		{"opaque", []tarEntry{file("a/f", "x"), file("a/.wh..wh..opq", "")}, []string{"a/ opaque", "a/f = x"}},
		{"AUFS notes", []tarEntry{file(".wh..wh.aufs", ""), folder(".wh..wh.plnk/"), file(".wh..wh.plnk/1.2", "x")}, nil},
		{
			"later wins",
			[]tarEntry{file("f", "x"), file("f", "y"), folder("d/"), file("d/f", "x"), file("d", "z"), symlink("l", "f"), folder("l/")},
			[]string{"d = z", "f = y", "l/"},
		},
		{"hard link is cut by a later file", []tarEntry{file("f", "x"), hardlink("g", "f"), file("f", "y")}, []string{"f = y", "g = x"}},
		{
			"links inside",
			[]tarEntry{folder("usr/lib/"), symlink("lib", "usr/lib"), file("lib/f", "x"), symlink("abs", "/usr"), file("abs/lib/g", "y")},
			[]string{"abs -> /usr", "lib -> usr/lib", "usr/", "usr/lib/", "usr/lib/f = x", "usr/lib/g = y"},
		},
		{
			"links up stop at the root",
			[]tarEntry{symlink("up", "../../.."), file("up/victim", "x"), symlink("a/up", "../../b"), file("a/up/f", "y")},
			[]string{"a/", "a/up -> ../../b", "b/", "b/f = y", "up -> ../../..", "victim = x"},
		},
		{
			"link to a folder of a layer below",
			[]tarEntry{symlink("var/run", "/run"), file("var/run/f", "x")},
			[]string{"run/", "run/f = x", "var/", "var/run -> /run"},
		},
		{
			"link replaced by folder",
			[]tarEntry{symlink("l", "/tmp"), file("l/f", "x"), folder("l/"), file("l/g", "y")},
			[]string{"l/", "l/g = y", "tmp/", "tmp/f = x"},
		},
		{"entry over link to outside", []tarEntry{symlink("l", "../victim"), file("l", "x")}, []string{"l = x"}},
		{"names in any encoding", []tarEntry{file("\xff\xfe", "x"), file("ä\n", "y")}, []string{"ä\n = y", "\xff\xfe = x"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			requireRootFor(t, c.want)
			outer, dir := sandboxed(t)
			if _, err := unpack(t.Context(), dir, bytes.NewReader(tarOf(t, c.in...)), Limits{}); err != nil {
				t.Fatal(err)
			}
			got := listing(t, dir)
			slices.Sort(c.want)
			if !slices.Equal(got, c.want) {
				t.Errorf("unpack:\n got %q\nwant %q", got, c.want)
			}
			checkOuter(t, outer)
			exact(t, tarOf(t, c.in...), true)
		})
	}
}

// requireRootFor skips what only root may make.
func requireRootFor(t *testing.T, want []string) {
	if os.Getuid() != 0 && strings.Contains(strings.Join(want, " "), "opaque") {
		t.Skip("trusted attributes need root")
	}
}

func TestUnpackRefuses(t *testing.T) {
	long := strings.Repeat("x", 256)
	for _, c := range []struct {
		name string
		in   []tarEntry
		want string
	}{
		{"up", []tarEntry{file("../victim", "x")}, "leads out"},
		{"up inside", []tarEntry{file("a/../../victim", "x")}, "leads out"},
		{"folder up", []tarEntry{folder("../layer2")}, "leads out"},
		{"whiteout of up", []tarEntry{file(".wh...", "")}, "whiteout of nothing"},
		{"whiteout of nothing", []tarEntry{file("a/.wh.", "")}, "whiteout of nothing"},
		{"hard link out", []tarEntry{hardlink("h", "../victim")}, "not in the layer"},
		{"hard link through a link out", []tarEntry{symlink("l", ".."), hardlink("h", "l/victim")}, "not in the layer"},
		{"hard link to nothing", []tarEntry{hardlink("h", "absent/f")}, "not in the layer"},
		{"hard link below itself", []tarEntry{file("h/a/f", "x"), hardlink("h", "h/a/f")}, "in the link itself"},
		{"file as folder", []tarEntry{file("f", "x"), file("f/g", "x")}, "is no folder"},
		{"loop of links", []tarEntry{symlink("a", "b"), symlink("b", "a"), file("a/f", "x")}, "symbolic links"},
		{"links that multiply", []tarEntry{symlink("a", "."), symlink("b", "a/a/a/a/a/a/a/a"), symlink("c", "b/b/b/b/b/b/b/b"), file("c/f", "x")}, "symbolic links"},
		{"long name", []tarEntry{file(long, "x")}, "more than 255"},
		{"deep", []tarEntry{file(strings.Repeat("x/", 600)+"f", "x")}, "folders deep"},
		{"root is a file", []tarEntry{{Header: tar.Header{Name: "./", Typeflag: tar.TypeSymlink, Linkname: ".."}}}, "root is not a folder"},
		{"owner that means no change", []tarEntry{{Header: tar.Header{Name: "f", Uid: 4294967295, Mode: 0o4755}}}, "no owner"},
		{"too many entries", []tarEntry{file("a", ""), file("b", ""), file("c", ""), file("d", ""), file("e", "")}, "more than 4 entries"},
		{"too large", []tarEntry{file("a", strings.Repeat("x", 20_000))}, "more space"},
	} {
		t.Run(c.name, func(t *testing.T) {
			outer, dir := sandboxed(t)
			lim := Limits{Entries: 4, Bytes: 16 << 10}
			_, err := unpack(t.Context(), dir, bytes.NewReader(tarOf(t, c.in...)), lim)
			if err == nil || !strings.Contains(err.Error(), c.want) || !errkind.Is(err, errkind.Invalid) {
				t.Errorf("unpack = %v (%v), want an Invalid that says %q", err, errkind.Of(err), c.want)
			}
			checkOuter(t, outer)
		})
	}
}

// An archive of a few KiB, packed, must not make unpacking remember any amount.
func TestUnpackRemembersLittle(t *testing.T) {
	large := strings.Repeat("x", 1<<20-64)
	for name, in := range map[string][]tarEntry{
		"attributes": {{tar.Header{Name: "d/", Typeflag: tar.TypeDir, PAXRecords: map[string]string{"SCHILY.xattr.user.a": large}}, ""}},
		"folders":    {file(strings.Repeat("xxxxxxx/", 500)+"f", "")}, // their paths have 2 KB on average
	} {
		t.Run(name, func(t *testing.T) {
			_, dir := sandboxed(t)
			_, err := unpack(t.Context(), dir, bytes.NewReader(tarOf(t, in...)), Limits{notes: 1 << 20})
			wantError(t, err, errkind.Invalid, "take more than 1 MiB")
		})
	}
}

func TestUnpackRefusesBrokenStreams(t *testing.T) {
	whole := tarOf(t, file("a", strings.Repeat("x", 5000)))
	for name, in := range map[string][]byte{
		"in a file": whole[:1500], "in a header": whole[:100], "not a tar": bytes.Repeat([]byte("garbage "), 200),
	} {
		t.Run(name, func(t *testing.T) {
			_, dir := sandboxed(t)
			_, err := unpack(t.Context(), dir, bytes.NewReader(in), Limits{})
			if !errkind.Is(err, errkind.Invalid) {
				t.Errorf("unpack = %v, want Invalid", err)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, dir := sandboxed(t)
	if _, err := unpack(ctx, dir, bytes.NewReader(whole), Limits{}); !errors.Is(err, context.Canceled) {
		t.Errorf("unpack with a cancelled context = %v", err)
	}
}

// FuzzUnpack: whatever the archive, nothing outside the folder changes.
func FuzzUnpack(f *testing.F) {
	f.Add(tarOf(f, symlink("l", "../"), file("l/victim", "x"), hardlink("h", "l/../victim"), file(".wh.l", ""), folder("l/")))
	f.Add(tarOf(f, folder("a/b/"), symlink("a/b", "/../victim"), file("a/b", "x"), file("a/.wh..wh..opq", "")))
	f.Add([]byte("0000"))
	f.Fuzz(func(t *testing.T, in []byte) {
		outer, dir := sandboxed(t)
		_, _ = unpack(t.Context(), dir, bytes.NewReader(in), Limits{Bytes: 1 << 20, Entries: 200})
		checkOuter(t, outer)
		exact(t, in, false)
	})
}

// FuzzUnpackNames builds an archive out of names, which byte fuzzing of tar
// headers with their checksums reaches slowly.
func FuzzUnpackNames(f *testing.F) {
	f.Add("s l ../\nf l/victim\nh x l/victim\nw l\nd l")
	f.Add("d a\ns a/b ..\ns c a/b\nf c/../x\no a\nh a/b c")
	f.Fuzz(func(t *testing.T, script string) {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for line := range strings.SplitSeq(script, "\n") {
			words := strings.Split(line, " ")
			if len(words) < 2 {
				continue
			}
			h := tar.Header{Name: words[1], Typeflag: tar.TypeReg, Mode: 0o600}
			if len(words) > 2 {
				h.Linkname = words[2]
			}
			switch words[0] {
			case "d":
				h.Typeflag = tar.TypeDir
			case "s":
				h.Typeflag = tar.TypeSymlink
			case "h":
				h.Typeflag = tar.TypeLink
			case "p":
				h.Typeflag = tar.TypeFifo
			case "w":
				h.Name = filepath.Dir(h.Name) + "/.wh." + filepath.Base(h.Name)
			case "o":
				h.Name += "/.wh..wh..opq"
			}
			if h.Typeflag == tar.TypeReg {
				h.Size = int64(len(line))
			}
			if w.WriteHeader(&h) != nil {
				return
			}
			if h.Typeflag == tar.TypeReg {
				_, _ = w.Write([]byte(line))
			}
		}
		w.Close()
		outer, dir := sandboxed(t)
		_, _ = unpack(t.Context(), dir, bytes.NewReader(buf.Bytes()), Limits{Bytes: 1 << 20, Entries: 200})
		checkOuter(t, outer)
		exact(t, buf.Bytes(), false)
	})
}
