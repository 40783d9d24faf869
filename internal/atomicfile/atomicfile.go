// Package atomicfile replaces files so that a reader, and a crash, sees the old
// contents or the new and nothing between.
//
// The new contents go to a temporary file beside the old one, which is then
// renamed. A crash can leave temporary files behind; Clean removes them.
package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Sync says what a write must survive.
type Sync int

const (
	// NoSync survives a crash of the program. After a power cut the file may be
	// the old one, the new one, or empty.
	NoSync Sync = iota
	// SyncFile survives a power cut as well: the file and its folder are synced.
	SyncFile
)

// tempPrefix begins the names of temporary files.
const tempPrefix = ".tmp-"

// Write makes path hold data with exactly the mode perm, whatever the umask.
// On error path is as it was, except when syncing the folder fails: then the
// new contents are there, but may not survive a power cut.
func Write(path string, data []byte, perm os.FileMode, s Sync) error {
	dir, base := filepath.Split(path)
	f, err := os.CreateTemp(filepath.Clean(dir), tempPrefix+base+"-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := fill(f, data, perm, s); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(f.Name()))
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(f.Name()))
	}
	if s == SyncFile {
		return syncDir(dir)
	}
	return nil
}

// fill takes ownership of f.
func fill(f *os.File, data []byte, perm os.FileMode, s Sync) error {
	_, err := f.Write(data)
	if err == nil {
		err = f.Chmod(perm)
	}
	if err == nil && s == SyncFile {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// syncDir makes a rename in dir survive a power cut.
func syncDir(dir string) error {
	d, err := os.Open(filepath.Clean(dir))
	if err != nil {
		return fmt.Errorf("sync folder: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync folder %s: %w", dir, err)
	}
	return nil
}

// Remove removes path. It is no error when it is absent.
func Remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// IsTemp reports whether name, without its folder, is that of a temporary file
// of this package. Who lists a folder of written files skips these.
func IsTemp(name string) bool { return strings.HasPrefix(name, tempPrefix) }

// Clean removes the temporary files that crashes have left in dir. It must not
// run beside a Write into dir. It is no error when dir is absent.
func Clean(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("clean: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if IsTemp(e.Name()) {
			errs = append(errs, Remove(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}
