package cri

import (
	"path"
	"path/filepath"
	"strings"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/sandbox/config"
)

var propagations = map[v1.MountPropagation]config.Propagation{
	v1.MountPropagation_PROPAGATION_PRIVATE:           config.PropagationPrivate,
	v1.MountPropagation_PROPAGATION_HOST_TO_CONTAINER: config.PropagationHostToContainer,
	v1.MountPropagation_PROPAGATION_BIDIRECTIONAL:     config.PropagationBidirectional,
}

func (d *decoder) mounts(in []*v1.Mount) []config.Mount {
	var out []config.Mount
	for i, m := range in {
		out = append(out, d.mount(at("config.mounts", i), m))
	}
	return out
}

// mount decodes one mount. container_path stays as it was sent, since kubelet
// looks for it by equality in the container's status.
func (d *decoder) mount(field string, m *v1.Mount) config.Mount {
	d.check(field+".container_path", badPath(m.GetContainerPath()))
	if path.Clean(m.GetContainerPath()) == "/" {
		d.reject(field+".container_path", "must not be the root of the container")
	}
	d.mountSource(field, m)
	if m.GetRecursiveReadOnly() {
		d.recursiveReadonly(field, m)
	}
	return config.Mount{
		Image:             d.imageVolume(field, m),
		ImageSubPath:      m.GetImageSubPath(),
		ContainerPath:     m.GetContainerPath(),
		HostPath:          config.HostPath(m.GetHostPath()),
		Readonly:          m.GetReadonly(),
		RecursiveReadonly: m.GetRecursiveReadOnly(),
		Propagation:       enum(d, field+".propagation", m.GetPropagation(), propagations),
		Options:           m.GetMountOptions(),
		SELinuxRelabel:    m.GetSelinuxRelabel(),
		IDMap:             d.mountIDMap(field, m),
	}
}

// mountSource checks that exactly one source is named: a path, or an image. An
// image without a name is none: clients send an empty message. The path within an
// image means nothing then: kubelet sends each mount's sub-path in it as soon as the
// container mounts any image.
func (d *decoder) mountSource(field string, m *v1.Mount) {
	if m.GetImage().GetImage() == "" {
		d.check(field+".host_path", badPath(m.GetHostPath()))
		return
	}
	if m.GetHostPath() != "" {
		d.reject(field+".host_path", "must be empty when image is set")
	}
	if !m.GetReadonly() {
		d.reject(field+".readonly", "must be true when image is set: images are mounted read-only")
	}
	if m.GetPropagation() != v1.MountPropagation_PROPAGATION_PRIVATE {
		d.reject(field+".propagation", "must be PROPAGATION_PRIVATE when image is set")
	}
	d.check(field+".image_sub_path", badSubPath(m.GetImageSubPath()))
}

// imageVolume is the image that is the source of a mount, nil when it has none.
func (d *decoder) imageVolume(field string, m *v1.Mount) *config.Image {
	if m.GetImage().GetImage() == "" {
		return nil
	}
	img := d.image(field+".image", m.GetImage())
	return &img
}

// badSubPath is for paths within an image: "" is all of it, and so is "/".
func badSubPath(s string) string {
	if rel := strings.TrimLeft(s, "/"); rel != "" && !filepath.IsLocal(rel) {
		return "must not lead out of the image"
	}
	return badArg(s)
}

func (d *decoder) recursiveReadonly(field string, m *v1.Mount) {
	field += ".recursive_read_only"
	switch {
	case !m.GetReadonly():
		d.reject(field, "needs readonly")
	case m.GetPropagation() != v1.MountPropagation_PROPAGATION_PRIVATE:
		d.reject(field, "needs propagation PROPAGATION_PRIVATE")
	case !d.node.RecursiveReadOnly:
		d.noRRO = field
	}
}
