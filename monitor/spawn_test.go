package monitor

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/internal/testutil"
)

// playMonitor is the environment variable that makes this test program play
// crid-monitor; its value says how.
const playMonitor = "CRID_TEST_PLAY_MONITOR"

func TestMain(m *testing.M) {
	if how := os.Getenv(playMonitor); how != "" {
		os.Exit(play(how))
	}
	os.Exit(m.Run())
}

// play is a monitor that knows hello and shutdown.
func play(how string) int {
	fs := flag.NewFlagSet("crid-monitor", flag.ExitOnError)
	socket := fs.String("socket", "", "")
	state := fs.String("state", "", "")
	verbosity := fs.Int("log-verbosity", -1, "")
	_ = fs.Parse(os.Args[1:])
	fmt.Println("state", *state, "verbosity", *verbosity, "dir", getwd())
	version := Version
	switch how {
	case "die":
		for i := range 30 {
			fmt.Fprintln(os.Stderr, "last words", i)
		}
		return 3
	case "silent":
		select {}
	case "newer":
		version++
	}
	l, err := net.Listen("unix", *socket)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for {
		nc, err := l.Accept()
		if err != nil {
			return 1
		}
		go func() {
			for c := NewConn(nc.(*net.UnixConn)); ; {
				f, err := c.Read()
				if err != nil {
					return
				}
				r, _ := NewFrame(f.ID, f.Op, Hello{Version: version, Build: "played", PID: os.Getpid()})
				_ = c.Write(r)
				if f.Op == OpShutdown {
					_ = l.Close()
					os.Exit(0)
				}
			}
		}()
	}
}

func getwd() string {
	d, _ := os.Getwd()
	return d
}

// spawnOptions play how in a folder of the test's own.
func spawnOptions(t *testing.T, how string) SpawnOptions {
	t.Helper()
	// Not t.TempDir, whose path may be too long for a socket.
	dir, err := os.MkdirTemp("", "crid")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(playMonitor, how)
	return SpawnOptions{
		Binary:    self,
		Socket:    filepath.Join(dir, "monitor.sock"),
		StateDir:  filepath.Join(dir, "monitor"),
		LogFile:   filepath.Join(dir, "monitor.log"),
		Verbosity: 4,
	}
}

// start starts or finds a monitor, which ends with the test.
func start(t *testing.T, o SpawnOptions) *Client {
	t.Helper()
	c, err := Start(t.Context(), o)
	if err != nil {
		t.Fatalf("Start = %v, want nil", err)
	}
	pid := c.Peer().PID
	t.Cleanup(func() {
		_ = c.Shutdown(context.Background()) // an error means that it is gone
		c.Close()
		awaitReaped(t, pid)
	})
	return c
}

func awaitReaped(t *testing.T, pid int) {
	t.Helper()
	testutil.WaitFor(t, fmt.Sprintf("monitor %d to be reaped", pid), func() bool {
		return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
	})
}

func TestStartStartsOne(t *testing.T) {
	testutil.LeakCheck(t)
	o := spawnOptions(t, "serve")
	// Many at once find the same.
	var mu sync.Mutex
	var pids []int
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			c, err := Start(t.Context(), o)
			if err != nil {
				t.Errorf("Start = %v, want nil", err)
				return
			}
			defer c.Close()
			mu.Lock()
			defer mu.Unlock()
			pids = append(pids, c.Peer().PID)
		})
	}
	wg.Wait()
	c := start(t, o)
	pid := c.Peer().PID
	if pids = slices.Compact(append(pids, pid)); len(pids) != 1 {
		t.Errorf("Start found monitors %v, want one", pids)
	}
	if pid == os.Getpid() {
		t.Errorf("the monitor is this process")
	}
	if st, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err != nil || !strings.Contains(string(st), fmt.Sprintf(" %d %d 0 ", pid, pid)) {
		t.Errorf("its stat is %.80s, %v, want process group and session %d, no terminal", st, err, pid)
	}
	log, err := os.ReadFile(o.LogFile)
	if want := fmt.Sprintf("state %s verbosity 4 dir /\n", o.StateDir); err != nil || string(log) != want {
		t.Errorf("its log is %q, %v, want %q", log, err, want)
	}
	for fd, want := range map[int]string{0: os.DevNull, 1: o.LogFile, 2: o.LogFile} {
		if got, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd)); err != nil || got != want {
			t.Errorf("its descriptor %d is %s, %v, want %s", fd, got, err, want)
		}
	}
}

func TestStartReplacesStaleSocket(t *testing.T) {
	o := spawnOptions(t, "serve")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: o.Socket})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	start(t, o)
}

func TestStartAfterDeath(t *testing.T) {
	testutil.LeakCheck(t)
	o := spawnOptions(t, "serve")
	first := start(t, o)
	pid := first.Peer().PID
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-first.Done()
	awaitReaped(t, pid)
	if second := start(t, o); second.Peer().PID == pid {
		t.Errorf("Start found the dead monitor %d", pid)
	}
}

func TestStartFails(t *testing.T) {
	newer := fmt.Sprintf("speaks version %d", Version+1)
	for _, tt := range []struct {
		name, how string
		change    func(t *testing.T, o *SpawnOptions)
		want      []string
		not       string
	}{
		{name: "dies", how: "die", want: []string{"ended before it listened", "exit status 3", "last words 20\n", "last words 29"}, not: "last words 19"},
		{name: "newer", how: "newer", want: []string{newer, "install the crid"}},
		{name: "never listens", how: "silent", change: func(_ *testing.T, o *SpawnOptions) {
			o.Timeout = 100 * time.Millisecond
		}, want: []string{"does not listen"}},
		{name: "no time", how: "silent", change: func(_ *testing.T, o *SpawnOptions) {
			o.Timeout = 1
		}, want: []string{"does not listen"}},
		{name: "no program", how: "serve", change: func(_ *testing.T, o *SpawnOptions) {
			o.Binary += ".none"
		}, want: []string{"no such file", "monitor_binary"}},
		{name: "no log folder", how: "serve", change: func(_ *testing.T, o *SpawnOptions) {
			o.LogFile += "/none/log"
		}, want: []string{"its log"}},
		{name: "no socket folder", how: "serve", change: func(_ *testing.T, o *SpawnOptions) {
			o.Socket = filepath.Dir(o.Socket) + "/none/sock"
		}, want: []string{"lock file", "no such file"}},
		{name: "not a socket", how: "serve", change: func(t *testing.T, o *SpawnOptions) {
			if err := os.WriteFile(o.Socket, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, want: []string{"is not a socket"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			testutil.LeakCheck(t) // the goroutine that reaps included: none is left running
			o := spawnOptions(t, tt.how)
			if err := os.WriteFile(o.LogFile, []byte("last words of its predecessor\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if tt.change != nil {
				tt.change(t, &o)
			}
			_, err := Start(t.Context(), o)
			if !errkind.Is(err, errkind.Unavailable) {
				t.Fatalf("Start = %v, want kind unavailable", err)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("Start = %v\nwant %q in it", err, want)
				}
			}
			if strings.Contains(err.Error(), "predecessor") || tt.not != "" && strings.Contains(err.Error(), tt.not) {
				t.Errorf("Start = %v\nwant the last lines of this monitor and no more", err)
			}
		})
	}
}

func TestStartWaitsForTheLock(t *testing.T) {
	testutil.LeakCheck(t)
	o := spawnOptions(t, "serve")
	lock, err := sys.LockFile(t.Context(), o.Socket+".lock")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Start(ctx, o); !errors.Is(err, sys.ErrLocked) {
		t.Errorf("Start while another holds the lock = %v, want ErrLocked", err)
	}
	got := make(chan error, 1)
	go func() {
		c, err := Start(t.Context(), o)
		if err == nil {
			err = c.Shutdown(t.Context())
			c.Close()
			awaitReaped(t, c.Peer().PID)
		}
		got <- err
	}()
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Errorf("Start after the unlock = %v, want nil", err)
	}
}

func TestMonitorEnv(t *testing.T) {
	in := []string{"PATH=/bin", "NOTIFY_SOCKET=/x", "LISTEN_FDS=1", "CRID_FAILPOINTS=a=kill", "INVOCATION_ID=1", "LISTEN_FDSX=1"}
	want := []string{"PATH=/bin", "CRID_FAILPOINTS=a=kill", "LISTEN_FDSX=1"}
	if got := monitorEnv(in); !slices.Equal(got, want) {
		t.Errorf("monitorEnv(%q) = %q, want %q", in, got, want)
	}
}
