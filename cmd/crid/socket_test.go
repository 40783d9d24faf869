package main

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"k8s.io/klog/v2"

	"github.com/cridproject/crid/image"
	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/internal/testutil"
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
	first.(*net.UnixListener).SetUnlinkOnClose(false)
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

// archives is an importer that takes everything but what begins with "bad".
type archives struct{ name, content string }

func (a *archives) Import(_ context.Context, r io.Reader, o image.ImportOptions) ([]image.Image, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(string(data), "bad") {
		return nil, errkind.Errorf(errkind.Invalid, "no archive")
	}
	a.name, a.content = o.Name, string(data)
	return []image.Image{{ID: "sha256:1", RepoTags: []string{"a:1"}, Size: 3}}, nil
}

func (a *archives) List() []image.Image {
	return []image.Image{{ID: "sha256:2", RepoDigests: []string{"a@sha256:3"}, Size: 4, Pinned: true, Pulled: time.Unix(7, 0).UTC()}}
}

func (a *archives) Check(context.Context) []error { return []error{errors.New("a layer is lost")} }

func TestAdminImport(t *testing.T) {
	testutil.LeakCheck(t)
	path := filepath.Join(socketDir(t), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	store := &archives{}
	server := newAdminServer(klog.NewContext(t.Context(), klog.Background()), store)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	client := newAdminClient(path)

	content := strings.Repeat("x", 1<<20)
	rows, err := client.importImages(t.Context(), "n&m", strings.NewReader(content))
	if err != nil || len(rows) != 1 || rows[0].ID != "sha256:1" || rows[0].Tags[0] != "a:1" {
		t.Errorf("import = %v, %v", rows, err)
	}
	if store.name != "n&m" || store.content != content {
		t.Errorf("the store got name %q and %d bytes", store.name, len(store.content))
	}
	_, err = client.importImages(t.Context(), "", strings.NewReader("bad"))
	if !errkind.Is(err, errkind.Invalid) || err.Error() != "no archive" {
		t.Errorf("import of a bad archive = %v (%v), want the store's error", err, errkind.Of(err))
	}

	rows, err = client.listImages(t.Context())
	if err != nil || len(rows) != 1 || rows[0].ID != "sha256:2" || rows[0].Tags == nil || rows[0].Digests[0] != "a@sha256:3" || rows[0].Size != 4 ||
		!rows[0].Pinned || rows[0].Pulled.Unix() != 7 {
		t.Errorf("list = %+v, %v", rows, err)
	}
	problems, err := client.checkImages(t.Context())
	if err != nil || len(problems) != 1 || problems[0] != "a layer is lost" {
		t.Errorf("check = %q, %v", problems, err)
	}

	client.http.CloseIdleConnections()
	_ = server.Close()
	<-done
	if _, err := client.importImages(t.Context(), "", strings.NewReader("")); err == nil || !strings.Contains(err.Error(), "send archive to crid") {
		t.Errorf("import without a server = %v", err)
	}
}

func TestNotify(t *testing.T) {
	path := filepath.Join(socketDir(t), "n")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	if err := notify("READY=1"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, err := conn.Read(buf)
	if err != nil || string(buf[:n]) != "READY=1" {
		t.Errorf("systemd got %q, %v", buf[:n], err)
	}
	t.Setenv("NOTIFY_SOCKET", "")
	if err := notify("READY=1"); err != nil {
		t.Errorf("notify without systemd = %v", err)
	}
}
