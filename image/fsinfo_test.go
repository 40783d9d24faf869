package image

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cridproject/crid/image/dirfd"
	"github.com/cridproject/crid/internal/testutil"
)

// sizeOf walks folders and adds up the sizes of files, those of several names once.
func sizeOf(t *testing.T, dirs ...string) (size uint64) {
	t.Helper()
	for _, dir := range dirs {
		seen := make(map[uint64]bool)
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			var st syscall.Stat_t
			if err := syscall.Lstat(path, &st); err != nil || seen[st.Ino] {
				return err
			}
			seen[st.Ino] = true
			size += uint64(st.Size)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return size
}

// The figures of images are those of a walk, on a file system of their own, and the
// same after a restart.
func TestImageFigures(t *testing.T) {
	root := filepath.Join(testutil.PlainFS(t, "ext4"), "store")
	srv := newServer(t)
	s := newStore(t, func(o *Options) { o.Root = root })
	base := layerOf(t, folder("bin/"), file("bin/sh", strings.Repeat("x", 10_000)), hardlink("bin/ash", "bin/sh"), symlink("lib", "bin"), file("empty", ""))
	var many []tarEntry
	for i := range 300 {
		many = append(many, file(fmt.Sprintf("d%d/f%d", i%7, i), strings.Repeat("y", 40*i)))
	}
	big := layerOf(t, append(many, file(".wh.lib", ""))...)
	pull(t, s, srv.push(t, "base:v1", imageOf(t, base)))
	both := srv.push(t, "both:v1", imageOf(t, base, big))
	pull(t, s, both)

	check := func(s *Store) FsInfo {
		t.Helper()
		for _, img := range s.List() {
			var dirs []string
			for _, d := range img.Layers {
				dirs = append(dirs, filepath.Join(s.layerPath(d), layerFS))
			}
			if want := sizeOf(t, dirs...) + uint64(len(img.ConfigJSON)); img.Size != want {
				t.Errorf("Size of %s = %d, but a walk finds %d", img.RepoTags, img.Size, want)
			}
		}
		// Each layer once, though two images have it.
		var bytes, inodes uint64
		s.mu.Lock()
		layers := make([]digest.Digest, 0, len(s.layers))
		for d := range s.layers {
			layers = append(layers, d)
		}
		s.mu.Unlock()
		for _, d := range layers {
			b, i := dirfd.Usage(filepath.Join(s.layerPath(d), layerFS), func() bool { return true })
			bytes, inodes = bytes+b, inodes+i-1 // the folder fs is the store's own
			if st, err := os.Stat(filepath.Join(s.layerPath(d), skeletonFile)); err == nil {
				bytes, inodes = bytes+onDisk(uint64(st.Size())), inodes+1
			}
		}
		got, err := s.FsInfo(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		// Blocks of names and of extents are not known before.
		if got.Images.Inodes != inodes || got.Images.UsedBytes > bytes+bytes/20 || got.Images.UsedBytes < bytes-bytes/20 {
			t.Errorf("FsInfo = %+v, but a walk finds %d bytes and %d inodes", got.Images, bytes, inodes)
		}
		return got
	}
	before := check(s)
	// kubelet looks at the file system that this path is on.
	var store, here syscall.Stat_t
	if err := syscall.Stat(before.Images.Mountpoint, &store); err != nil || syscall.Stat(filepath.Dir(filepath.Dir(root)), &here) != nil || store.Dev == here.Dev {
		t.Errorf("Mountpoint = %s, %v, want the store's file system", before.Images.Mountpoint, err)
	}
	if err := s.lock.Close(); err != nil {
		t.Fatal(err)
	}
	s2, err := New(Options{Root: root, RegistryDirs: []string{}})
	if err != nil {
		t.Fatal(err)
	}
	if after := check(s2); after.Images.UsedBytes != before.Images.UsedBytes || after.Images.Inodes != before.Images.Inodes {
		t.Errorf("FsInfo after a restart = %+v, before %+v", after.Images, before.Images)
	}

	// What is being deleted counts no more; who asks finds it deleted, or gives up.
	s2.trash.limit = time.Hour
	s2.trash.one.Lock()
	if err := s2.Remove(t.Context(), both); err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := s2.FsInfo(gone); err != nil || got.Images.Inodes != 5 { // bin, sh, lib, empty, the skeleton
		t.Errorf("FsInfo of who does not wait = %+v, %v, want base's 5 inodes", got.Images, err)
	}
	trashed := func() int {
		left, err := os.ReadDir(s2.path("trash"))
		if err != nil {
			t.Fatal(err)
		}
		return len(left)
	}
	if n := trashed(); n != 1 {
		t.Errorf("%d folders in the trash, want the layer's", n)
	}
	// Long after the removal nobody waits.
	s2.trash.limit = 0
	asking, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := s2.FsInfo(asking); err != nil || asking.Err() != nil {
		t.Errorf("FsInfo long after a removal: %v, and the caller's context is at %v", err, asking.Err())
	}
	s2.trash.limit = time.Hour
	s2.trash.one.Unlock()
	if _, err := s2.FsInfo(t.Context()); err != nil || trashed() != 0 {
		t.Errorf("after FsInfo %d folders are in the trash, %v, want none", trashed(), err)
	}
	if err := s2.Close(); err != nil {
		t.Error(err)
	}
	s.lock, err = os.Open(os.DevNull) // for Cleanup to close
	if err != nil {
		t.Fatal(err)
	}
}

// The files of containers go all the time: nobody who asks waits for that.
func TestFsInfoWaitsForNoContainer(t *testing.T) {
	srv := newServer(t)
	s := newStore(t)
	id := pull(t, s, srv.push(t, "app:v1", imageOf(t, layerOf(t, file("f", "x")))))
	if _, err := s.Prepare(t.Context(), id, "c"); err != nil {
		t.Fatal(err)
	}
	s.trash.limit = time.Hour
	s.trash.one.Lock() // nothing is deleted meanwhile
	defer s.trash.one.Unlock()
	if err := s.Release(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	asking, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := s.FsInfo(asking); err != nil || asking.Err() != nil {
		t.Errorf("FsInfo while a container's files are deleted: %v, and the caller's context is at %v", err, asking.Err())
	}
}
