package atomicfile_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cridproject/crid/internal/atomicfile"
)

func TestWrite(t *testing.T) {
	for name, s := range map[string]atomicfile.Sync{"NoSync": atomicfile.NoSync, "SyncFile": atomicfile.SyncFile} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "record.json")
			for _, want := range []string{"first", "second and longer", ""} {
				if err := atomicfile.Write(path, []byte(want), 0o666, s); err != nil {
					t.Fatal(err)
				}
				got, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if string(got) != want {
					t.Errorf("after Write(%q) the file holds %q", want, got)
				}
			}
			fi, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if fi.Mode() != 0o666 { // a umask of 022 would make it 0644
				t.Errorf("mode = %v, want 0666", fi.Mode())
			}
			wantNames(t, filepath.Dir(path), "record.json")
		})
	}
}

func TestReaderSeesOldOrNew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	contents := [][]byte{bytes.Repeat([]byte("a"), 1<<16), bytes.Repeat([]byte("b"), 1<<15)}
	if err := atomicfile.Write(path, contents[0], 0o600, atomicfile.NoSync); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 200 {
			if err := atomicfile.Write(path, contents[i%2], 0o600, atomicfile.NoSync); err != nil {
				t.Error(err)
			}
		}
	})
	for range 200 {
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, contents[0]) && !bytes.Equal(got, contents[1]) {
			t.Fatalf("read %d bytes that are neither the old contents nor the new", len(got))
		}
	}
	wg.Wait()
}

func TestFailedWriteLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	inTheWay := filepath.Join(dir, "folder")
	if err := os.MkdirAll(filepath.Join(inTheWay, "full"), 0o755); err != nil {
		t.Fatal(err)
	}
	err := atomicfile.Write(inTheWay, []byte("x"), 0o600, atomicfile.SyncFile)
	if err == nil || !strings.Contains(err.Error(), inTheWay) {
		t.Errorf("Write over a folder: %v, want an error that names it", err)
	}
	wantNames(t, dir, "folder")
	if err := atomicfile.Write(filepath.Join(dir, "absent", "f"), nil, 0o600, atomicfile.NoSync); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Write in an absent folder: %v, want not exist", err)
	}
}

func TestRemove(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := atomicfile.Remove(path); err != nil {
			t.Errorf("Remove: %v", err)
		}
	}
	wantNames(t, filepath.Dir(path))
}

func TestClean(t *testing.T) {
	dir := t.TempDir()
	crashed, err := os.CreateTemp(dir, ".tmp-record.json-*")
	if err != nil {
		t.Fatal(err)
	}
	crashed.Close()
	if !atomicfile.IsTemp(filepath.Base(crashed.Name())) {
		t.Errorf("IsTemp(%q) = false", crashed.Name())
	}
	if err := atomicfile.Write(filepath.Join(dir, "record.json"), nil, 0o600, atomicfile.NoSync); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Clean(dir); err != nil {
		t.Fatal(err)
	}
	wantNames(t, dir, "record.json")
	if err := atomicfile.Clean(filepath.Join(dir, "absent")); err != nil {
		t.Errorf("Clean of an absent folder: %v", err)
	}
}

func wantNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("%s holds %q, want %q", dir, got, want)
	}
}
