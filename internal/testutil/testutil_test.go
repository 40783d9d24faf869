package testutil

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cridproject/crid/internal/sys"
)

// recorder is a test that only notes what happens to it.
type recorder struct {
	testing.TB
	said     []string
	failed   bool
	cleanups []func()
}

func (r *recorder) Helper()          {}
func (r *recorder) Failed() bool     { return r.failed }
func (r *recorder) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Fatal(a ...any)   { r.Errorf("%s", fmt.Sprint(a...)); panic(r) }
func (r *recorder) Skip(a ...any)    { r.said = append(r.said, "skip: "+fmt.Sprint(a...)); panic(r) }

func (r *recorder) Errorf(f string, a ...any) {
	r.failed = true
	r.said = append(r.said, fmt.Sprintf(f, a...))
}
func (r *recorder) Fatalf(f string, a ...any) { r.Errorf(f, a...); panic(r) }

// run runs f as the test r, with its cleanups, and returns what was said.
func (r *recorder) run(f func()) string {
	func() {
		defer func() {
			if p := recover(); p != nil && p != any(r) {
				panic(p)
			}
		}()
		f()
	}()
	for _, c := range slices.Backward(r.cleanups) {
		c()
	}
	return strings.Join(r.said, "\n")
}

func TestRequireRoot(t *testing.T) {
	if os.Geteuid() == 0 {
		r := &recorder{TB: t}
		if said := r.run(func() { RequireRoot(r) }); strings.HasPrefix(said, "skip: ") != testing.Short() || r.failed {
			t.Errorf("RequireRoot as root: %q, want a skip with -short and nothing else", said)
		}
		return
	}
	t.Setenv("CRID_REQUIRE_ROOT", "")
	r := &recorder{TB: t}
	if said := r.run(func() { RequireRoot(r) }); !strings.HasPrefix(said, "skip: ") {
		t.Errorf("RequireRoot without root: %q, want a skip", said)
	}
	t.Setenv("CRID_REQUIRE_ROOT", "1")
	r = &recorder{TB: t}
	if r.run(func() { RequireRoot(r) }); !r.failed {
		t.Error("RequireRoot without root and with CRID_REQUIRE_ROOT set does not fail the test")
	}
}

func TestGolden(t *testing.T) {
	path := filepath.Join(t.TempDir(), "testdata", "x.golden")
	golden := func(got string) string {
		r := &recorder{TB: t}
		return r.run(func() { Golden(r, path, []byte(got)) })
	}
	if said := golden("a\nb\n"); !strings.Contains(said, "-update") {
		t.Errorf("Golden without a file: %q, want advice to run with -update", said)
	}
	*update = true
	said := golden("a\nb\n")
	*update = false
	if said != "" {
		t.Errorf("Golden with -update: %q", said)
	}
	if said := golden("a\nb\n"); said != "" {
		t.Errorf("Golden with what was written: %q", said)
	}
	if said := golden("a\nc\n"); !strings.Contains(said, "  a\n- b\n") || !strings.Contains(said, "+ c\n") {
		t.Errorf("Golden with another text says %q, want the lines that differ", said)
	}
}

func TestLeakCheck(t *testing.T) {
	r := &recorder{TB: t}
	said := r.run(func() {
		LeakCheck(r)
		f, err := os.Open("/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		done := make(chan struct{})
		go close(done)
		<-done
	})
	if said != "" {
		t.Errorf("LeakCheck of a test that leaves nothing: %s", said)
	}
}

func TestLeakCheckFinds(t *testing.T) {
	before, filesBefore := goroutines(), openFiles()
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	stop := make(chan struct{})
	defer close(stop)
	started := make(chan struct{})
	go func() { close(started); <-stop }()
	<-started
	if got := added(before, goroutines()); len(got) != 1 || !strings.Contains(got[0], "TestLeakCheckFinds") {
		t.Errorf("goroutines left = %q, want the one of this test", got)
	}
	if got := added(filesBefore, openFiles()); len(got) != 1 || !strings.HasSuffix(got[0], "/dev/null") {
		t.Errorf("files left = %q, want /dev/null", got)
	}
}

func TestFreePort(t *testing.T) {
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", FreePort(t)))
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

func TestSnapshot(t *testing.T) {
	RequireRoot(t)
	dir := t.TempDir()
	netns, files := filepath.Join(dir, "netns"), filepath.Join(dir, "files")
	for _, d := range []string{netns, files} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	old := filepath.Join(files, "old")
	if err := os.WriteFile(old, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	parent, marker := TempCgroupParent(t), "marker-"+filepath.Base(dir)
	diff := Snapshot(t, Scope{
		MountsBelow: []string{dir}, NetNSDirs: []string{netns}, CgroupParents: []string{parent},
		LinkPrefixes: []string{"crid-none"}, Marker: marker, Dirs: []string{files},
	})
	if lines := diff(); len(lines) > 0 {
		t.Errorf("difference at once = %q, want none", lines)
	}

	child := exec.Command("sleep", "1000")
	grandchild := exec.Command("setsid", "--fork", "sh", "-c", "read line; : "+marker)
	in, err := grandchild.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	cgroups, err := sys.CgroupDirs(parent)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(netns, "crid-1")
	for _, err := range []error{
		sys.NewNetNS(path, nil), os.Remove(old), os.Mkdir(cgroups[0], 0o755), child.Start(), grandchild.Start(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	wants := []string{
		"left behind: mount " + netns + " (", "left behind: mount " + path + " (nsfs net:", "left behind: file " + path,
		"gone: file " + old, "left behind: cgroup " + cgroups[0], fmt.Sprintf("left behind: process %d ", child.Process.Pid), marker,
	}
	for _, want := range wants {
		WaitFor(t, "a difference with "+want, func() bool {
			return slices.ContainsFunc(diff(), func(line string) bool { return strings.Contains(line, want) })
		})
	}

	in.Close()
	_ = child.Process.Kill()
	_ = child.Wait()
	for _, err := range []error{
		grandchild.Wait(), sys.Unpin(path), sys.Unmount(netns, 0), os.WriteFile(old, nil, 0o600), sys.RemoveCgroup(parent),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	WaitFor(t, "no difference", func() bool { return len(diff()) == 0 })
}

func TestParseStat(t *testing.T) {
	got, ok := parseStat("42 (a) (b) c) S 7 42 42 0 -1")
	if want := (process{parent: 7, name: "a) (b) c", state: "S"}); !ok || got != want {
		t.Errorf("parseStat = %+v, %v, want %+v", got, ok, want)
	}
	for _, bad := range []string{"", "42", "42 (a)", "42 (a) S", "42 (a) S x"} {
		if _, ok := parseStat(bad); ok {
			t.Errorf("parseStat(%q) is understood", bad)
		}
	}
}
