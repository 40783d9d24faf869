package image

import (
	"archive/tar"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
)

// pulled pulls an image of the layers, lowest first, and prepares a root file
// system of it.
func pulled(t *testing.T, layers ...[]tarEntry) (*Store, ID, Rootfs) {
	t.Helper()
	srv := newServer(t)
	var ls []v1.Layer
	for _, l := range layers {
		ls = append(ls, layerOf(t, l...))
	}
	s := newStore(t)
	id := pull(t, s, srv.push(t, "app:v1", imageOf(t, ls...)))
	fs, err := s.Prepare(t.Context(), id, "c1")
	if err != nil {
		t.Fatal(err)
	}
	return s, id, fs
}

// mounted mounts the root file system as the monitor will.
func mounted(t *testing.T, fs Rootfs) string {
	t.Helper()
	dir := t.TempDir()
	opts := "lowerdir=" + strings.Join(fs.Lower, ":") + ",upperdir=" + fs.Upper + ",workdir=" + fs.Work
	if err := syscall.Mount("overlay", dir, "overlay", 0, opts); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestOverlayShowsTheImage(t *testing.T) {
	testutil.RequireRoot(t)
	old := time.Unix(1_234_567_890, 123_456_789)
	entry := func(e tarEntry, change func(*tar.Header)) tarEntry {
		e.Format = tar.FormatPAX
		change(&e.Header)
		return e
	}
	_, _, fs := pulled(t,
		[]tarEntry{
			folder("bin/"), file("bin/sh", "sh"), folder("etc/"), file("etc/a", "a"), file("etc/b", "b"), folder("opt/"), folder("opt/sub/"),
			file("opt/old", "x"), file("opt/sub/old", "x"), folder("gone/"), file("gone/f", "x"), symlink("lib", "bin"), file("was-file", "x"),
			entry(folder("tmp/"), func(h *tar.Header) { h.Mode = 0o1777 }),
			entry(folder("var/mail/"), func(h *tar.Header) { h.Mode, h.Gid = 0o2775, 8 }),
		},
		[]tarEntry{
			file("etc/.wh.a", ""), file("opt/.wh..wh..opq", ""), file("opt/new", "y"), file(".wh.gone", ""), folder("gone/"), file("gone/g", "y"),
			file("new/dir/sh", "sh2"), hardlink("usr/bin/sh2", "new/dir/sh"), file(".wh.was-file", ""), file("tmp/x", "x"), file("var/mail/box", "x"),
			entry(file("suid", "x"), func(h *tar.Header) {
				h.Mode, h.Uid, h.Gid, h.ModTime = 0o4755, 1000, 100, old
				h.PAXRecords = map[string]string{
					"SCHILY.xattr.user.note": "hello\x00there", "SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
					"SCHILY.xattr.trusted.overlay.redirect": "/etc", "SCHILY.xattr.security.selinux": "x",
				}
			}),
			{Header: tar.Header{Name: "dev/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666}},
			{Header: tar.Header{Name: "dev/disk", Typeflag: tar.TypeBlock, Devmajor: 259, Devminor: 70_000, Mode: 0o660, Gid: 6}},
			{Header: tar.Header{Name: "run/fifo", Typeflag: tar.TypeFifo, Mode: 0o622}},
			entry(folder("dated/"), func(h *tar.Header) { h.ModTime = old }), file("dated/f", "x"),
		})
	dir := mounted(t, fs)
	want := []string{
		"bin/", "bin/sh = sh", "dated/", "dated/f = x", "dev/", "dev/disk Drw-rw----", "dev/null Dcrw-rw-rw-", "etc/", "etc/b = b", "gone/", "gone/g = y", "lib -> bin",
		"new/", "new/dir/", "new/dir/sh = sh2", "opt/", "opt/new = y", "run/", "run/fifo prw--w--w-", "suid = x", "tmp/", "tmp/x = x",
		"usr/", "usr/bin/", "usr/bin/sh2 = sh2", "var/", "var/mail/", "var/mail/box = x",
	}
	if got := listing(t, dir); !slices.Equal(got, want) {
		t.Errorf("the mounted image holds\n%q, want\n%q", got, want)
	}
	stat := func(name string) *syscall.Stat_t {
		t.Helper()
		var st syscall.Stat_t
		if err := syscall.Lstat(filepath.Join(dir, name), &st); err != nil {
			t.Fatal(err)
		}
		return &st
	}
	if a, b := stat("new/dir/sh"), stat("usr/bin/sh2"); a.Ino != b.Ino || a.Nlink != 2 {
		t.Error("the hard link across folders is none")
	}
	if st := stat("suid"); st.Mode != syscall.S_IFREG|0o4755 || st.Uid != 1000 || st.Gid != 100 || time.Unix(st.Mtim.Unix()) != old {
		t.Errorf("suid has mode %o, owner %d:%d, time %v", st.Mode, st.Uid, st.Gid, time.Unix(st.Mtim.Unix()))
	}
	if got := xattr(filepath.Join(dir, "suid"), "user.note"); got != "hello\x00there" {
		t.Errorf("user.note = %q", got)
	}
	if len(xattr(filepath.Join(dir, "suid"), "security.capability")) != 20 {
		t.Error("the capabilities are gone")
	}
	for _, dropped := range []string{"trusted.overlay.redirect", "security.selinux"} {
		if xattr(filepath.Join(fs.Lower[1], "suid"), dropped) != "" {
			t.Errorf("%s of the archive was set", dropped)
		}
	}
	if st := stat("dated"); time.Unix(st.Mtim.Unix()) != old {
		t.Error("a folder's time is that of unpacking")
	}
	if st := stat("dev/disk"); st.Rdev != 259<<8|70_000&0xff|70_000&^0xff<<12 {
		t.Errorf("dev/disk is device %x", st.Rdev)
	}
	// The upper layer has files in them but no entry for them.
	if st := stat("tmp"); st.Mode != syscall.S_IFDIR|0o1777 {
		t.Errorf("tmp has mode %o, want 1777 as in the layer below", st.Mode)
	}
	if st := stat("var/mail"); st.Mode != syscall.S_IFDIR|0o2775 || st.Gid != 8 {
		t.Errorf("var/mail has mode %o and group %d, want 2775 and 8", st.Mode, st.Gid)
	}
	if st := stat("var"); st.Mode != syscall.S_IFDIR|0o755 {
		t.Errorf("var has mode %o", st.Mode)
	}
}

func TestRootAttributes(t *testing.T) {
	testutil.RequireRoot(t)
	root := tarEntry{Header: tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o751, Uid: 7}}
	for name, layers := range map[string][][]tarEntry{
		"only layer":  {{root, file("f", "x")}},
		"lower layer": {{root}, {file("f", "x")}, {file("g", "x")}},
		"upper layer": {{file("f", "x")}, {root}},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, fs := pulled(t, layers...)
			var st syscall.Stat_t
			if err := syscall.Stat(mounted(t, fs), &st); err != nil || st.Mode&0o7777 != 0o751 || st.Uid != 7 {
				t.Errorf("the root has mode %o and owner %d, %v", st.Mode, st.Uid, err)
			}
		})
	}
}

func TestPasswd(t *testing.T) {
	passwd := file("etc/passwd", "root:x:0:0\n")
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		layers [][]tarEntry
		want   string
	}{
		{"there", [][]tarEntry{{passwd}, {file("f", "x")}}, "root:x:0:0\n"},
		{"absent", [][]tarEntry{{file("f", "x")}}, ""},
		{"upper wins", [][]tarEntry{{passwd}, {file("etc/passwd", "up\n")}}, "up\n"},
		{"removed", [][]tarEntry{{passwd}, {file("etc/.wh.passwd", "")}}, ""},
		{"folder removed", [][]tarEntry{{passwd}, {file(".wh.etc", "")}}, ""},
		{"opaque", [][]tarEntry{{passwd}, {file("etc/.wh..wh..opq", "")}}, ""},
		{"put back", [][]tarEntry{{passwd}, {file("etc/.wh.passwd", "")}, {passwd}}, "root:x:0:0\n"},
		{"link", [][]tarEntry{{file("usr/etc/passwd", "u\n")}, {symlink("etc", "/usr/etc")}}, "u\n"},
		{"link up", [][]tarEntry{{file("x/passwd", "u\n"), symlink("etc/passwd", "../../../x/passwd")}}, "u\n"},
		{"link out", [][]tarEntry{{symlink("etc/passwd", secret)}}, ""},
		{"link out upwards", [][]tarEntry{{symlink("etc/passwd", strings.Repeat("../", 20)+secret)}}, ""},
		{"loop", [][]tarEntry{{symlink("etc/passwd", "passwd")}}, ""},
		{"fifo", [][]tarEntry{{{Header: tar.Header{Name: "etc/passwd", Typeflag: tar.TypeFifo}}}}, ""},
		{"folder", [][]tarEntry{{folder("etc/passwd/")}}, ""},
		{"file below file", [][]tarEntry{{passwd}, {file("etc", "x")}}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if strings.Contains(c.name, "opaque") {
				testutil.RequireRoot(t)
			}
			_, _, fs := pulled(t, c.layers...)
			if string(fs.Passwd) != c.want || fs.Group != nil {
				t.Errorf("Passwd = %q, Group = %q, want %q and none", fs.Passwd, fs.Group, c.want)
			}
		})
	}
	srv := newServer(t)
	s := newStore(t)
	id := pull(t, s, srv.push(t, "app:v1", imageOf(t, layerOf(t, file("etc/passwd", strings.Repeat("x", maxPasswd+1))))))
	_, err := s.Prepare(t.Context(), id, "c1")
	wantError(t, err, errkind.Invalid, "passwd has more than")
	if len(s.Prepared()) != 0 {
		t.Error("the failed Prepare has left its key")
	}
}

func TestPrepareRelease(t *testing.T) {
	s, id, first := pulled(t, []tarEntry{file("f", "x")})
	again, err := s.Prepare(t.Context(), id, "c1")
	if err != nil || again.Upper != first.Upper || !slices.Equal(again.Lower, first.Lower) {
		t.Errorf("Prepare again = %+v, %v, want %+v", again, err, first)
	}
	_, err = s.Prepare(t.Context(), "sha256:00", "c2")
	wantError(t, err, errkind.NotFound, "no image")
	_, err = s.Prepare(t.Context(), "sha256:00", "c1")
	wantError(t, err, errkind.Exists, "c1")
	for _, key := range []string{"", ".", "..", "a/b", "/", ".hidden"} {
		if _, err := s.Prepare(t.Context(), id, key); !errkind.Is(err, errkind.Invalid) {
			t.Errorf("Prepare with the key %q = %v, want Invalid", key, err)
		}
	}
	if err := s.Remove(t.Context(), string(id)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(first.Lower[0], "f")); err != nil {
		t.Errorf("the layer went while a root file system has it: %v", err)
	}
	// A restart keeps it.
	s.Close()
	s2, err := New(Options{Root: s.root, RegistryDirs: []string{}})
	if err != nil {
		t.Fatal(err)
	}
	if got := s2.Prepared(); !slices.Equal(got, []string{"c1"}) {
		t.Errorf("Prepared after a restart = %v", got)
	}
	if again, err := s2.Prepare(t.Context(), id, "c1"); err != nil || again.Upper != first.Upper {
		t.Errorf("Prepare after a restart = %+v, %v", again, err)
	}
	checkStore(t, s2)
	for range 2 {
		if err := s2.Release(t.Context(), "c1"); err != nil {
			t.Errorf("Release = %v", err)
		}
	}
	wantEmpty(t, s2)
	if _, err := os.Stat(first.Upper); !os.IsNotExist(err) {
		t.Error("the writable layer is still there")
	}
	*s = Store{lock: s2.lock} // what Cleanup closes
}

func TestContainerUsage(t *testing.T) {
	s, _, fs := pulled(t, []tarEntry{file("f", "x")})
	if err := os.WriteFile(filepath.Join(fs.Upper, "log"), make([]byte, 100_000), 0o600); err != nil {
		t.Fatal(err)
	}
	var got FsInfo
	testutil.WaitFor(t, "the figures of writable layers", func() bool {
		got, _ = s.FsInfo(t.Context())
		return got.Containers.UsedBytes >= 100_000
	})
	if got.Containers.Inodes != 2 || got.Containers.At.IsZero() { // the folder, log
		t.Errorf("Containers = %+v", got.Containers)
	}
}

// What one container has written is known at once where it is little; where it is
// much, as soon as it has been looked at.
func TestWritten(t *testing.T) {
	s, _, fs := pulled(t, []tarEntry{file("f", "x")})
	if got := s.Written("c1"); got.Inodes != 1 || got.At.IsZero() || got.Mountpoint != s.root {
		t.Errorf("Written of a new container = %+v, want one folder", got)
	}
	s.usage.wait()
	for i := range quickBudget {
		if err := os.WriteFile(filepath.Join(fs.Upper, fmt.Sprint(i)), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.usage.mu.Lock()
	s.usage.byKey, s.usage.at = nil, time.Time{} // as after a restart
	s.usage.mu.Unlock()
	if got := s.Written("c1"); !got.At.IsZero() || got.Inodes != 0 {
		t.Errorf("Written of many files that were never counted = %+v, want not known", got)
	}
	s.usage.wait()
	if got := s.Written("c1"); got.Inodes != quickBudget+1 || got.UsedBytes < 4096*quickBudget || got.At.IsZero() {
		t.Errorf("Written after a look = %+v", got)
	}
	if got := s.Written("none"); got.Inodes != 0 || got.UsedBytes != 0 {
		t.Errorf("Written of no container = %+v", got)
	}
}

// A container that comes while the others are looked at stays known, and one that
// went is forgotten.
func TestLookKeepsWhatCame(t *testing.T) {
	dir := t.TempDir()
	u := &usageCache{byKey: map[string]layerUsage{
		"came": {usageOfImages{1, 1}, time.Now().Add(time.Hour)},
		"went": {usageOfImages{1, 1}, time.Now().Add(-time.Hour)},
	}}
	u.look(dir, []string{"there"})
	if _, came := u.byKey["came"]; !came || len(u.byKey) != 2 {
		t.Errorf("after a look these are known: %v, want came and there", u.byKey)
	}
}
