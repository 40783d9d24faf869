package sys_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/internal/testutil"
)

func TestPidfdOfChild(t *testing.T) {
	tests := []struct {
		job  string
		want int
	}{
		{"exit 0", 0},
		{"exit 7", 7},
		{"exit 255", 255},
		{"signal 9", 137},
		{"signal 15", 143},
	}
	for _, tt := range tests {
		t.Run(tt.job, func(t *testing.T) {
			testutil.LeakCheck(t)
			cmd := childCommand(t, tt.job)
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			f := openPidfd(t, cmd.Process.Pid)
			if code, known := sys.PidfdExitInfo(f); known {
				t.Errorf("PidfdExitInfo of a running process = %d, want not known", code)
			}
			in.Close()
			if err := sys.PidfdWait(t.Context(), f); err != nil {
				t.Fatalf("PidfdWait: %v", err)
			}
			// A zombie: our child is known before it is reaped, on any kernel.
			wantExit(t, f, tt.want, true)
			_ = cmd.Wait()
			wantExit(t, f, tt.want, hasExitInfo())
			if err := sys.PidfdSignal(f, syscall.SIGKILL); !errors.Is(err, os.ErrProcessDone) {
				t.Errorf("PidfdSignal to a reaped process = %v, want os.ErrProcessDone", err)
			}
		})
	}
}

func TestPidfdOfAnothersChild(t *testing.T) {
	testutil.LeakCheck(t)
	parent := childCommand(t, "parent exit 42")
	in, err := parent.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		t.Fatal("no PID from the parent")
	}
	pid, err := strconv.Atoi(lines.Text())
	if err != nil {
		t.Fatal(err)
	}
	f := openPidfd(t, pid)

	fmt.Fprintln(in, "end")
	if err := sys.PidfdWait(t.Context(), f); err != nil {
		t.Fatalf("PidfdWait for a grandchild: %v", err)
	}
	if code, known := sys.PidfdExitInfo(f); known {
		t.Errorf("PidfdExitInfo of another's zombie = %d, want not known", code)
	}
	fmt.Fprintln(in, "reap")
	if hasExitInfo() {
		if err := sys.PidfdWaitReaped(t.Context(), f); err != nil {
			t.Fatalf("PidfdWaitReaped: %v", err)
		}
	}
	if !lines.Scan() || lines.Text() != "reaped" {
		t.Fatalf("the parent says %q, want reaped", lines.Text())
	}
	wantExit(t, f, 42, hasExitInfo())
	if _, err := sys.PidfdOpen(pid); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("PidfdOpen(%d) of a reaped process = %v, want os.ErrProcessDone", pid, err)
	}
	in.Close()
	_, _ = io.Copy(io.Discard, out)
	if err := parent.Wait(); err != nil {
		t.Error(err)
	}
}

func TestPidfdWaitEndsWithContext(t *testing.T) {
	testutil.LeakCheck(t)
	self := openPidfd(t, os.Getpid())
	blocking, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	foreign := os.NewFile(uintptr(blocking), "pidfd") // as one received over a socket may be
	defer foreign.Close()
	why := errors.New("no longer wanted")
	for name, f := range map[string]*os.File{"ours": self, "blocking": foreign} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			var wg sync.WaitGroup
			for range 4 { // on one file
				wg.Go(func() {
					if err := sys.PidfdWait(ctx, f); !errors.Is(err, why) {
						t.Errorf("PidfdWait for a process that runs on = %v, want %q", err, why)
					}
				})
			}
			other, cancelOther := context.WithCancel(t.Context())
			cancelOther()
			if err := sys.PidfdWait(other, f); !errors.Is(err, context.Canceled) {
				t.Errorf("PidfdWait with an ended context = %v, want Canceled", err)
			}
			if err := ctx.Err(); err != nil {
				t.Fatal(err)
			}
			cancel(why)
			wg.Wait()
		})
	}
}

func TestPidfdSignal(t *testing.T) {
	cmd := childCommand(t, "exit 0")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f := openPidfd(t, cmd.Process.Pid)
	if err := sys.PidfdSignal(f, 200); err == nil || errors.Is(err, os.ErrProcessDone) {
		t.Errorf("PidfdSignal(200) = %v, want an error about the signal", err)
	}
	if err := sys.PidfdSignal(f, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := sys.PidfdWait(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	wantExit(t, f, 137, true)
	_ = cmd.Wait()
}

func openPidfd(t *testing.T, pid int) *os.File {
	t.Helper()
	f, err := sys.PidfdOpen(pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func wantExit(t *testing.T, f *os.File, code int, known bool) {
	t.Helper()
	gotCode, gotKnown := sys.PidfdExitInfo(f)
	if gotKnown != known || known && gotCode != code {
		t.Errorf("PidfdExitInfo = %d, %v, want %d, %v", gotCode, gotKnown, code, known)
	}
}

// hasExitInfo reports whether the kernel is 6.15 or later, whose pidfds remember
// the exit of a reaped process.
func hasExitInfo() bool {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		panic(err)
	}
	var major, minor int
	_, _ = fmt.Sscanf(strings.TrimSpace(string(release)), "%d.%d", &major, &minor)
	return major > 6 || major == 6 && minor >= 15
}
