package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cridproject/crid/internal/atomicfile"
)

// store is the records on disk, one JSON file each:
//
//	root/sandboxes/<id>.json
//	root/containers/<id>.json  <id>.spec            the second: specfile.go
//	root/quarantine/<sandbox|container>-<id>.json   what could not be read
//
// A file is replaced by rename. Who writes a record holds its lock, so there
// is one writer for each file.
type store struct {
	root string
	// step is called before each change, see Options.Step.
	step func(name string) error
}

const (
	sandboxKind   = "sandbox"
	containerKind = "container"
	recordPerm    = 0o600 // environments hold secrets
)

func (st *store) path(kind, id string) string {
	if kind == containerKind {
		return filepath.Join(st.root, "containers", id+".json")
	}
	return filepath.Join(st.root, "sandboxes", id+".json")
}

// open makes the folders and removes what interrupted writes have left.
func (st *store) open() error {
	for _, kind := range []string{sandboxKind, containerKind} {
		dir := filepath.Dir(st.path(kind, "x"))
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make folder of %s records: %w", kind, err)
		}
		if err := atomicfile.Clean(dir); err != nil {
			return fmt.Errorf("folder of %s records: %w", kind, err)
		}
	}
	return st.cleanSpecs()
}

// put writes a record.
func (st *store) put(kind, id string, record any, s atomicfile.Sync) error {
	if err := st.step("sandbox.store.put"); err != nil {
		return err
	}
	data, err := json.Marshal(record)
	if err != nil {
		return fmt.Errorf("encode record of %s %s: %w", kind, id, err)
	}
	if err := atomicfile.Write(st.path(kind, id), append(data, '\n'), recordPerm, s); err != nil {
		return fmt.Errorf("record of %s %s: %w", kind, id, err)
	}
	return nil
}

// delete is the last thing that happens to a record.
func (st *store) delete(kind, id string) error {
	if err := st.step("sandbox.store.delete"); err != nil {
		return err
	}
	if err := atomicfile.Remove(st.path(kind, id)); err != nil {
		return fmt.Errorf("delete record of %s %s: %w", kind, id, err)
	}
	return nil
}

// quarantine moves a record that cannot be read out of the way, for people to
// look at. It replaces delete when what the ID names has been torn down.
func (st *store) quarantine(kind, id string) error {
	if err := st.step("sandbox.store.delete"); err != nil {
		return err
	}
	dir := filepath.Join(st.root, "quarantine")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make folder of unreadable records: %w", err)
	}
	err := os.Rename(st.path(kind, id), filepath.Join(dir, kind+"-"+id+".json"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("put unreadable record of %s %s aside: %w", kind, id, err)
	}
	return nil
}

// loaded is a record as found at start.
type loaded[R any] struct {
	id     string
	record R
	err    error // why it cannot be read; record is then empty
}

// load reads all records of a kind. Only a folder that cannot be read is an error.
func load[R any, P interface {
	*R
	check(id string) error
}](st *store, kind string) ([]loaded[R], error) {
	dir := filepath.Dir(st.path(kind, "x"))
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read records of %ss: %w", kind, err)
	}
	var found []loaded[R]
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || atomicfile.IsTemp(e.Name()) {
			continue
		}
		l := loaded[R]{id: id}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err == nil {
			l.record, err = decodeRecord[R, P](data, id)
		}
		l.err = err
		found = append(found, l)
	}
	return found, nil
}
