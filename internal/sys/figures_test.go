package sys_test

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cridproject/crid/internal/sys"
)

func TestNetInterfaces(t *testing.T) {
	dir := t.TempDir()
	ns, none, gone := filepath.Join(pinDir(t), "ns"), filepath.Join(dir, "file"), filepath.Join(dir, "gone")
	if err := sys.PinNamespaces(sys.NSRequest{Net: ns}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sys.Unpin(ns) })
	t.Cleanup(func() { wantOwnNamespaces(t) })
	if err := os.WriteFile(none, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	got := sys.NetInterfaces([]string{none, ns, gone, ns})
	for i, want := range []bool{false, true, false, true} {
		if (got[i] != nil) != want {
			t.Errorf("NetInterfaces[%d] = %+v, want some: %v", i, got[i], want)
		}
	}
	if len(got[1]) == 0 || got[1][0].Name != "lo" {
		t.Errorf("a new namespace has %+v, want a loopback interface first", got[1])
	}
	if len(sys.NetInterfaces(nil)) != 0 {
		t.Error("NetInterfaces of none is something")
	}
}

func TestReadSmall(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	text := strings.Repeat("0123456789", 2000)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	dir, err := sys.OpenCgroupDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for _, buf := range [][]byte{nil, make([]byte, 0, 10), make([]byte, 5, 30000)} {
		if got, err := sys.ReadSmall(path, buf); err != nil || string(got) != text {
			t.Errorf("ReadSmall with room for %d = %d bytes, %v, want %d", cap(buf), len(got), err, len(text))
		}
		if got, err := dir.Read("file", buf); err != nil || string(got) != text {
			t.Errorf("Read with room for %d = %d bytes, %v, want %d", cap(buf), len(got), err, len(text))
		}
	}
	if _, err := sys.ReadSmall(path+".gone", nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ReadSmall of what is not there = %v", err)
	}
}

func TestProcFiles(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	files, sockets, err := sys.ProcFiles(os.Getpid())
	if err != nil || sockets < 1 || files < sockets+3 {
		t.Errorf("ProcFiles = %d, %d, %v, want a socket and stdio at least", files, sockets, err)
	}
	if soft, limited, err := sys.OpenFilesLimit(os.Getpid()); err != nil || limited && soft < uint64(files) {
		t.Errorf("OpenFilesLimit = %d, %v, %v, want room for %d", soft, limited, err, files)
	}
	if _, _, err := sys.ProcFiles(1 << 30); err == nil {
		t.Error("ProcFiles of no process is no error")
	}
}

func TestFilesystemOf(t *testing.T) {
	f, err := sys.FilesystemOf(t.TempDir())
	if err != nil || f.Bytes == 0 {
		t.Errorf("FilesystemOf = %+v, %v", f, err)
	}
	if name := sys.BlockDevice(f.Major, f.Minor); name == "" {
		t.Error("a device without a name")
	}
	if got := sys.BlockDevice(4000, 1); got != "4000:1" {
		t.Errorf("BlockDevice of none = %q", got)
	}
}
