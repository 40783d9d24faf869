package dirfd

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestNamesStayInTheFolder: no method takes what is not a plain name.
func TestNamesStayInTheFolder(t *testing.T) {
	d, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	now := time.Now()
	for _, name := range []string{"", ".", "..", "/", "a/b", "/etc", "../x"} {
		for method, call := range map[string]func() error{
			"OpenDir":   func() error { _, err := d.OpenDir(name); return err },
			"OpenFile":  func() error { _, err := d.OpenFile(name); return err },
			"Create":    func() error { _, err := d.Create(name, 0o600); return err },
			"Mkdir":     func() error { return d.Mkdir(name, 0o700) },
			"Symlink":   func() error { return d.Symlink("x", name) },
			"Link":      func() error { return d.Link(d, name, "x") },
			"Link to":   func() error { return d.Link(d, "x", name) },
			"Mknod":     func() error { return d.Mknod(name, TypeFifo, 0, 0) },
			"Lstat":     func() error { _, err := d.Lstat(name); return err },
			"Readlink":  func() error { _, err := d.Readlink(name); return err },
			"Unlink":    func() error { return d.Unlink(name) },
			"RemoveAll": func() error { return d.RemoveAll(name) },
			"Chown":     func() error { return d.Chown(name, 0, 0) },
			"Chmod":     func() error { return d.Chmod(name, 0) },
			"Chtimes":   func() error { return d.Chtimes(name, now, now) },
			"Rename":    func() error { return d.Rename(name, d, "x") },
			"Rename to": func() error { return d.Rename("x", d, name) },
			"Xattrs":    func() error { _, err := d.Xattrs(name); return err },
			"Setxattr":  func() error { return d.Setxattr(name, "user.x", nil) },
		} {
			if err := call(); err == nil {
				t.Errorf("%s(%q) = nil, want an error", method, name)
			}
		}
	}
}

// TestLinksAreNotFollowed: what is at the other end stays as it is.
func TestLinksAreNotFollowed(t *testing.T) {
	outside := t.TempDir()
	victim := filepath.Join(outside, "victim")
	if err := os.WriteFile(victim, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	d, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for name, target := range map[string]string{"file": victim, "dir": outside} {
		if err := d.Symlink(target, name); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.OpenDir("dir"); err == nil {
		t.Error("OpenDir has followed a link")
	}
	if _, err := d.OpenFile("file"); err == nil {
		t.Error("OpenFile has followed a link")
	}
	if _, err := d.Create("file", 0o600); err == nil {
		t.Error("Create has followed a link")
	}
	before, _ := os.Stat(victim)
	if err := d.Chtimes("file", time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Error(err)
	}
	if err := d.Link(d, "file", "second"); err != nil {
		t.Error(err)
	}
	if err := d.RemoveAll("dir"); err != nil {
		t.Error(err)
	}
	after, err := os.Stat(victim)
	if err != nil || !after.ModTime().Equal(before.ModTime()) {
		t.Errorf("the file at the other end has changed: %v", err)
	}
	if st, ok := after.Sys().(*syscall.Stat_t); !ok || st.Nlink != 1 {
		t.Errorf("the file at the other end has another name: %+v", st)
	}
}
