package image

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/failpoint"
)

// Remove removes an image with all its names. When it returns the image is gone
// for good, its names are free and its figures are no longer counted; its files
// are deleted in the background, or after a crash at the next start, except those
// that a root file system or another image has. An image that is not there is no
// error. One that is somebody's volume is BadState: see PrepareVolume.
func (s *Store) Remove(ctx context.Context, refOrID string) error {
	s.write.Lock()
	defer s.write.Unlock()
	i, err := s.Image(refOrID)
	if errkind.Is(err, errkind.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := failpoint.Hit("image.remove.record"); err != nil {
		return err
	}
	r, err := s.withdraw(i.ID)
	if err != nil {
		return err
	}
	if err := s.removeRecord(i.ID); err != nil {
		s.mu.Lock()
		s.images[i.ID] = r
		s.publish()
		s.mu.Unlock()
		return fmt.Errorf("remove image %s: %w", i.ID.Short(), err)
	}
	if err := failpoint.Hit("image.remove.layers"); err != nil {
		return err
	}
	s.dropLocked(ctx, r.uses()...)
	klog.FromContext(ctx).V(2).Info("Removed image", "image", i.ID)
	return nil
}

// withdraw takes the image off the list, so that nobody begins to use it, unless
// somebody has it as a volume. Its layers are still held.
func (s *Store) withdraw(id ID) (*record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var owners []string
	for _, r := range s.rootfs {
		if r.Volume && r.Image == id {
			owners = append(owners, VolumeOwner(r.Key))
		}
	}
	if len(owners) > 0 {
		slices.Sort(owners)
		return nil, errkind.Errorf(errkind.BadState, "remove image %s: it is mounted as a volume in container %s; remove that first",
			id.Short(), strings.Join(slices.Compact(owners), ", "))
	}
	r := s.images[id]
	delete(s.images, id)
	s.publish()
	return r, nil
}
