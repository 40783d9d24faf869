package monitor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/sys"
)

const (
	defaultSpawnTimeout = 20 * time.Second
	// The socket is looked for again after pollFirst, then twice that, up to
	// pollMax: a monitor listens within milliseconds on a quiet machine.
	pollFirst = time.Millisecond
	pollMax   = 50 * time.Millisecond
)

// SpawnOptions say how to start the monitor, and how to find one that runs.
type SpawnOptions struct {
	Binary    string        // path of crid-monitor
	Socket    string        // it listens here; Socket.lock beside it is the lock file
	StateDir  string        // its folder
	LogFile   string        // its stdout and stderr, appended
	Verbosity int           // its --log-verbosity
	Timeout   time.Duration // from start until it answers; 0 means 20 s
	Client    ClientOptions
}

// Start connects to the monitor that runs, or starts one and connects to that.
// Any number of programs may call it for one socket at a time; they end up with
// the same monitor.
//
// The monitor has a session of its own and outlives the caller. While the caller
// lives, a monitor that it started is reaped when it dies.
//
// The error has kind Unavailable. If a monitor was started and did not come to
// answer, it has been killed and the error has the last lines of its log.
func Start(ctx context.Context, o SpawnOptions) (*Client, error) {
	lock, err := sys.LockFile(ctx, o.Socket+".lock")
	if err != nil {
		return nil, errkind.Errorf(errkind.Unavailable, "start crid-monitor: %w", err)
	}
	defer func() { _ = lock.Close() }()

	c, err := Connect(ctx, o.Socket, o.Client)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		// Nobody listens: the monitor that made the file is gone. With the lock
		// held no other crid is about to have one listen there.
		if err := removeSocket(o.Socket); err != nil {
			return nil, errkind.Errorf(errkind.Unavailable, "start crid-monitor: remove the socket of one that died: %w", err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return c, err
	}
	return spawn(ctx, o)
}

// removeSocket removes the socket at path, and nothing that is none.
func removeSocket(path string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is not a socket; move it away or configure another path", path)
	}
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// spawn starts a monitor and waits until it answers. The lock file is held.
func spawn(ctx context.Context, o SpawnOptions) (*Client, error) {
	if o.Timeout == 0 {
		o.Timeout = defaultSpawnTimeout
	}
	began := time.Now()
	log, err := os.OpenFile(o.LogFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return nil, errkind.Errorf(errkind.Unavailable, "start crid-monitor: its log: %w", err)
	}
	defer log.Close()
	// What it writes from here on is its own, and not its predecessor's.
	var logStart int64
	if st, err := log.Stat(); err == nil {
		logStart = st.Size()
	}

	cmd := exec.Command(o.Binary, //nolint:gosec // the operator's choice
		"--socket", o.Socket, "--state", o.StateDir, "--log-verbosity", strconv.Itoa(o.Verbosity))
	cmd.Dir = "/"
	cmd.Env = monitorEnv(os.Environ())
	cmd.Stdout, cmd.Stderr = log, log // a file, so that nothing copies and stdin is /dev/null
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, errkind.Errorf(errkind.Unavailable, "start crid-monitor: %w; is it installed where monitor_binary says?", err)
	}
	// The goroutine ends with the monitor: it is what reaps it.
	died := make(chan error, 1)
	go func() {
		died <- cmd.Wait()
		close(died)
	}()

	wait, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	c, err := awaitSocket(wait, o, died)
	if err != nil {
		_ = cmd.Process.Kill() // an error means that it is dead
		for range died {
		}
		return nil, errkind.Errorf(errkind.Unavailable, "start crid-monitor: %s: %w%s", o.Binary, err, lastLines(o.LogFile, logStart))
	}
	klog.FromContext(ctx).Info("Started crid-monitor", "pid", cmd.Process.Pid, "version", c.Peer().Version, "duration", time.Since(began))
	return c, nil
}

// awaitSocket connects as soon as the started monitor listens. died delivers the
// end of its process.
func awaitSocket(ctx context.Context, o SpawnOptions, died <-chan error) (*Client, error) {
	for pause := pollFirst; ; pause = min(2*pause, pollMax) {
		c, err := Connect(ctx, o.Socket, o.Client)
		if err == nil {
			return c, nil
		}
		if !silent(err) {
			return nil, err
		}
		select {
		case err := <-died:
			if err == nil {
				err = errors.New("exit status 0")
			}
			return nil, fmt.Errorf("it ended before it listened on %s: %w", o.Socket, err)
		case <-ctx.Done():
			return nil, fmt.Errorf("it does not listen on %s: %w", o.Socket, ctx.Err())
		case <-time.After(pause):
		}
	}
}

// silent says of an error of Connect that nobody listens: between bind and listen the
// connection is refused, and at the end of a context it is not tried.
func silent(err error) bool {
	var dial *net.OpError
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) ||
		errors.As(err, &dial) && dial.Op == "dial" && dial.Timeout()
}

// monitorEnv is crid's environment without what its service manager meant for
// crid alone.
func monitorEnv(env []string) []string {
	own := []string{"NOTIFY_SOCKET=", "LISTEN_PID=", "LISTEN_FDS=", "LISTEN_FDNAMES=", "LISTEN_PIDFDID=", "WATCHDOG_PID=", "WATCHDOG_USEC=", "INVOCATION_ID=", "JOURNAL_STREAM=", "MAINPID="}
	kept := make([]string, 0, len(env))
next:
	for _, e := range env {
		for _, prefix := range own {
			if strings.HasPrefix(e, prefix) {
				continue next
			}
		}
		kept = append(kept, e)
	}
	return kept
}

// lastLines is the end of the log since from, for an error's text.
func lastLines(path string, from int64) string {
	const most, mostLines = 2 << 10, 10
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() <= from {
		return "; its log " + path + " says nothing"
	}
	buf := make([]byte, min(st.Size()-from, most))
	n, _ := f.ReadAt(buf, st.Size()-int64(len(buf)))
	lines := strings.Split(strings.TrimSpace(string(buf[:n])), "\n")
	lines = lines[max(0, len(lines)-mostLines):]
	return "; the end of its log " + path + ":\n" + strings.Join(lines, "\n")
}
