package dirfd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestUsage(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"a/b", "c"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "a/b/f"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.Link(filepath.Join(dir, "a/b/f"), filepath.Join(dir, "c/f")),
		os.Symlink("/", filepath.Join(dir, "root")),
		unix.Mkfifo(filepath.Join(dir, "c/fifo"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	all := func() bool { return true }
	bytes, inodes := Usage(dir, all)
	if bytes < 1<<20 || bytes > 1<<20+1<<16 || inodes != 7 { // dir, a, b, c, f, root, fifo
		t.Errorf("Usage = %d bytes, %d inodes, want a little more than a MiB, 7", bytes, inodes)
	}
	left := 3
	if _, inodes := Usage(dir, func() bool { left--; return left >= 0 }); inodes != 3 {
		t.Errorf("Usage of three files at most = %d inodes", inodes)
	}
	if bytes, inodes := Usage(filepath.Join(dir, "none"), all); bytes != 0 || inodes != 0 {
		t.Errorf("Usage of what is not there = %d, %d", bytes, inodes)
	}
}

func TestUsageOfDeepFolders(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, strings.Repeat("d/", 2*maxDepth)), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, inodes := Usage(dir, func() bool { return true }); inodes != maxDepth+1 {
		t.Errorf("Usage of %d folders in each other = %d inodes, want %d", 2*maxDepth, inodes, maxDepth+1)
	}
}
