package image

import (
	"archive/tar"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
)

// verify is the one image's verification.
func verify(t *testing.T, s *Store, refs ...string) Verification {
	t.Helper()
	var got []Verification
	if err := s.Verify(t.Context(), refs, &Progress{}, func(v Verification) { got = append(got, v) }); err != nil || len(got) != 1 {
		t.Fatalf("Verify(%q) = %v, %v; want one image", refs, got, err)
	}
	return got[0]
}

// damageable is a layer with something of everything.
func damageable() []tarEntry {
	when := time.Unix(1_700_000_000, 5000)
	setuid := tarEntry{tar.Header{Name: "bin/su", Mode: 0o4755, ModTime: when, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "1"}}, "program"}
	return []tarEntry{
		folder("bin/"), setuid, hardlink("bin/sudo", "bin/su"), symlink("bin/sh", "su"), file("bin/large", strings.Repeat("0123456789", 30_000)),
		{tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666}, ""},
		folder("etc/"), file("etc/.wh..wh..opq", ""), file("etc/.wh.passwd", ""), file("var/lib/f", "implied"), file("bin/twice", "1"), file("bin/twice", "22"),
	}
}

func TestVerifyFindsWhatHasChanged(t *testing.T) {
	testutil.RequireRoot(t)
	srv := newServer(t)
	ref := srv.push(t, "app:v1", imageOf(t, layerOf(t, damageable()...)))
	for name, c := range map[string]struct {
		change func(fs string) error
		path   string
		want   string
	}{
		"nothing":            {func(string) error { return nil }, "", ""},
		"contents":           {func(fs string) error { return poke(filepath.Join(fs, "bin/large"), 200_000) }, "/bin/large", "its contents have changed"},
		"size":               {func(fs string) error { return os.Truncate(filepath.Join(fs, "bin/large"), 100) }, "/bin/large", "too short"},
		"missing":            {func(fs string) error { return os.Remove(filepath.Join(fs, "bin/large")) }, "/bin/large", "it is missing"},
		"mode":               {func(fs string) error { return os.Chmod(filepath.Join(fs, "bin/su"), 0o755) }, "/bin/su", "its mode is 0755, not 4755"},
		"owner":              {func(fs string) error { return os.Lchown(filepath.Join(fs, "bin/sh"), 1, 2) }, "/bin/sh", "its owner is 1:2, not 0:0"},
		"time":               {func(fs string) error { return os.Chtimes(filepath.Join(fs, "null"), time.Now(), time.Unix(1, 0)) }, "/null", "1970-01-01T00:00:01Z, not at 2020"},
		"extended attribute": {func(fs string) error { return syscall.Setxattr(filepath.Join(fs, "bin/su"), "user.a", []byte("2"), 0) }, "/bin/su", "user.a has changed"},
		"lost attribute":     {func(fs string) error { return syscall.Removexattr(filepath.Join(fs, "bin/su"), "user.a") }, "/bin/su", "user.a is missing"},
		"further attribute":  {func(fs string) error { return syscall.Setxattr(filepath.Join(fs, "bin"), "user.b", nil, 0) }, "/bin", "user.b, which the archive has not"},
		"target of a link":   {func(fs string) error { return swap(filepath.Join(fs, "bin/sh"), relink("sudo")) }, "/bin/sh", `it leads to "sudo", not to "su"`},
		"hard link cut":      {func(fs string) error { return swap(filepath.Join(fs, "bin/sudo"), rewrite("program")) }, "/bin/sudo", "no longer the same file"},
		"device":             {func(fs string) error { return swap(filepath.Join(fs, "null"), device(1, 5)) }, "/null", "the device 1:5, not 1:3"},
		"type":               {func(fs string) error { return swap(filepath.Join(fs, "null"), rewrite("")) }, "/null", "a regular file, not a character device"},
		"file too many":      {func(fs string) error { return rewrite("x")(filepath.Join(fs, "bin/new")) }, "/bin/new", "not in the layer's archive"},
		"whiteout gone":      {func(fs string) error { return os.Remove(filepath.Join(fs, "etc/passwd")) }, "/etc/passwd", "it is missing"},
		"no longer opaque":   {func(fs string) error { return syscall.Removexattr(filepath.Join(fs, "etc"), opaqueXattr) }, "/etc", "no longer hides"},
		"folder without one": {func(fs string) error { return os.Chmod(filepath.Join(fs, "var/lib"), 0o700) }, "/var/lib", "its mode is 0700"},
		"folder as a link": {func(fs string) error {
			return errors.Join(os.Rename(fs+"/etc", fs+"/../etc"), os.Symlink("../etc", fs+"/etc"))
		}, "/etc", "link"},
		"replaced file":       {func(fs string) error { return poke(filepath.Join(fs, "../replaced/1"), 0) }, "/bin/twice", "its contents have changed"},
		"skeleton is gone":    {func(fs string) error { return os.Remove(filepath.Join(fs, "../skeleton.zst")) }, "", "no such file"},
		"skeleton is cut":     {func(fs string) error { return os.Truncate(filepath.Join(fs, "../skeleton.zst"), 100) }, "", "skeleton.zst"},
		"skeleton is changed": {func(fs string) error { return poke(filepath.Join(fs, "../skeleton.zst"), 60) }, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			id := pull(t, s, ref)
			layer := s.layerPath(must(s.Image(ref)).Layers[0])
			mtimes := timesOf(t, filepath.Join(layer, layerFS))
			if err := c.change(filepath.Join(layer, layerFS)); err != nil {
				t.Fatal(err)
			}
			restoreTimes(t, mtimes) // of the folders: only the change itself is to be found
			v := verify(t, s, ref)
			if v.Image.ID != id || v.Bytes == 0 || len(v.Unverifiable) > 0 {
				t.Errorf("Verify = %+v, want image %s", v, id)
			}
			if (name != "nothing") != (len(v.Damage) > 0) {
				t.Fatalf("damage = %v", v.Damage)
			}
			hit := func(d Damage) bool { return d.Path == c.path && strings.Contains(d.What, c.want) }
			if len(v.Damage) > 0 && c.want != "" && !slices.ContainsFunc(v.Damage, hit) {
				t.Errorf("damage = %v, want %s: %s", v.Damage, c.path, c.want)
			}
			if c.path != "" && slices.ContainsFunc(v.Damage, func(d Damage) bool { return !strings.HasPrefix(d.Path, c.path) }) {
				t.Errorf("damage = %v, want nothing but %s", v.Damage, c.path)
			}
		})
	}
}

// poke changes one byte and nothing else, as a broken disk does.
func poke(path string, at int64) error {
	fi, err := os.Stat(path)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		return err
	}
	b[0] ^= 0x55
	if _, err := f.WriteAt(b, at); err != nil {
		return err
	}
	return os.Chtimes(path, fi.ModTime(), fi.ModTime())
}

func swap(path string, by func(string) error) error { return errors.Join(os.Remove(path), by(path)) }

func relink(target string) func(string) error {
	return func(path string) error { return os.Symlink(target, path) }
}

func rewrite(body string) func(string) error {
	return func(path string) error { return os.WriteFile(path, []byte(body), 0o600) }
}

func device(major, minor int) func(string) error {
	return func(path string) error { return syscall.Mknod(path, syscall.S_IFCHR|0o666, major<<8|minor) }
}

// timesOf are those of the folders in dir.
func timesOf(t *testing.T, dir string) map[string]time.Time {
	t.Helper()
	times := make(map[string]time.Time)
	for _, name := range []string{"", "bin", "etc", "var", "var/lib"} {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		times[filepath.Join(dir, name)] = fi.ModTime()
	}
	return times
}

func restoreTimes(t *testing.T, times map[string]time.Time) {
	t.Helper()
	for path, at := range times {
		if fi, err := os.Lstat(path); err == nil && fi.IsDir() {
			if err := os.Chtimes(path, at, at); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestVerify(t *testing.T) {
	srv := newServer(t)
	s := newStore(t)
	shared := layerOf(t, folder("tmp/"), file("tmp/a", "1"))
	one := pull(t, s, srv.push(t, "one:v1", imageOf(t, shared, layerOf(t, tarEntry{tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}, ""}), layerOf(t, file("tmp/x", "y")))))
	two := pull(t, s, srv.push(t, "two:v1", imageOf(t, shared)))

	var got []ID
	p := &Progress{}
	err := s.Verify(t.Context(), nil, p, func(v Verification) {
		got = append(got, v.Image.ID)
		if len(v.Damage) > 0 {
			t.Errorf("damage = %v", v.Damage)
		}
	})
	want := []ID{one, two}
	slices.Sort(want)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("Verify of all = %v, %v; want %v", got, err, want)
	}
	for _, st := range p.Steps() {
		if st.State != StepDone || st.Done != st.Total || st.Total == 0 {
			t.Errorf("step = %+v, want it done", st)
		}
	}
	if n := len(p.Steps()); n != 3 {
		t.Errorf("%d steps, want 3: the shared layer is read once", n)
	}

	// The layer of folders that gives tmp its mode back.
	dirs := s.layerPath(s.images[one].Dirs)
	if err := os.Chmod(filepath.Join(dirs, layerFS, "tmp"), 0o755); err != nil {
		t.Fatal(err)
	}
	if v := verify(t, s, string(one)); len(v.Damage) != 1 || v.Damage[0].Path != "/tmp" || !strings.Contains(v.Damage[0].What, "0755, not 1777") {
		t.Errorf("damage of the layer of folders = %v", v.Damage)
	}

	if err := s.Verify(t.Context(), []string{"absent:v1"}, nil, nil); !errkind.Is(err, errkind.NotFound) {
		t.Errorf("Verify of an absent image = %v, want NotFound", err)
	}
	checkStore(t, s)
}

// Verify names all who hold a damaged layer. When these are gone a pull mends it.
func TestMendAfterVerify(t *testing.T) {
	srv := newServer(t)
	s := newStore(t)
	shared := layerOf(t, file("f", "contents"))
	refs := []string{srv.push(t, "one:v1", imageOf(t, shared)), srv.push(t, "two:v1", imageOf(t, shared, layerOf(t, file("g", "x"))))}
	one, two := pull(t, s, refs[0]), pull(t, s, refs[1])
	pull(t, s, srv.push(t, "other:v1", imageOf(t, layerOf(t, file("h", "x")))))
	if _, err := s.Prepare(t.Context(), two, "c"); err != nil {
		t.Fatal(err)
	}
	if err := poke(filepath.Join(s.layerPath(must(s.Image(refs[0])).Layers[0]), layerFS, "f"), 0); err != nil {
		t.Fatal(err)
	}
	users := verify(t, s, refs[0]).Users
	want := []ID{one, two}
	slices.Sort(want)
	if !slices.Equal(users.Images, want) || !slices.Equal(users.Containers, []string{"c"}) {
		t.Fatalf("users = %v, want %v and container c", users, want)
	}
	for _, key := range users.Containers {
		if err := s.Release(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range users.Images {
		if err := s.Remove(t.Context(), string(id)); err != nil {
			t.Fatal(err)
		}
	}
	for _, ref := range refs {
		pull(t, s, ref)
		if v := verify(t, s, ref); len(v.Damage) > 0 || len(v.Users.Images)+len(v.Users.Containers) > 0 {
			t.Errorf("after the pull: %v, %v; want neither damage nor its users", v.Damage, v.Users)
		}
	}
	checkStore(t, s)
}

// TestVerifyLayersOfOlderCrid: they are usable and say what they are.
func TestVerifyLayersOfOlderCrid(t *testing.T) {
	srv := newServer(t)
	root := filepath.Join(t.TempDir(), "store")
	s, err := New(Options{Root: root, RegistryDirs: []string{}})
	if err != nil {
		t.Fatal(err)
	}
	id := pull(t, s, srv.push(t, "one:v1", imageOf(t, layerOf(t, file("a", "1")))))
	d := must(s.Image(string(id))).Layers[0]
	m := s.layers[d].meta
	m.Archive = 0
	err = errors.Join(s.Close(), os.Remove(filepath.Join(s.layerPath(d), skeletonFile)), writeJSON(filepath.Join(s.layerPath(d), layerFile), m, 0))
	if err != nil {
		t.Fatal(err)
	}
	s = newStore(t, func(o *Options) { o.Root = root })
	if v := verify(t, s, string(id)); len(v.Damage) > 0 || !slices.Equal(v.Unverifiable, must(s.Image(string(id))).Layers) {
		t.Errorf("Verify = %+v, want its layer unverifiable", v)
	}
}
