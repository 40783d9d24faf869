package sandbox

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cridproject/crid/image"
	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/monitor"
	"github.com/cridproject/crid/sandbox/spec"
)

// imageVolumes are the images that a container has as volumes.
type imageVolumes struct {
	mounts []monitor.ImageMount
	ids    map[int]string // index in config.Container.Mounts → image ID
}

// prepareVolumes holds the images that are mounts of a container. They are
// released with it.
func (m *Manager) prepareVolumes(ctx context.Context, c *container) (imageVolumes, error) {
	v := imageVolumes{ids: map[int]string{}}
	for i, mount := range c.config.Mounts {
		if mount.Image == nil {
			continue
		}
		name := fmt.Sprintf("config.mounts[%d]", i)
		img, err := m.o.Images.Image(mount.Image.Ref)
		if errkind.Is(err, errkind.NotFound) {
			err = errkind.Errorf(errkind.NotFound, "image %q is not on this node, pull it first: %w", mount.Image.Ref, err)
		}
		var lower []string
		if err == nil {
			lower, err = m.o.Images.PrepareVolume(ctx, img.ID, image.VolumeKey(string(c.id), i))
		}
		if err == nil {
			err = m.step("container.create.volume")
		}
		if err != nil {
			return v, fmt.Errorf("%s: %s.image: %w", monitor.ImageVolumeFailed, name, err)
		}
		v.ids[i] = string(img.ID)
		v.mounts = append(v.mounts, monitor.ImageMount{
			Source: spec.ImageSource(i), Name: name, Lower: lower, SubPath: mount.ImageSubPath,
		})
	}
	return v, nil
}

// used is the mounts that are in the spec: of two at one place only one is.
func (v imageVolumes) used(mounts []specs.Mount) []monitor.ImageMount {
	return slices.DeleteFunc(v.mounts, func(m monitor.ImageMount) bool {
		return !slices.ContainsFunc(mounts, func(in specs.Mount) bool { return in.Source == m.Source })
	})
}

// imageKeys are the keys of all that a container may have in the image store. Of
// one whose record is lost the store is asked.
func (m *Manager) imageKeys(c *container) []string {
	keys := []string{string(c.id)}
	for i, mount := range c.config.Mounts {
		if mount.Image != nil {
			keys = append(keys, image.VolumeKey(string(c.id), i))
		}
	}
	if c.corrupt {
		for _, key := range m.o.Images.Prepared() {
			if key != string(c.id) && image.VolumeOwner(key) == string(c.id) {
				keys = append(keys, key)
			}
		}
	}
	return keys
}

// createError says which container could not be made, but behind the word by
// which kubelet knows a failure to mount an image.
func createError(c *container, err error) error {
	context := "create container " + c.id.Short()
	if text, ok := strings.CutPrefix(err.Error(), monitor.ImageVolumeFailed+": "); ok {
		return errkind.Errorf(errkind.Of(err), "%s: %s: %s", monitor.ImageVolumeFailed, context, text)
	}
	return fmt.Errorf("%s: %w", context, err)
}
