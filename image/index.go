package image

import (
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/cridproject/crid/internal/errkind"
)

// index is what List and Image answer from: a snapshot that is never changed.
type index struct {
	list []Image // by ID
	byID map[ID]*Image
	// byName has all canonical names, with tag and with digest.
	byName map[string]*Image
	used   usageOfImages
}

// publish replaces the snapshot by what the maps say.
//
// Preconditions: s.mu is held, or nobody else has s yet.
func (s *Store) publish() {
	ix := &index{byID: make(map[ID]*Image), byName: make(map[string]*Image)}
	ids := slices.Sorted(maps.Keys(s.images))
	ix.list = make([]Image, 0, len(ids))
	for _, id := range ids {
		r := s.images[id]
		if r.image == nil {
			r.image = newImage(r, s.layers, s.pinned)
		}
		ix.list = append(ix.list, *r.image)
	}
	for n := range ix.list {
		i := &ix.list[n]
		ix.byID[i.ID] = i
		for _, name := range s.images[i.ID].Names {
			ix.byName[name.Ref] = i
		}
	}
	for _, l := range s.layers {
		ix.used.bytes += l.meta.Disk
		ix.used.inodes += l.meta.Inodes
	}
	s.published.Store(ix)
}

// List returns all images, by ID. It waits for nothing. The images are shared:
// callers must not change what they point to.
func (s *Store) List() []Image { return slices.Clone(s.published.Load().list) }

// Image finds an image by its ID, by a beginning of its ID that no other image
// has, or by a name with tag or digest as users write it. It waits for nothing.
// What is not there is NotFound; what cannot be a name or an ID is Invalid.
func (s *Store) Image(refOrID string) (Image, error) {
	i, err := s.published.Load().find(refOrID)
	if err != nil {
		return Image{}, err
	}
	return *i, nil
}

func (ix *index) find(s string) (*Image, error) {
	hex := strings.TrimPrefix(s, "sha256:")
	if i := ix.byID[ID("sha256:"+hex)]; i != nil {
		return i, nil
	}
	ref, err := ParseReference(s)
	if err == nil {
		if i := ix.byName[ref.String()]; i != nil {
			return i, nil
		}
	}
	if isHex(hex) {
		return ix.findPrefix(hex)
	}
	if err != nil {
		return nil, err
	}
	return nil, errkind.Errorf(errkind.NotFound, "no image %s", ref)
}

// findPrefix finds the one image whose ID begins with hex.
func (ix *index) findPrefix(hex string) (*Image, error) {
	at, _ := slices.BinarySearchFunc(ix.list, hex, func(i Image, hex string) int {
		return strings.Compare(i.ID.hex(), hex)
	})
	begins := func(n int) bool { return n < len(ix.list) && strings.HasPrefix(ix.list[n].ID.hex(), hex) }
	if !begins(at) {
		return nil, errkind.Errorf(errkind.NotFound, "no image %s", hex)
	}
	if begins(at + 1) {
		return nil, errkind.Errorf(errkind.Invalid, "more than one image has an ID that begins with %s", hex)
	}
	return &ix.list[at], nil
}

func isHex(s string) bool {
	for _, c := range []byte(s) {
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f') {
			return false
		}
	}
	return s != "" && len(s) <= digest.SHA256.Size()*2
}
