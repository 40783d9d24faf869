package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cridproject/crid/image/dirfd"
	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/internal/testutil"
)

// walkedQuota counts by walking the store for the folders that it was given, wherever
// they have been moved.
type walkedQuota struct {
	t       *testing.T
	root    string
	project bool // the file system has projects: set them

	mu     sync.Mutex
	inodes map[uint64]uint32 // of folders
	limits map[uint32]WritableLimit
	err    error // of everything
}

func (q *walkedQuota) Usage(project uint32) (u sys.ProjectUsage, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	_ = filepath.WalkDir(q.root, func(path string, e fs.DirEntry, err error) error {
		var st syscall.Stat_t // what goes meanwhile counts no more
		if err == nil && e.IsDir() && syscall.Lstat(path, &st) == nil && q.inodes[st.Ino] == project {
			bytes, inodes := dirfd.Usage(path, func() bool { return true })
			u.Bytes, u.Inodes = u.Bytes+bytes, u.Inodes+inodes
			return fs.SkipDir
		}
		return nil
	})
	return u, q.err
}

func (q *walkedQuota) Limit(project uint32, bytes, inodes uint64) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.limits[project] = WritableLimit{bytes, inodes}
	return q.err
}

func (q *walkedQuota) Assign(dir string, project uint32) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	var st syscall.Stat_t
	if err := syscall.Lstat(dir, &st); err != nil {
		return err
	}
	if was := q.inodes[st.Ino]; was != project {
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			q.t.Errorf("project of %s is set when it holds %v already", dir, left)
		}
	}
	q.inodes[st.Ino] = project
	if q.project {
		return errors.Join(q.err, sys.SetProject(dir, project))
	}
	return q.err
}

func (*walkedQuota) Close() error { return nil }

// replace makes it that of the store, in place of what the machine has.
func (q *walkedQuota) replace(s *Store) {
	q.t.Helper()
	if err := s.projects.close(); err != nil {
		q.t.Error(err)
	}
	s.projects.quota, s.projects.why = q, nil
}

// counted is a store whose file system counts by projects, and an image in it.
func counted(t *testing.T, change ...func(*Options)) (*Store, *walkedQuota, ID) {
	t.Helper()
	srv := newServer(t)
	s := newStore(t, change...)
	q := &walkedQuota{t: t, root: s.root, inodes: make(map[uint64]uint32), limits: make(map[uint32]WritableLimit)}
	q.replace(s)
	return s, q, pull(t, s, srv.push(t, "app:v1", imageOf(t, []v1.Layer{layerOf(t, file("f", "x"), folder("d/"), file("d/g", "y"))}...)))
}

func prepare(t *testing.T, s *Store, id ID, key string) (Rootfs, rootfsRecord) {
	t.Helper()
	fs, err := s.Prepare(t.Context(), id, key)
	if err != nil {
		t.Fatal(err)
	}
	var r rootfsRecord
	if err := readJSON(s.path("rootfs", key, rootfsFile), &r); err != nil {
		t.Fatal(err)
	}
	return fs, r
}

func TestProjects(t *testing.T) {
	s, q, id := counted(t)
	fs1, r1 := prepare(t, s, id, "c1")
	_, r2 := prepare(t, s, id, "c2")
	if r1.Project < firstProject || r2.Project < firstProject || r1.Project == r2.Project {
		t.Fatalf("projects = %d and %d, want two from %d on", r1.Project, r2.Project, firstProject)
	}
	if _, again := prepare(t, s, id, "c1"); again.Project != r1.Project {
		t.Errorf("project of a second Prepare = %d, want %d", again.Project, r1.Project)
	}
	for _, dir := range []string{fs1.Upper, fs1.Work} {
		var st syscall.Stat_t
		if err := syscall.Stat(dir, &st); err != nil || q.inodes[st.Ino] != r1.Project {
			t.Errorf("%s is in project %d, want %d", dir, q.inodes[st.Ino], r1.Project)
		}
	}
	if _, err := s.PrepareVolume(t.Context(), id, VolumeKey("c1", 0)); err != nil {
		t.Fatal(err)
	}
	// More than is walked on the spot.
	for i := range 2 * quickBudget {
		if err := os.WriteFile(filepath.Join(fs1.Upper, fmt.Sprint(i)), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	check := func(s *Store) {
		t.Helper()
		if got := s.Written("c1"); got.Inodes != 2*quickBudget+2 || got.UsedBytes < 4096*2*quickBudget || got.At.IsZero() || got.Mountpoint != s.root {
			t.Errorf("Written = %+v, want the files and two folders", got)
		}
		if fi, err := s.FsInfo(t.Context()); err != nil || fi.Containers.Inodes != 2*quickBudget+4 || fi.Containers.Mountpoint != s.root {
			t.Errorf("FsInfo = %+v, %v, want what both containers have", fi, err)
		}
		if s.usage.byKey != nil || s.usage.running {
			t.Error("a writable layer was walked")
		}
	}
	check(s)
	lock := s.lock
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	s2, err := New(Options{Root: s.root, RegistryDirs: []string{}})
	if err != nil {
		t.Fatal(err)
	}
	q.replace(s2)
	check(s2)
	if _, r3 := prepare(t, s2, id, "c3"); r3.Project == 0 || r3.Project == r1.Project || r3.Project == r2.Project {
		t.Errorf("project of a new container after a restart = %d, want another than %d and %d", r3.Project, r1.Project, r2.Project)
	}
	s.lock = s2.lock // what Cleanup closes
}

// A project's ID is another's only when all its files are gone.
func TestProjectIsFreeWhenEmpty(t *testing.T) {
	s, q, id := counted(t)
	s.projects.limit = WritableLimit{Bytes: 1 << 20, Inodes: 50}
	fs1, r1 := prepare(t, s, id, "c1")
	if q.limits[r1.Project] != s.projects.limit {
		t.Errorf("limits = %v, want %v", q.limits[r1.Project], s.projects.limit)
	}
	if err := os.WriteFile(filepath.Join(fs1.Upper, "f"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.trash.one.Lock() // nothing is deleted meanwhile
	if err := s.Release(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	next := func(why string, forget bool) uint32 {
		t.Helper()
		s.projects.mu.Lock()
		s.projects.next = r1.Project - s.projects.first
		if forget { // as a new process
			clear(s.projects.held)
		}
		s.projects.mu.Unlock()
		got, err := s.projects.take()
		if err != nil {
			t.Fatalf("take %s = %v", why, err)
		}
		return got
	}
	if got := next("with its files in the trash", false); got == r1.Project {
		t.Error("a project was given away while its files were in the trash")
	}
	if got := next("by a new process", true); got == r1.Project {
		t.Error("a new process has given a project away whose files were in the trash")
	}
	s.trash.one.Unlock()
	s.trash.wait()
	if q.limits[r1.Project] != (WritableLimit{}) {
		t.Errorf("limits of a free project = %v", q.limits[r1.Project])
	}
	if got := next("when its files are gone", false); got != r1.Project {
		t.Errorf("take = %d, want %d, which is free", got, r1.Project)
	}
}

func TestNoProjectLeft(t *testing.T) {
	s, q, id := counted(t)
	q.err = syscall.EIO
	if _, r := prepare(t, s, id, "c1"); r.Project != 0 {
		t.Errorf("project = %d, want none", r.Project)
	}
	if got := s.Written("c1"); got.Inodes != 1 || got.At.IsZero() {
		t.Errorf("Written = %+v, want that of a walk", got)
	}
	// A limit that cannot be kept to is another matter.
	s.projects.limit.Bytes = 1 << 20
	if _, err := s.Prepare(t.Context(), id, "c2"); !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), "limit the writable layer") {
		t.Errorf("Prepare = %v, want the error of the quota", err)
	}
	if got := s.Prepared(); len(got) != 1 {
		t.Errorf("Prepared = %v, want nothing of the failed one", got)
	}
	if len(s.projects.held) > 1 { // 0 is held by who has none
		t.Errorf("held = %v, want none", s.projects.held)
	}
}

func TestLimitNeedsQuota(t *testing.T) {
	root := testutil.PlainFS(t, "ext4")
	_, err := New(Options{Root: root, RegistryDirs: []string{}, WritableLimit: WritableLimit{Inodes: 5}})
	wantError(t, err, errkind.BadState, "tune2fs")
	if !errors.Is(err, ErrNoLimit) || !strings.Contains(err.Error(), root) {
		t.Errorf("New = %v, want ErrNoLimit that names %s", err, root)
	}
	wantError(t, CheckLimit(root+"/not/there", WritableLimit{Bytes: 5}), errkind.BadState, "tune2fs")
	if err := CheckLimit(root, WritableLimit{}); err != nil {
		t.Errorf("CheckLimit without a limit = %v", err)
	}
	s := newStore(t, func(o *Options) { o.Root = root })
	if !errors.Is(s.NoQuota(), sys.ErrNoQuota) {
		t.Errorf("NoQuota = %v", s.NoQuota())
	}
}

func TestCheckLimit(t *testing.T) {
	root := testutil.QuotaFS(t, "ext4")
	if err := CheckLimit(root+"/not/there", WritableLimit{Bytes: 5}); err != nil {
		t.Errorf("CheckLimit = %v", err)
	}
}

// What containers do to files works in a project as it does without: on xfs, which
// keeps files of different projects apart whether it counts them or not.
func TestOverlayInProject(t *testing.T) {
	root := testutil.PlainFS(t, "xfs")
	s, q, id := counted(t, func(o *Options) { o.Root = filepath.Join(root, "store") })
	q.project = true
	fs1, r := prepare(t, s, id, "c1")
	func() { // unmounted before the file system is
		dir := t.TempDir()
		if err := syscall.Mount("overlay", dir, "overlay", 0, "lowerdir="+strings.Join(fs1.Lower, ":")+",upperdir="+fs1.Upper+",workdir="+fs1.Work); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := syscall.Unmount(dir, 0); err != nil {
				t.Error(err)
			}
		}()
		changeFiles(t, dir)
	}()
	found := 0
	for _, dir := range []string{fs1.Upper, fs1.Work} {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.IsDir() && !e.Type().IsRegular() {
				return err
			}
			found++
			if got, _, err := sys.Project(path); err != nil || got != r.Project {
				t.Errorf("%s is in project %d, %v, want %d", path, got, err, r.Project)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	if found < 8 {
		t.Errorf("found %d files and folders, want at least 8", found)
	}
	if err := s.Release(t.Context(), "c1"); err != nil { // a move out of nothing's project
		t.Error(err)
	}
	s.trash.wait()
}

// changeFiles does in dir, an overlay over f, d/ and d/g, what package managers do.
func changeFiles(t *testing.T, dir string) {
	t.Helper()
	in := func(name string) string { return filepath.Join(dir, name) }
	fd, err := syscall.Open(dir, 0o20200000|syscall.O_RDWR, 0o600) // O_TMPFILE
	if err == nil {
		_, err = syscall.Write(fd, []byte("x"))
		err = errors.Join(err, syscall.Close(fd))
	}
	for what, err := range map[string]error{
		"O_TMPFILE": err,
		"chown":     os.Chown(in("f"), 1000, 1000), // copied up
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"append to a file of the image", func() error { return os.WriteFile(in("d/g"), []byte("new"), 0o600) }},
		{"hard link", func() error { return os.Link(in("d/g"), in("link")) }},
		{"hard link to a file of the image", func() error { return os.Link(in("f"), in("d/f")) }},
		{"new folders", func() error { return os.MkdirAll(in("a/b/c"), 0o755) }},
		{"write in one", func() error { return os.WriteFile(in("a/b/c/new.tmp"), []byte("x"), 0o600) }},
		{"replace", func() error { return os.Rename(in("a/b/c/new.tmp"), in("a/b/c/new")) }},
		{"move to another folder", func() error { return os.Rename(in("a/b/c/new"), in("d/new")) }},
		{"move a folder", func() error { return os.Rename(in("a/b"), in("moved")) }},
		{"remove a file of the image", func() error { return os.Remove(in("f")) }}, // a whiteout
		{"put another in its place", func() error { return os.Mkdir(in("f"), 0o755) }},
		{"remove a folder of the image", func() error { return os.RemoveAll(in("d")) }},
		{"make it again", func() error { return os.Mkdir(in("d"), 0o755) }}, // opaque
		{"fifo", func() error { return syscall.Mkfifo(in("fifo"), 0o600) }},
		{"link", func() error { return os.Symlink("f", in("symlink")) }},
	} {
		if err := step.do(); err != nil {
			t.Errorf("%s: %v", step.what, err)
		}
	}
}
