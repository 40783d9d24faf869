package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cridproject/crid/internal/atomicfile"
)

// record is what images/<hex of the ID>.json holds: an image that is there in
// full. It is written after everything it speaks of is on disk, and removed
// before anything of that is.
type record struct {
	Version int
	ID      ID
	Names   []name // tags and digests, in no order
	// Dirs is the folder of layers/ that lies over the image's layers to give
	// folders their attributes back; "" when none is needed. See dirs.go.
	Dirs   digest.Digest
	Config []byte // exactly as it came: its digest is the ID
	Pulled time.Time
	Epoch  uint64 // when its layers came, see mark

	layers []digest.Digest // of Config, lowest first
	image  *Image          // made when first published; +checklocks:Store.mu
}

// name is a reference to an image.
type name struct {
	Ref string // canonical, with a tag or a digest
	// Seq grows with each name given in the store. A tag belongs to one image: after
	// a crash between two records, the higher number has it.
	Seq uint64
}

const recordVersion = 1

func (s *Store) recordPath(id ID) string { return filepath.Join(s.root, "images", id.hex()+".json") }

// writeRecord makes r survive a power cut.
func (s *Store) writeRecord(r *record) error {
	return writeJSON(s.recordPath(r.ID), r, atomicfile.SyncFile)
}

// removeRecord removes the record and makes that survive a power cut, so that
// the layers can go.
func (s *Store) removeRecord(id ID) error {
	if err := atomicfile.Remove(s.recordPath(id)); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Join(s.root, "images"))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// readRecord reads and checks the record in the file at path.
func readRecord(path string) (*record, error) {
	var r record
	if err := readJSON(path, &r); err != nil {
		return nil, err
	}
	if r.Version != recordVersion {
		return nil, fmt.Errorf("%s: version %d of the record is not known to this crid", path, r.Version)
	}
	if want := r.ID.hex() + ".json"; filepath.Base(path) != want {
		return nil, fmt.Errorf("%s: the record is of image %s", path, r.ID)
	}
	if ID(digest.FromBytes(r.Config)) != r.ID {
		return nil, fmt.Errorf("%s: the configuration in it is not that of image %s", path, r.ID)
	}
	c, err := parseConfig(r.Config)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	r.layers = c.RootFS.DiffIDs
	return &r, nil
}

// readRecords reads all records below root. bad are the files that are none.
func readRecords(root string) (records []*record, bad map[string]error, err error) {
	dir := filepath.Join(root, "images")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, err
	}
	bad = make(map[string]error)
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if atomicfile.IsTemp(e.Name()) {
			continue
		}
		r, err := readRecord(path)
		if err != nil {
			bad[path] = err
			continue
		}
		records = append(records, r)
	}
	return records, bad, nil
}

// stack is the image's folders of layers/, lowest first.
func (r *record) stack() []digest.Digest {
	if r.Dirs == "" {
		return r.layers
	}
	return append(slices.Clone(r.layers), r.Dirs)
}

// uses is stack without repetitions: what holds the layers in the store.
func (r *record) uses() []digest.Digest { return unique(r.stack()) }

func unique(ds []digest.Digest) []digest.Digest {
	ds = slices.Clone(ds)
	slices.Sort(ds)
	return slices.Compact(ds)
}

// resolveNames gives each name to the record that got it last and returns the
// records that have lost one.
func resolveNames(records []*record) (changed []*record) {
	owner := make(map[string]name)
	for _, r := range records {
		for _, n := range r.Names {
			if n.Seq > owner[n.Ref].Seq || owner[n.Ref].Ref == "" {
				owner[n.Ref] = n
			}
		}
	}
	for _, r := range records {
		before := len(r.Names)
		r.Names = slices.DeleteFunc(r.Names, func(n name) bool { return owner[n.Ref] != n })
		if len(r.Names) != before {
			changed = append(changed, r)
		}
	}
	return changed
}

// readLayer reads what is known of the stored layer d, and checks that its
// folder is there.
func readLayer(root string, d digest.Digest) (layerMeta, error) {
	var m layerMeta
	if err := validDigest(d); err != nil {
		return m, err
	}
	dir := filepath.Join(root, "layers", d.Encoded())
	if err := readJSON(filepath.Join(dir, layerFile), &m); err != nil {
		return m, err
	}
	if m.Version != layerVersion || m.DiffID != d {
		return m, fmt.Errorf("%s: version %d, layer %s: not what its folder's name says", dir, m.Version, m.DiffID)
	}
	if fi, err := os.Lstat(filepath.Join(dir, layerFS)); err != nil {
		return m, err
	} else if !fi.IsDir() {
		return m, fmt.Errorf("%s is not a folder", filepath.Join(dir, layerFS))
	}
	return m, nil
}

// isGone reports whether err only says that a file is not there.
func isGone(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// validDigest checks a digest that comes from outside.
func validDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", strings.ToValidUTF8(string(d), "?"), err)
	}
	return nil
}
