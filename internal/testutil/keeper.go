package testutil

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/cridproject/crid/internal/sys"
)

// Keeper is what systemd is for a service with a descriptor store (sd_notify(3),
// FileDescriptorStoreMax): it keeps what the service sends, and passes it on to the
// service's next process.
type Keeper struct {
	t    testing.TB
	path string
	conn *net.UnixConn
	done chan struct{}

	mu   sync.Mutex
	kept map[string]*os.File
}

// NewKeeper listens on a socket in dir until t ends.
func NewKeeper(t testing.TB, dir string) *Keeper {
	t.Helper()
	k := &Keeper{t: t, path: filepath.Join(dir, "notify"), kept: map[string]*os.File{}, done: make(chan struct{})}
	var err error
	if k.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: k.path, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	go k.run()
	t.Cleanup(func() {
		_ = k.conn.Close()
		<-k.done
		for _, f := range k.kept {
			_ = f.Close()
		}
	})
	return k
}

func (k *Keeper) run() {
	defer close(k.done)
	r := sys.NewMsgReader(k.conn)
	defer r.Close()
	for buf := make([]byte, 4096); ; {
		n, err := r.Read(buf)
		if err != nil && !errors.Is(err, io.EOF) {
			return
		}
		files, _ := r.Take(r.Pending())
		_, name, _ := strings.Cut(string(buf[:n]), "FDNAME=")
		k.mu.Lock()
		if strings.HasPrefix(string(buf[:n]), "FDSTOREREMOVE=1\n") {
			_ = k.kept[name].Close()
			delete(k.kept, name)
		}
		for _, f := range files {
			k.kept[name] = f
		}
		k.mu.Unlock()
	}
}

// Names are those of the descriptors that are kept, in the alphabet's order.
func (k *Keeper) Names() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Sorted(maps.Keys(k.kept))
}

// Command is one that executes a program of the service as systemd does, with what
// is kept; the copies that it passes on are closed when t ends. The program has env beside
// this process's environment.
func (k *Keeper) Command(env []string, program string, args ...string) *exec.Cmd {
	k.t.Helper()
	cmd := exec.CommandContext(context.Background(), "/bin/sh", append([]string{"-c", `LISTEN_PID=$$ exec "$0" "$@"`, program}, args...)...)
	names := k.Names()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, name := range names {
		f, err := sys.Dup(k.kept[name]) // which may be removed before the program starts
		if err != nil {
			k.t.Fatal(err)
		}
		k.t.Cleanup(func() { _ = f.Close() })
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	cmd.Env = append(append(os.Environ(), env...), "NOTIFY_SOCKET="+k.path,
		"LISTEN_FDS="+strconv.Itoa(len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	return cmd
}
