package image

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
)

// smallStore has a file system of its own.
func smallStore(t *testing.T, options string) *Store {
	t.Helper()
	dir := smallDisk(t, options)
	return newStore(t, func(o *Options) { o.Root = dir })
}

func smallDisk(t *testing.T, options string) string {
	t.Helper()
	testutil.RequireRoot(t)
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", options, "crid-test", dir).CombinedOutput(); err != nil {
		t.Fatalf("mount -t tmpfs: %v: %s", err, out)
	}
	t.Cleanup(func() { unmount(t, dir) })
	return dir
}

// TestDiskFull: the error says which disk, how much is left and what to do; nothing of
// the image stays, and one that fits can be pulled.
func TestDiskFull(t *testing.T) {
	srv := newServer(t)
	noise := func(n int) string {
		b := make([]byte, n)
		src := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)})
		_, _ = src.Read(b)
		return string(b)
	}
	var many []tarEntry
	for i := range 300 {
		many = append(many, file(strings.Repeat("x", i%100)+string(rune('a'+i/100)), ""))
	}
	fits := imageOf(t, layerOf(t, file("f", "x")))
	for _, c := range []struct {
		name, options string
		img           v1.Image
	}{
		{"one layer", "size=256k", imageOf(t, layerOf(t, file("f", noise(600_000))))},
		// Each alone has room, so that the disk itself must say no.
		{"layers together", "size=256k", imageOf(t, layerOf(t, file("f", noise(170_000))), layerOf(t, file("g", noise(170_001))))},
		{"number of files", "size=8m,nr_inodes=200", imageOf(t, layerOf(t, many...))},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := smallStore(t, c.options)
			_, err := s.Pull(t.Context(), PullRequest{Ref: srv.push(t, "large:1", c.img)})
			wantError(t, err, errkind.Other, "the file system of "+s.root+" has ")
			wantError(t, err, errkind.Other, "remove images or other files there")
			wantEmpty(t, s)
			_, err = s.Import(t.Context(), bytes.NewReader(dockerArchive(t, map[string]v1.Image{"large:1": c.img})), ImportOptions{})
			wantError(t, err, errkind.Other, "the file system of "+s.root+" has ")
			wantEmpty(t, s)
			pull(t, s, srv.push(t, "fits:1", fits))
			checkStore(t, s)
		})
	}
}

// A record that cannot be written, because the disk is full, leaves nothing either, and
// takes no name from another image.
func TestDiskFullAtCommit(t *testing.T) {
	srv := newServer(t)
	s := smallStore(t, "size=256k")
	ref := srv.push(t, "app:1", imageOf(t, layerOf(t, file("f", "old"))))
	old := pull(t, s, ref)
	fresh := configured(t, imageOf(t, layerOf(t, file("f", "old"))), func(c *v1.Config) { c.User = "7" })
	srv.push(t, "app:1", fresh)
	filler := fillDisk(t, s.root) // the layer is there already: the first thing to be written is the record
	_, err := s.Pull(t.Context(), PullRequest{Ref: ref})
	wantError(t, err, errkind.Other, "no room in the image store")
	if i, err := s.Image(ref); err != nil || i.ID != old {
		t.Errorf("Image(%s) = %s, %v, want the old one", ref, i.ID.Short(), err)
	}
	checkStore(t, s)
	if err := s.Remove(t.Context(), ref); err != nil { // makes room, and needs none
		t.Errorf("Remove on a full disk = %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if id := pull(t, s, ref); id != idOf(t, fresh) {
		t.Errorf("Pull = %s, want %s", id.Short(), idOf(t, fresh).Short())
	}
	checkStore(t, s)
}

// fillDisk leaves no room on the file system of dir. It returns the file that takes it.
func fillDisk(t *testing.T, dir string) string {
	t.Helper()
	full, err := os.OpenFile(filepath.Join(dir, "filler"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for err == nil {
		_, err = full.Write(make([]byte, 4096))
	}
	return full.Name()
}

// A store opens on a full disk, whatever ended it before: how else would room be made?
// What is damaged meanwhile is found all the same.
func TestOpenOnFullDisk(t *testing.T) {
	srv := newServer(t)
	root := smallDisk(t, "size=256k")
	open := func() *Store {
		t.Helper()
		s, err := New(Options{Root: root, RegistryDirs: []string{}})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	layer := layerOf(t, file("f", "x"))
	ref := srv.push(t, "app:1", imageOf(t, layer))
	s := open()
	pull(t, s, ref)
	filler := fillDisk(t, root)
	if err := s.Close(); !isFull(err) {
		t.Errorf("Close on a full disk = %v, want what is wrong", err)
	}
	s = open()
	if n := len(s.List()); n != 1 {
		t.Errorf("List on a full disk has %d images, want 1", n)
	}
	fillDisk(t, root) // the empty mark has left some
	_ = s.Close()
	diffID, _ := layer.DiffID()
	if err := os.Truncate(s.path("layers", diffID.Hex, layerFS, "f"), 0); err != nil {
		t.Fatal(err)
	}
	s = open()
	if n := len(s.List()); n != 0 {
		t.Errorf("List has %d images, want none: the only one is damaged", n)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	pull(t, s, ref)
	checkStore(t, s)
	var m mark
	if err := readJSON(s.path(markFile), &m); err != nil || m.Clean {
		t.Errorf("after a pull with room again the mark is %+v, %v; want one of a store in use", m, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
