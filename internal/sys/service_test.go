package sys_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/internal/testutil"
)

// keep has the service manager keep the files at paths, each under its base's name.
func keep(paths ...string) error {
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := sys.NotifyService(os.Getenv("NOTIFY_SOCKET"), "FDSTORE=1\nFDNAME="+filepath.Base(path), f); err != nil {
			return err
		}
	}
	return nil
}

// passed is what PassedFiles finds and, after a colon, what it leaves to children.
func passed(most int) string {
	count := sys.PassedCount(most)
	var found []string
	for name, f := range sys.PassedFiles(most) {
		text, _ := io.ReadAll(f)
		var flags int
		raw, _ := f.SyscallConn()
		_ = raw.Control(func(fd uintptr) { flags, _ = unix.FcntlInt(fd, unix.F_GETFD, 0) })
		found = append(found, fmt.Sprintf("%s=%s, flags %d", name, text, flags))
	}
	left := os.Getenv("LISTEN_FDS") + os.Getenv("LISTEN_PID") + os.Getenv("LISTEN_FDNAMES")
	return fmt.Sprintf("%d %q: %q, %d", count, found, left, sys.PassedCount(most))
}

// A descriptor that a service has given to its manager comes to the service's next
// process under its name, closed on exec, and once.
func TestService(t *testing.T) {
	dir := t.TempDir()
	k := testutil.NewKeeper(t, dir)
	file := filepath.Join(dir, "a")
	if err := os.WriteFile(file, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	run := func(job string) string {
		t.Helper()
		out, err := k.Command([]string{envChild + "=" + job, "GORACE=atexit_sleep_ms=0"}, exe).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", job, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	if got, want := run("passed 9"), `0 []: "", 0`; got != want {
		t.Errorf("with nothing kept: %q, want %q", got, want)
	}
	run("keep " + file)
	testutil.WaitFor(t, "the file to be kept", func() bool { return len(k.Names()) == 1 })
	if got, want := run("passed 9"), `1 ["a=text, flags 1"]: "", 0`; got != want {
		t.Errorf("of one that is kept: %q, want %q", got, want)
	}
	if got, want := run("passed 0"), `0 []: "", 0`; got != want {
		t.Errorf("when more are passed than may be: %q, want %q", got, want)
	}
	if err := sys.NotifyService(filepath.Join(dir, "none"), "READY=1", nil); err == nil || !strings.HasPrefix(err.Error(), "notify systemd: ") {
		t.Errorf("without a manager: %v", err)
	}
}

func TestDup(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	own, err := sys.Dup(w)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	_ = w.Close()
	if _, err := own.WriteString("x"); err != nil || own.Name() != w.Name() {
		t.Errorf("the copy %s of %s: %v", own.Name(), w.Name(), err)
	}
	if _, err := sys.Dup(w); err == nil || !strings.Contains(err.Error(), w.Name()) {
		t.Errorf("copy of a closed file: %v", err)
	}
}
