package image

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cridproject/crid/image/dirfd"
	"github.com/cridproject/crid/internal/atomicfile"
)

// A layer archive may hold tmp/x without an entry for tmp. Unpacked on top of
// the layers below, tmp would keep its mode 1777; unpacked on its own, as here,
// it gets a new folder, and overlayfs shows the attributes of the uppermost. So
// an image that has such folders gets one more layer on top, with nothing but
// these folders as they should look. It is a layer like the others: named by a
// digest of what is in it, shared, counted. Most images need none.

// dirEntry is a folder of that layer. The list of them is hashed: field names
// and order are part of the format.
type dirEntry struct {
	Path   string
	Mode   uint32
	UID    uint32
	GID    uint32
	MTime  time.Time
	Xattrs map[string][]byte
}

// plain is how a folder without an entry looks when nothing below has it.
func (e *dirEntry) plain() bool {
	return e.Mode == 0o755 && e.UID == 0 && e.GID == 0 && len(e.Xattrs) == 0
}

// dirEntries works out the folders of the extra layer for a stack of layers,
// lowest first; none means that it is not needed. lower are their folders,
// uppermost first.
func dirEntries(layers []layerMeta, lower []string) ([]dirEntry, error) {
	implied := make([]map[string]bool, len(layers)) // uppermost first, like lower
	paths := make(map[string]bool)
	for i, l := range slices.Backward(layers) {
		set := make(map[string]bool, len(l.Implied))
		for _, p := range l.Implied {
			set[p], paths[p] = true, true
		}
		implied[len(layers)-1-i] = set
	}
	m, err := openMerged(lower)
	if err != nil {
		return nil, err
	}
	defer m.close()
	wanted := make(map[string]dirEntry)
	for p := range paths {
		e, fix, err := m.rightful(p, implied)
		if err != nil {
			return nil, err
		}
		if !fix {
			continue
		}
		wanted[p] = e
		for p != "" {
			// A folder cannot be in the layer without the folders it is in.
			p = parentOf(p)
			if wanted[p], _, err = m.rightful(p, implied); err != nil {
				return nil, err
			}
		}
	}
	if len(lower) == 0 { // overlayfs wants one layer at least
		wanted[""] = dirEntry{Mode: 0o755}
	}
	entries := make([]dirEntry, 0, len(wanted))
	for _, p := range slices.Sorted(maps.Keys(wanted)) {
		entries = append(entries, wanted[p])
	}
	return entries, nil
}

// rightful is how the folder p should look: as in the uppermost layer that has an
// entry for it. fix says that the stack would show it otherwise.
func (m *merged) rightful(p string, implied []map[string]bool) (e dirEntry, fix bool, err error) {
	at, err := m.walk(p)
	if errors.Is(err, dirfd.ErrNotExist) || errors.Is(err, dirfd.ErrNotDir) {
		return dirEntry{}, false, nil // removed, or replaced, further up
	}
	if err != nil {
		return dirEntry{}, false, err
	}
	if p != "" {
		defer at.close()
	}
	source, explicit := at[0], false
	for _, l := range at {
		if !implied[l.layer][p] {
			source, fix, explicit = l, l != at[0], true
			break
		}
	}
	st, err := source.Self().Stat()
	if err != nil {
		return dirEntry{}, false, err
	}
	xattrs, err := source.Self().Xattrs()
	if err != nil {
		return dirEntry{}, false, err
	}
	mtime := st.MTime
	if !explicit {
		mtime = time.Unix(0, 0) // the time of unpacking would make each list another
	}
	maps.DeleteFunc(xattrs, func(name string, _ []byte) bool { return strings.HasPrefix(name, trustedXattrs) })
	e = dirEntry{Path: p, Mode: st.Mode & 0o7777, UID: st.UID, GID: st.GID, MTime: mtime.UTC(), Xattrs: xattrs}
	return e, fix && !e.plain(), nil
}

func (e *dirEntry) attributes() attributes {
	a := attributes{uid: e.UID, gid: e.GID, mode: e.Mode, atime: e.MTime, mtime: e.MTime, xattrs: make(map[string]string)}
	for name, value := range e.Xattrs {
		a.xattrs[name] = string(value)
	}
	return a
}

// dirsDigest names the layer.
func dirsDigest(entries []dirEntry) (digest.Digest, error) {
	data, err := json.Marshal(entries)
	if err != nil {
		return "", err
	}
	return digest.FromString("crid folders 1\n" + string(data)), nil
}

// makeDirs makes the layer in the new folder dir.
func makeDirs(entries []dirEntry, id digest.Digest, dir string) (layerMeta, error) {
	fs := filepath.Join(dir, layerFS)
	for _, e := range entries { // sorted: a folder comes before what is in it
		if err := os.Mkdir(filepath.Join(fs, e.Path), 0o700); err != nil {
			return layerMeta{}, err
		}
	}
	for _, e := range slices.Backward(entries) {
		d, err := dirfd.Open(filepath.Join(fs, e.Path))
		if err != nil {
			return layerMeta{}, err
		}
		a := e.attributes()
		if err := errors.Join(a.setOnDir(d), d.Close()); err != nil {
			return layerMeta{}, err
		}
	}
	n := uint64(len(entries))
	m := layerMeta{Version: layerVersion, DiffID: id, Disk: n * blockSize, Inodes: n}
	return m, writeJSON(filepath.Join(dir, layerFile), m, atomicfile.NoSync)
}
