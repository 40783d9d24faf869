package image

import (
	"context"
	"strconv"
	"strings"

	"github.com/cridproject/crid/internal/failpoint"
)

// VolumeKey is the key of the n-th volume of whoever has the key owner. No other
// key holds its separator.
func VolumeKey(owner string, n int) string { return owner + volumeSign + strconv.Itoa(n) }

// VolumeOwner is the owner of a key, which for a volume is a part of it.
func VolumeOwner(key string) string {
	owner, _, _ := strings.Cut(key, volumeSign)
	return owner
}

const volumeSign = "@"

// PrepareVolume is Prepare for an image that is to be mounted read-only, under a
// VolumeKey. The layers, uppermost first, are enough for overlayfs on their own.
// Until Release the image cannot be removed: unlike the image that a container
// runs, one that holds data for it may be wanted by its next incarnation, which
// does not pull it again.
func (s *Store) PrepareVolume(ctx context.Context, id ID, key string) (lower []string, err error) {
	r, err := s.prepare(ctx, id, key, true)
	return r.Lower, err
}

func (s *Store) makeVolume(dir string, r *rootfsRecord) error {
	if err := s.makeFolder(dir, r); err != nil {
		return err
	}
	return failpoint.Hit("image.volume.prepare")
}
