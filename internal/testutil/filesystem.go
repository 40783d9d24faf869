package testutil

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// QuotaKinds are the file systems that QuotaFS makes.
var QuotaKinds = []string{"ext4", "xfs"}

// QuotaFS mounts a new file system of a kind, of half a GiB, that counts and limits
// by projects, until the test ends. On a kernel that has no project quota for it
// the test is skipped, after a look at whether that is so.
func QuotaFS(t testing.TB, kind string) (dir string) {
	t.Helper()
	dir, err := loopFS(t, kind, true)
	if err == nil {
		return dir
	}
	// The same but for the quota works, so that is what is missing.
	PlainFS(t, kind)
	t.Skipf("this kernel has no project quota on %s: %v", kind, err)
	return ""
}

// PlainFS is QuotaFS without quota. On xfs files have projects nevertheless: they
// are inherited, and files do not move between them.
func PlainFS(t testing.TB, kind string) (dir string) {
	t.Helper()
	dir, err := loopFS(t, kind, false)
	if err == nil {
		return dir
	}
	known, readErr := os.ReadFile("/proc/filesystems")
	if readErr != nil {
		t.Fatal(readErr)
	}
	_, loopErr := os.Stat("/dev/loop-control")
	if strings.Contains(string(known), "\t"+kind+"\n") && loopErr == nil {
		t.Fatal(err)
	}
	t.Skipf("this machine mounts no %s of a file: %v", kind, err)
	return ""
}

func loopFS(t testing.TB, kind string, quota bool) (dir string, err error) {
	t.Helper()
	RequireRoot(t)
	base := t.TempDir()
	file, dir := filepath.Join(base, kind), filepath.Join(base, "mounted")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, 512<<20), os.Mkdir(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	args, options := []string{"mkfs." + kind, "-q"}, "loop"
	if quota {
		options += ",prjquota"
		if kind == "ext4" {
			args = append(args, "-O", "quota,project", "-E", "quotatype=prjquota", "-N", "262144") // inodes
		}
	}
	// Not made anew by mkfs, so a failure of it is the test's.
	if out, err := exec.CommandContext(t.Context(), args[0], append(args[1:], file)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s (hack/deps.sh test installs it)", args, err, out)
	}
	out, err := exec.CommandContext(t.Context(), "mount", "-t", kind, "-o", options, file, dir).CombinedOutput()
	if err != nil {
		return "", errors.New("mount -o " + options + ": " + strings.TrimSpace(string(out)))
	}
	t.Cleanup(func() { // the loop device goes with its mount
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir, nil
}
