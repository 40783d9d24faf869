package sys_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/internal/testutil"
)

func mustDo(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func TestSetProject(t *testing.T) {
	dir := testutil.PlainFS(t, "xfs")
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	mustDo(t, os.Mkdir(in, 0o755), os.Mkdir(out, 0o755), sys.SetProject(in, 7), sys.SetProject(in, 7))
	mustDo(t, os.MkdirAll(filepath.Join(in, "a/b"), 0o755), os.MkdirAll(filepath.Join(out, "a"), 0o755))
	for path, want := range map[string]uint32{"in": 7, "in/a": 7, "in/a/b": 7, "out": 0, "out/a": 0} {
		if got, inherited, err := sys.Project(filepath.Join(dir, path)); err != nil || got != want || inherited != (want != 0) {
			t.Errorf("Project(%s) = %d, inherited %v, %v, want %d", path, got, inherited, err, want)
		}
	}
	// Why upper and work of an overlay must be of one project.
	if err := os.Rename(filepath.Join(out, "a"), filepath.Join(in, "c")); !errors.Is(err, syscall.EXDEV) {
		t.Errorf("moving a folder of another project in = %v, want EXDEV", err)
	}
	mustDo(t, os.Rename(filepath.Join(in, "a"), filepath.Join(out, "moved"))) // why a writable layer can go to the trash
	mustDo(t, os.Symlink(in, filepath.Join(dir, "link")))
	if err := sys.SetProject(filepath.Join(dir, "link"), 8); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("SetProject of a link = %v, want ELOOP", err)
	}
}

func TestProjectQuota(t *testing.T) {
	for _, kind := range testutil.QuotaKinds {
		t.Run(kind, func(t *testing.T) { testProjectQuota(t, testutil.QuotaFS(t, kind)) })
	}
}

func testProjectQuota(t *testing.T, root string) {
	q, err := sys.OpenProjectQuota(root)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	const project = 1<<30 + 5
	dir := filepath.Join(root, "dir")
	mustDo(t, os.Mkdir(dir, 0o755), q.Assign(dir, project))
	usage := func() sys.ProjectUsage {
		t.Helper()
		u, err := q.Usage(project)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	empty := usage()
	if !q.Enforced() || empty.Inodes != 1 || empty.BytesLimit != 0 {
		t.Errorf("enforced = %v, usage of an empty folder %+v, want 1 inode and no limit", q.Enforced(), empty)
	}
	mustDo(t, os.WriteFile(filepath.Join(dir, "f"), make([]byte, 1<<20), 0o600))
	if u := usage(); u.Inodes != 2 || u.Bytes < empty.Bytes+1<<20 || u.Bytes > empty.Bytes+1<<20+1<<16 {
		t.Errorf("usage right after a write of a MiB = %+v, before %+v", u, empty)
	}
	mustDo(t, q.Limit(project, 2<<20, 100))
	if u := usage(); u.BytesLimit != 2<<20 || u.InodesLimit != 100 {
		t.Errorf("usage = %+v, want the limits", u)
	}
	mustDo(t, q.Limit(project, 0, 0), os.RemoveAll(dir))
	// xfs takes files apart after they are gone.
	testutil.WaitFor(t, "a project without files takes nothing", func() bool { return usage() == sys.ProjectUsage{} })
	if u, err := q.Usage(project + 1); err != nil || u != (sys.ProjectUsage{}) {
		t.Errorf("usage of a project that never was = %+v, %v", u, err)
	}
}

func TestNoProjectQuota(t *testing.T) {
	tmpfs := t.TempDir()
	testutil.RequireRoot(t)
	mustDo(t, sys.MountTmpfs(tmpfs, sys.TmpfsOptions{}))
	defer func() { mustDo(t, sys.Unmount(tmpfs, 0)) }()
	for name, c := range map[string]struct {
		dir  func(t *testing.T) string
		want string // of the text
	}{
		"tmpfs": {func(*testing.T) string { return tmpfs }, "ext4 and xfs have"},
		"ext4":  {func(t *testing.T) string { return testutil.PlainFS(t, "ext4") }, "tune2fs -O project,quota"},
		"xfs":   {func(t *testing.T) string { return testutil.PlainFS(t, "xfs") }, "with the option prjquota"},
	} {
		t.Run(name, func(t *testing.T) {
			q, err := sys.OpenProjectQuota(c.dir(t))
			if q != nil || !errors.Is(err, sys.ErrNoQuota) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("OpenProjectQuota = %v, %v, want ErrNoQuota that says %q", q, err, c.want)
			}
		})
	}
	if _, err := sys.OpenProjectQuota(filepath.Join(tmpfs, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("OpenProjectQuota of no folder = %v", err)
	}
}
