package server

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cridproject/crid/internal/testutil"
)

func TestOwnWorkingDir(t *testing.T) {
	testutil.RequireRoot(t)
	root, outside := t.TempDir(), t.TempDir()
	for _, err := range []error{
		os.Mkdir(filepath.Join(root, "there"), 0o700),
		os.Mkdir(filepath.Join(root, "target"), 0o755),
		os.Symlink("/target", filepath.Join(root, "absolute")),
		os.Symlink("../../../../target", filepath.Join(root, "there", "up")),
		os.Symlink(outside, filepath.Join(root, "outside")),
		os.Symlink("nowhere", filepath.Join(root, "dangling")),
		os.WriteFile(filepath.Join(root, "file"), nil, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		cwd  string
		made string // folder of 7:8; "" means none
	}{
		{"/", ""},
		{"/there", ""},
		{"/new/deep", "new/deep"},
		{"/there/new", "there/new"},
		{"/absolute/a", "target/a"},
		{"/there/up/b", "target/b"},
		{"/outside/c", ""},
		{"/dangling/d", ""},
		{"/file/e", ""},
	}
	for _, tt := range tests {
		if err := ownWorkingDir(root, tt.cwd, 7, 8); err != nil {
			t.Errorf("ownWorkingDir(%s) = %v", tt.cwd, err)
		}
		if tt.made == "" {
			continue
		}
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(root, tt.made), &st); err != nil || st.Uid != 7 || st.Gid != 8 || st.Mode&0o777 != 0o755 {
			t.Errorf("ownWorkingDir(%s): %s is of %d:%d, mode %o, %v; want 7:8, 755", tt.cwd, tt.made, st.Uid, st.Gid, st.Mode, err)
		}
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) > 0 {
		t.Errorf("outside of the root: %v, %v, want nothing", entries, err)
	}
	for _, path := range []string{"/", "/there"} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(root, path), &st); err != nil || st.Uid != 0 {
			t.Errorf("%s, which was there, is of user %d now, %v", path, st.Uid, err)
		}
	}
}
