package sys_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/internal/testutil"
)

func TestGoApart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	seen := make(chan []string, 1)
	for range 100 { // the scheduler works on such threads as on others
		sys.GoApart(func() {
			// Not by package os, which would tell package testing by a file.
			var open []string
			to := make([]byte, 200)
			for fd := 3; fd < 1000; fd++ {
				if n, err := syscall.Readlink("/proc/thread-self/fd/"+strconv.Itoa(fd), to); err == nil {
					open = append(open, string(to[:n]))
				}
			}
			if real, err := sys.RealPath(path); real != path {
				open = append(open, fmt.Sprint("RealPath = ", real, err))
			}
			<-time.After(time.Millisecond)
			seen <- open
		})
		for _, to := range <-seen {
			if !strings.HasPrefix(to, "anon_inode:[event") {
				t.Fatalf("the thread has %q open", to)
			}
		}
	}
	if _, err := f.WriteString("still open here"); err != nil {
		t.Error(err)
	}
}

// hangApart is a child's job: to take a lock, and to hang in the kernel.
func hangApart(lock, dead string) {
	if _, err := sys.LockFile(context.Background(), lock); err != nil {
		panic(err)
	}
	sys.GoApart(func() { _, _ = sys.RealPath(dead) })
	os.Stdout.WriteString("locked\n")
	select {}
}

// A process that was killed while one of its threads hangs for good, and cannot
// be killed, gives its locks back all the same.
func TestGoApartHoldsNoLock(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	lock, dead := filepath.Join(dir, "lock"), filepath.Join(dir, "dead")
	if err := os.Mkdir(dead, 0o755); err != nil {
		t.Fatal(err)
	}
	fuse := testutil.MountFUSE(t, dead)
	swallowed := fuse.Swallow()
	cmd := childCommand(t, "hang "+lock+" "+dead)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "locked\n" {
		t.Fatalf("the child says %q, %v", line, err)
	}
	<-swallowed // its request
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	f, err := sys.LockFile(t.Context(), lock)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	// It is still there: its first thread waits for the one that hangs.
	if _, err := os.Stat("/proc/" + strconv.Itoa(cmd.Process.Pid)); err != nil {
		t.Errorf("the child has ended: nothing hung")
	}
	fuse.End()
	_ = cmd.Wait()
}
