package sys_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/internal/testutil"
)

// mountsAt is what is mounted at path, the uppermost last.
func mountsAt(t *testing.T, path string) []sys.MountInfo {
	t.Helper()
	all, err := sys.Mounts()
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(all, func(m sys.MountInfo) bool { return m.Point != path })
}

// mountDir is a folder with odd letters in its name; nothing may be mounted
// below it at the end of the test.
func mountDir(t *testing.T) string {
	t.Helper()
	testutil.RequireRoot(t)
	parent := t.TempDir()
	diff := testutil.Snapshot(t, testutil.Scope{MountsBelow: []string{parent}})
	t.Cleanup(func() {
		for _, line := range diff() {
			t.Error(line)
		}
	})
	dir := filepath.Join(parent, "a b\t#\\c")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func wantMountpoint(t *testing.T, path string, want bool) {
	t.Helper()
	got, err := sys.IsMountpoint(path)
	if err != nil || got != want {
		t.Errorf("IsMountpoint(%s) = %v, %v, want %v", path, got, err, want)
	}
}

func TestTmpfs(t *testing.T) {
	dir := mountDir(t)
	wantMountpoint(t, dir, false)
	err := sys.MountTmpfs(dir, sys.TmpfsOptions{Size: 1 << 20, Flags: sys.NoSuid | sys.NoDev | sys.NoExec})
	if err != nil {
		t.Fatal(err)
	}
	wantMountpoint(t, dir, true)
	wantMountpoint(t, filepath.Dir(dir), false)
	fi, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if want := os.ModeDir | os.ModeSticky | 0o777; fi.Mode() != want {
		t.Errorf("mode of the tmpfs = %v, want %v", fi.Mode(), want)
	}
	ms := mountsAt(t, dir)
	if len(ms) != 1 || ms[0].FSType != "tmpfs" || !hasOptions(ms[0].Options, "rw", "nosuid", "nodev", "noexec") || !hasOptions(ms[0].SuperOptions, "size=1024k") {
		t.Errorf("mount table has %+v, want one tmpfs of 1 MiB, nosuid, nodev, noexec", ms)
	}
	for range 2 { // the second finds nothing
		if err := sys.Unmount(dir, 0); err != nil {
			t.Fatal(err)
		}
	}
	wantMountpoint(t, dir, false)
	if err := sys.MountTmpfs(filepath.Join(dir, "absent"), sys.TmpfsOptions{}); !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "absent") {
		t.Errorf("MountTmpfs on an absent folder = %v, want ENOENT that names it", err)
	}
}

func TestBind(t *testing.T) {
	dir := mountDir(t)
	src, inner, dst := filepath.Join(dir, "src"), filepath.Join(dir, "src", "inner"), filepath.Join(dir, "dst")
	for _, d := range []string{inner, dst} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := sys.MountTmpfs(inner, sys.TmpfsOptions{}); err != nil {
		t.Fatal(err)
	}
	defer sys.Unmount(inner, 0)
	tests := []struct {
		name      string
		flags     sys.MountFlags
		options   []string
		withInner bool
	}{
		{"plain", 0, []string{"rw"}, false},
		{"recursive", sys.Recursive, []string{"rw"}, true},
		{"read-only", sys.ReadOnly | sys.NoSuid, []string{"ro", "nosuid"}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := sys.Bind(src, dst, tt.flags); err != nil {
				t.Fatal(err)
			}
			if ms := mountsAt(t, dst); len(ms) != 1 || !hasOptions(ms[0].Options, tt.options...) {
				t.Errorf("mounted %+v, want one with %q", ms, tt.options)
			}
			wantMountpoint(t, filepath.Join(dst, "inner"), tt.withInner)
			if err := sys.Unmount(dst, sys.Detach); err != nil {
				t.Fatal(err)
			}
		})
	}
	t.Run("keeps flags", func(t *testing.T) {
		if err := sys.Bind(src, src, sys.NoExec); err != nil {
			t.Fatal(err)
		}
		defer sys.Unmount(src, sys.Detach)
		if err := sys.Bind(src, dst, sys.ReadOnly); err != nil {
			t.Fatal(err)
		}
		defer sys.Unmount(dst, sys.Detach)
		if ms := mountsAt(t, dst); len(ms) != 1 || !hasOptions(ms[0].Options, "ro", "noexec") {
			t.Errorf("mounted %+v, want ro and the source's noexec", ms)
		}
	})
	if err := sys.Bind(src, filepath.Join(dir, "absent"), 0); !errors.Is(err, unix.ENOENT) {
		t.Errorf("Bind to an absent folder = %v, want ENOENT", err)
	}
}

func TestShareDir(t *testing.T) {
	dir := mountDir(t)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if err := sys.ShareDir(dir); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	ms := mountsAt(t, dir)
	if len(ms) != 1 || ms[0].Shared == 0 {
		t.Errorf("mounts = %+v, want one, shared", ms)
	}
	if err := sys.ShareDir(dir); err != nil {
		t.Error(err)
	}
	if again := mountsAt(t, dir); len(again) != 1 || again[0] != ms[0] {
		t.Errorf("ShareDir again made %+v of %+v", again, ms)
	}
	if err := sys.Unmount(dir, 0); err != nil {
		t.Error(err)
	}
}

func TestIsMountpointDoesNotFollowLinks(t *testing.T) {
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("/proc", link); err != nil {
		t.Fatal(err)
	}
	wantMountpoint(t, "/proc", true)
	wantMountpoint(t, link, false)
	wantMountpoint(t, filepath.Join(link, "absent"), false)
	wantMountpoint(t, "/proc/version/x", false)
}

// hasOptions reports whether all of want are in a comma-separated list.
func hasOptions(list string, want ...string) bool {
	have := strings.Split(list, ",")
	return !slices.ContainsFunc(want, func(w string) bool { return !slices.Contains(have, w) })
}
