package main

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/cridproject/crid/internal/sys"
)

// socketDir is short enough for a socket's path, unlike t.TempDir.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "crid-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestListen(t *testing.T) {
	path := filepath.Join(socketDir(t), "sub", "s")
	first, err := listen(t.Context(), path, 0o660)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("mode of socket = %v, %v, want 0660", st.Mode(), err)
	}
	if _, err := listen(t.Context(), path, 0o660); err == nil || !strings.Contains(err.Error(), "another process serves it") {
		t.Errorf("listen where somebody serves = %v, want an error that says so", err)
	}

	// As a killed process leaves it: the file stays, nobody listens.
	first.SetUnlinkOnClose(false)
	_ = first.Close()
	second, err := listen(t.Context(), path, 0o600)
	if err != nil {
		t.Fatalf("listen where a dead process listened: %v", err)
	}
	_ = second.Close()

	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(t.Context(), path, 0o600); err == nil || !strings.Contains(err.Error(), "something else than a socket") {
		t.Errorf("listen where a file is = %v, want an error that says so", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("listen removed a file that is no socket: %v", err)
	}
}

func TestLockFolder(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	unlock, err := lockFolder(t.Context(), "root", root)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockFolder(t.Context(), "root", root); !errors.Is(err, sys.ErrLocked) || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Errorf("second lockFolder = %v, want ErrLocked with the owner's process ID", err)
	}
	unlock()
	unlock, err = lockFolder(t.Context(), "root", root)
	if err != nil {
		t.Fatalf("lockFolder after unlock = %v", err)
	}
	unlock()
}

func TestNotify(t *testing.T) {
	path := filepath.Join(socketDir(t), "n")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	if err := notify("READY=1", nil); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, err := conn.Read(buf)
	if err != nil || string(buf[:n]) != "READY=1" {
		t.Errorf("systemd got %q, %v", buf[:n], err)
	}
	t.Setenv("NOTIFY_SOCKET", "")
	if err := notify("READY=1", nil); err != nil {
		t.Errorf("notify without systemd = %v", err)
	}
}
