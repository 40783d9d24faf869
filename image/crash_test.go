package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/cridproject/crid/internal/testutil"
)

// childEnv makes the test program do stressChild's work.
const childEnv = "CRID_IMAGE_STRESS_CHILD"

func TestMain(m *testing.M) {
	if args := os.Getenv(childEnv); args != "" {
		os.Exit(stressChild(args))
	}
	os.Exit(m.Run())
}

// child is a process with a store.
type child struct {
	t      *testing.T
	cmd    *exec.Cmd
	steps  io.ReadCloser
	stderr bytes.Buffer
}

func (w *world) start(t *testing.T, root string, seed uint64) *child {
	t.Helper()
	o := *w
	o.Seed = seed
	args, err := json.Marshal(map[string]any{"World": o, "Root": root})
	if err != nil {
		t.Fatal(err)
	}
	c := &child{t: t, cmd: exec.Command(os.Args[0])}
	c.cmd.Env = append(os.Environ(), childEnv+"="+string(args))
	c.cmd.Stderr = &c.stderr
	if c.steps, err = c.cmd.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return c
}

// after waits for n steps.
func (c *child) after(n int) {
	c.t.Helper()
	if _, err := io.ReadFull(c.steps, make([]byte, n)); err != nil {
		_ = c.cmd.Wait()
		c.t.Fatalf("the process has ended by itself: %v\n%s", err, c.stderr.String())
	}
}

func (c *child) kill() {
	c.t.Helper()
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
	if s, ok := c.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || s.Signal() != syscall.SIGKILL {
		c.t.Errorf("the process has ended by itself: %v\n%s", c.cmd.ProcessState, c.stderr.String())
	}
}

// TestStressKilled: a process that does all that TestStress does is killed at random
// moments, also while it recovers from the last time. Whoever opens the store next
// finds it keeping its promises.
func TestStressKilled(t *testing.T) {
	w := newWorld(t, newSeed(t))
	rnd := rand.New(rand.NewPCG(w.Seed, 99))
	o := Options{Root: filepath.Join(fastDir(t), "store"), RegistryDirs: []string{}}
	for range 6 {
		c := w.start(t, o.Root, rnd.Uint64())
		c.after(1 + rnd.IntN(30))
		c.kill()
		c = w.start(t, o.Root, rnd.Uint64())
		c.after(1)
		c.kill()
		w.reopen(t, o)
		if t.Failed() {
			break
		}
	}
}

// reopen verifies the store, and that it can be emptied and pulled into.
func (w *world) reopen(t *testing.T, o Options) {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, key := range s.Prepared() {
		if err := s.Release(t.Context(), key); err != nil {
			t.Error(err)
		}
	}
	w.verify(t, s)
	if q, err := os.ReadDir(s.path("quarantine")); err == nil && len(q) > 0 {
		t.Errorf("quarantine holds %v: a crash has damaged an image", q)
	}
	pull(t, s, w.Tags[0])
	w.verify(t, s)
}

// TestPowerCut: the file system as a power cut would leave it, at random moments of
// the same work, holds a store that keeps its promises. What the kernel has not
// written to the disk is not in the copies; what it has, in any order, is: a disk
// that does as it is told.
func TestPowerCut(t *testing.T) {
	testutil.RequireRoot(t)
	if _, err := os.Stat("/dev/loop-control"); errors.Is(err, os.ErrNotExist) {
		t.Skip("this machine has no loop devices")
	}
	w := newWorld(t, newSeed(t))
	rnd := rand.New(rand.NewPCG(w.Seed, 98))
	dir := fastDir(t)
	disk, copied := filepath.Join(dir, "disk"), filepath.Join(dir, "copy")
	if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 24<<20)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", disk).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	on := mountLoop(t, disk, filepath.Join(dir, "on"))
	c := w.start(t, filepath.Join(on, "store"), rnd.Uint64())
	defer func() { c.kill() }()
	for range 6 {
		c.after(5 + rnd.IntN(15))
		c.freeze(func() { copyAtOnce(t, disk, copied) })
		after := mountLoop(t, copied, filepath.Join(dir, "after"))
		if _, err := os.Stat(filepath.Join(after, "store", "images")); err == nil {
			w.reopen(t, Options{Root: filepath.Join(after, "store"), RegistryDirs: []string{}})
		}
		unmount(t, after)
		if t.Failed() {
			break
		}
	}
}

func mountLoop(t *testing.T, disk, at string) string {
	t.Helper()
	if err := os.MkdirAll(at, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-t", "ext4", "-o", "loop", disk, at).CombinedOutput(); err != nil {
		t.Fatalf("mount -o loop: %v: %s", err, out)
	}
	t.Cleanup(func() { unmount(t, at) })
	return at
}

// unmount is harmless when it is done already.
func unmount(t *testing.T, at string) {
	t.Helper()
	if err := syscall.Unmount(at, 0); err != nil && !errors.Is(err, syscall.EINVAL) {
		t.Errorf("unmount %s: %v", at, err)
	}
}

// freeze stops the process while f runs.
func (c *child) freeze(f func()) {
	c.t.Helper()
	_ = c.cmd.Process.Signal(syscall.SIGSTOP)
	testutil.WaitFor(c.t, "all threads to stop", func() bool {
		all, _ := filepath.Glob("/proc/" + pidOf(c.cmd) + "/task/*/stat")
		for _, path := range all {
			data, err := os.ReadFile(path)
			if _, rest, ok := strings.Cut(string(data), ") "); err != nil || !ok || rest[0] != 'T' {
				return false
			}
		}
		return len(all) > 0
	})
	f()
	_ = c.cmd.Process.Signal(syscall.SIGCONT)
}

func pidOf(cmd *exec.Cmd) string { return strconv.Itoa(cmd.Process.Pid) }

// copyAtOnce copies the disk as it is at one moment: again, when the kernel has
// written to it meanwhile.
func copyAtOnce(t *testing.T, from, to string) {
	t.Helper()
	for {
		before := must(os.Stat(from))
		if out, err := exec.Command("cp", "--sparse=always", from, to).CombinedOutput(); err != nil {
			t.Fatalf("cp: %v: %s", err, out)
		}
		if must(os.Stat(from)).ModTime().Equal(before.ModTime()) {
			return
		}
	}
}
