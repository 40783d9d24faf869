package image

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
)

// fastDir is a temporary folder that lives in memory where there is such a place:
// syncing it costs nothing, however busy the disk is.
func fastDir(tb testing.TB) string {
	tb.Helper()
	if fi, err := os.Stat("/dev/shm"); err != nil || !fi.IsDir() {
		return tb.TempDir()
	}
	dir, err := os.MkdirTemp("/dev/shm", "crid-image-")
	if err != nil {
		return tb.TempDir()
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	return dir
}

func inMemory(tb testing.TB) func(*Options) {
	return func(o *Options) { o.Root = filepath.Join(fastDir(tb), "store") }
}

// TestRemoveWalksNothing: while no file can be deleted, an image is removed all the
// same, its names are free, its figures gone, and it can be pulled again. What a
// crash leaves to be deleted the next start deletes.
func TestRemoveWalksNothing(t *testing.T) {
	srv := newServer(t)
	var many []tarEntry
	for _, name := range strings.Fields("a b c d e f g h") {
		many = append(many, file(name, name))
	}
	ref := srv.push(t, "app:v1", imageOf(t, layerOf(t, many...), layerOf(t, file("top", "x"))))
	root := filepath.Join(fastDir(t), "store")
	s, err := New(Options{Root: root, RegistryDirs: []string{}})
	if err != nil {
		t.Fatal(err)
	}
	id := pull(t, s, ref)
	s.trash.wait()
	s.trash.one.Lock() // nothing is deleted from here on
	if err := s.Remove(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	if list := s.List(); len(list) != 0 {
		t.Errorf("List = %v, want no image", list)
	}
	for _, name := range []string{ref, string(id)} {
		if _, err := s.Image(name); !errkind.Is(err, errkind.NotFound) {
			t.Errorf("Image(%s) = %v, want NotFound", name, err)
		}
	}
	if fi, err := s.FsInfo(t.Context()); err != nil || fi.Images.UsedBytes != 0 || fi.Images.Inodes != 0 {
		t.Errorf("FsInfo = %+v, %v, want no image counted", fi.Images, err)
	}
	if n := layerFolders(t, s); n != 0 {
		t.Errorf("%d layers are stored, want none", n)
	}
	checkStore(t, s)
	waiting, err := os.ReadDir(s.path("trash"))
	if err != nil || len(waiting) != 2 {
		t.Fatalf("the trash holds %v, %v, want both layers", waiting, err)
	}
	if again := pull(t, s, ref); again != id {
		t.Errorf("pulled again it is %s, want %s", again, id)
	}
	checkStore(t, s)
	if err := s.Remove(t.Context(), string(id)); err != nil {
		t.Fatal(err)
	}
	// As after a crash: what waits is copied to where a new store looks.
	after := filepath.Join(fastDir(t), "store", "trash")
	if err := os.CopyFS(after, os.DirFS(s.path("trash"))); err != nil {
		t.Fatal(err)
	}
	s.trash.one.Unlock()
	wantEmpty(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	wantEmpty(t, newStore(t, func(o *Options) { o.Root = filepath.Dir(after) }))
}

// TestRemoveKeepsWhatIsUsed: a container's image can be removed; its layers go with
// the container.
func TestRemoveKeepsWhatIsUsed(t *testing.T) {
	srv := newServer(t)
	ref := srv.push(t, "app:v1", imageOf(t, layerOf(t, file("f", "x"))))
	s := newStore(t, inMemory(t))
	id := pull(t, s, ref)
	fs, err := s.Prepare(t.Context(), id, "c1")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prepare(t.Context(), id, "c2"); !errkind.Is(err, errkind.NotFound) {
		t.Errorf("Prepare of a removed image = %v, want NotFound", err)
	}
	if again, err := s.Prepare(t.Context(), id, "c1"); err != nil || !slices.Equal(again.Lower, fs.Lower) {
		t.Errorf("Prepare of what is there = %v, %v, want %v", again.Lower, err, fs.Lower)
	}
	if got, err := os.ReadFile(filepath.Join(fs.Lower[0], "f")); err != nil || string(got) != "x" {
		t.Errorf("the container's file holds %q, %v", got, err)
	}
	if fi, _ := s.FsInfo(t.Context()); fi.Images.Inodes == 0 {
		t.Error("FsInfo does not count the layer that is still there")
	}
	checkStore(t, s)
	if err := s.Release(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	wantEmpty(t, s)
}

// TestRemoveOrVolume: of a removal and a container that wants the image as a volume
// one comes first, and the other is refused.
func TestRemoveOrVolume(t *testing.T) {
	srv := newServer(t)
	ref := srv.push(t, "data:v1", imageOf(t, layerOf(t, file("f", "x"))))
	s := newStore(t) // on disk: syncing the removal takes its time there
	for n := range 10 {
		id := pull(t, s, ref)
		if n%2 == 0 { // the volume comes when the removal is under way, before it is synced
			done := make(chan error, 1)
			go func() { done <- s.Remove(t.Context(), ref) }()
			for {
				if _, err := os.Lstat(s.recordPath(id)); err != nil {
					break
				}
			}
			if _, err := s.PrepareVolume(t.Context(), id, VolumeKey("c", n)); !errkind.Is(err, errkind.NotFound) {
				t.Fatalf("PrepareVolume of an image that is being removed = %v, want NotFound", err)
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			continue
		}
		// Both begin at once.
		begin, done := make(chan struct{}), make(chan error, 1)
		go func() {
			<-begin
			done <- s.Remove(t.Context(), ref)
		}()
		close(begin)
		_, mounted := s.PrepareVolume(t.Context(), id, VolumeKey("c", n))
		err := <-done
		if (mounted == nil) == (err == nil) || mounted != nil && !errkind.Is(mounted, errkind.NotFound) || err != nil && !errkind.Is(err, errkind.BadState) {
			t.Fatalf("PrepareVolume = %v and Remove = %v, want one of them to be refused", mounted, err)
		}
		if err := s.Release(t.Context(), VolumeKey("c", n)); err != nil {
			t.Error(err)
		}
	}
	if err := s.Remove(t.Context(), ref); err != nil {
		t.Error(err)
	}
	wantEmpty(t, s)
}

// A removal that fails leaves the image as it was.
func TestRemoveFails(t *testing.T) {
	srv := newServer(t)
	ref := srv.push(t, "app:v1", imageOf(t, layerOf(t, file("f", "x"))))
	s := newStore(t, inMemory(t))
	id := pull(t, s, ref)
	// A folder that is not empty cannot be unlinked, not by root either.
	record := s.recordPath(id)
	if err := os.Rename(record, record+".kept"); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(record, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), ref); err == nil || !strings.Contains(err.Error(), record) {
		t.Errorf("Remove = %v, want an error that names %s", err, record)
	}
	if err := os.RemoveAll(record); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(record+".kept", record); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prepare(t.Context(), id, "c"); err != nil {
		t.Errorf("Prepare after a failed removal = %v", err)
	}
	checkStore(t, s)
}

// TestSlowPullLosesTag: of two pulls of a tag that has moved in between, the one that
// asked later has it, also when the other ends last.
func TestSlowPullLosesTag(t *testing.T) {
	srv := newServer(t)
	old := imageOf(t, layerOf(t, file("f", "old")))
	layers, _ := old.Layers()
	slow, _ := layers[0].Digest()
	ref := srv.push(t, "app:latest", old)
	s := newStore(t, inMemory(t))
	release := srv.hold(t, slow.String())
	done := make(chan error, 1)
	go func() {
		_, err := s.Pull(t.Context(), PullRequest{Ref: ref})
		done <- err
	}()
	testutil.WaitFor(t, "the layer to be asked for", func() bool { return srv.seen("GET", slow.String()) > 0 })
	fresh := imageOf(t, layerOf(t, file("f", "new")))
	srv.push(t, "app:latest", fresh)
	pull(t, s, ref)
	release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if i, err := s.Image(ref); err != nil || i.ID != idOf(t, fresh) {
		t.Errorf("Image(%s) = %s, %v, want the later one", ref, i.ID.Short(), err)
	}
	i, err := s.Image(string(idOf(t, old)))
	if err != nil || len(i.RepoTags) != 0 || len(i.RepoDigests) != 1 {
		t.Errorf("the earlier image = %v %v, %v, want its digest and no tag", i.RepoTags, i.RepoDigests, err)
	}
	checkStore(t, s)
}

// TestRemoveBetweenPulls: two pulls of one image are under way when the image whose
// layer they found goes; they end well, and so does one of them when the other's
// image has been removed meanwhile.
func TestRemoveBetweenPulls(t *testing.T) {
	srv := newServer(t)
	base, slow := layerOf(t, file("base", "x")), layerOf(t, file("slow", "x"))
	first := srv.push(t, "first:1", imageOf(t, base))
	ref := srv.push(t, "second:1", imageOf(t, base, slow))
	slowDigest, _ := slow.Digest()
	s := newStore(t, inMemory(t))
	pull(t, s, first)
	release := srv.hold(t, slowDigest.String())
	done := make(chan error, 2)
	for range 2 {
		go func() {
			id, err := s.Pull(t.Context(), PullRequest{Ref: ref})
			if err == nil {
				err = s.Remove(t.Context(), string(id)) // the other may have this yet to come
			}
			done <- err
		}()
	}
	testutil.WaitFor(t, "both pulls to hold the base and want the other layer", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		held := 0
		for _, l := range s.layers {
			held += l.refs
		}
		return s.waitersLocked() == 2 && held == 3
	})
	if err := s.Remove(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if n := layerFolders(t, s); n != 1 {
		t.Errorf("%d layers are stored, want the one that the pulls hold", n)
	}
	checkStore(t, s)
	release()
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	wantEmpty(t, s)
	srv.misbehave(watch)
	pull(t, s, ref)
	checkStore(t, s)
}
