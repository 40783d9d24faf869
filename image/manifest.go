package image

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cridproject/crid/internal/errkind"
)

// Docker's media types, which OCI's are the successors of.
const (
	dockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	dockerIndex        = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerSchema1      = "application/vnd.docker.distribution.manifest.v1+json"
	dockerSchema1Sig   = "application/vnd.docker.distribution.manifest.v1+prettyjws"
	dockerConfig       = "application/vnd.docker.container.image.v1+json"
	maxIndexDepth      = 3
	maxLayersPerImage  = 500 // what overlayfs takes at most
	emptyConfigType    = "application/vnd.oci.empty.v1+json"
	octetStream        = "application/octet-stream" // what registries say that do not know
	textPlain          = "text/plain"
	applicationJSON    = "application/json"
	unknownContentType = ""
)

// parts is all that an image is made of, with the small parts fetched and all of
// it checked.
type parts struct {
	id      ID
	digests []digest.Digest // of its manifest and of the indexes above, the outermost first
	config  []byte
	layers  []blob // lowest first
}

// manifestDoc has the fields of a manifest and of an index, so that what a
// document is can be told before believing it.
type manifestDoc struct {
	SchemaVersion int                  `json:"schemaVersion"`
	MediaType     string               `json:"mediaType"`
	ArtifactType  string               `json:"artifactType"`
	Config        *ocispec.Descriptor  `json:"config"`
	Layers        []ocispec.Descriptor `json:"layers"`
	Manifests     []ocispec.Descriptor `json:"manifests"`
	FSLayers      json.RawMessage      `json:"fsLayers"`
}

// fetchParts follows desc, through indexes, to one image for this platform.
func (s *Store) fetchParts(ctx context.Context, src source, desc ocispec.Descriptor) (*parts, error) {
	var digests []digest.Digest
	for range maxIndexDepth {
		digests = append(digests, desc.Digest)
		if err := refuseType(desc.MediaType); err != nil {
			return nil, err
		}
		data, err := s.fetchSmall(ctx, src, asManifest(desc), maxManifest)
		if err != nil {
			return nil, err
		}
		var doc manifestDoc
		if err := json.Unmarshal(data, &doc); err != nil {
			return nil, errkind.Errorf(errkind.Invalid, "manifest %s: %w", desc.Digest, err)
		}
		isIndex, err := doc.kind(desc)
		if err != nil {
			return nil, err
		}
		if !isIndex {
			p, err := s.fetchConfig(ctx, src, desc, &doc)
			if err == nil {
				p.digests = digests
			}
			return p, err
		}
		if desc, err = s.choose(desc.Digest, doc.Manifests); err != nil {
			return nil, err
		}
	}
	return nil, errkind.Errorf(errkind.Invalid, "index %s: more than %d indexes in one another", desc.Digest, maxIndexDepth)
}

// refuseType refuses what is known not to be an image.
func refuseType(mediaType string) error {
	switch mediaType {
	case dockerSchema1, dockerSchema1Sig:
		return errkind.Errorf(errkind.Invalid, "the registry has the image only as Docker schema 1, which is no longer supported: push it again with a current tool")
	case ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, dockerManifest, dockerIndex:
		return nil
	}
	if isVague(mediaType) {
		return nil
	}
	return errkind.Errorf(errkind.Invalid, "media type %q is not that of an image or an index", shorten(mediaType))
}

// isVague reports whether the type is what registries say that do not know better;
// the document itself tells.
func isVague(mediaType string) bool {
	switch mediaType {
	case octetStream, textPlain, applicationJSON, unknownContentType:
		return true
	}
	return false
}

// kind tells an index from a manifest. A document that could be read as both is
// refused: what is verified must be what is used.
func (m *manifestDoc) kind(desc ocispec.Descriptor) (isIndex bool, err error) {
	if m.SchemaVersion == 1 || m.FSLayers != nil {
		return false, refuseType(dockerSchema1)
	}
	mediaType := m.MediaType
	if mediaType == "" {
		mediaType = desc.MediaType
	}
	switch mediaType {
	case ocispec.MediaTypeImageIndex, dockerIndex:
		isIndex = true
	case ocispec.MediaTypeImageManifest, dockerManifest:
	default:
		if isIndex = m.Manifests != nil; !isIndex && m.Config == nil {
			return false, errkind.Errorf(errkind.Invalid, "%s, of media type %q, is neither an image nor an index", desc.Digest, shorten(mediaType))
		}
	}
	switch {
	case isIndex && (m.Config != nil || m.Layers != nil):
		return false, errkind.Errorf(errkind.Invalid, "index %s has layers as well", desc.Digest)
	case !isIndex && m.Manifests != nil:
		return false, errkind.Errorf(errkind.Invalid, "manifest %s lists manifests as well", desc.Digest)
	case !isIndex && m.Config == nil:
		return false, errkind.Errorf(errkind.Invalid, "manifest %s has no configuration", desc.Digest)
	}
	return isIndex, nil
}

// choose picks the best manifest of an index for the store's platform, variants
// considered. One without a platform is taken when no other fits.
func (s *Store) choose(index digest.Digest, manifests []ocispec.Descriptor) (ocispec.Descriptor, error) {
	var fitting []ocispec.Descriptor
	var unnamed *ocispec.Descriptor
	var have []string
	for _, m := range manifests {
		switch {
		case m.Platform == nil:
			if unnamed == nil {
				unnamed = &m
			}
		case s.platform.Match(*m.Platform):
			fitting = append(fitting, m)
		case m.Platform.OS != "unknown": // that is how attestations are marked
			have = append(have, platforms.Format(*m.Platform))
		}
	}
	if len(fitting) > 0 {
		best := slices.MinFunc(fitting, func(a, b ocispec.Descriptor) int {
			switch {
			case s.platform.Less(*a.Platform, *b.Platform):
				return -1
			case s.platform.Less(*b.Platform, *a.Platform):
				return 1
			}
			return 0
		})
		return best, nil
	}
	if unnamed != nil {
		return *unnamed, nil
	}
	return ocispec.Descriptor{}, errkind.Errorf(errkind.NotFound, "index %s has no image for %s, only for %v", index, s.platformName, have)
}

// fetchConfig fetches the configuration and matches it with the manifest.
func (s *Store) fetchConfig(ctx context.Context, src source, desc ocispec.Descriptor, m *manifestDoc) (*parts, error) {
	switch m.Config.MediaType {
	case ocispec.MediaTypeImageConfig, dockerConfig, octetStream, unknownContentType:
	case emptyConfigType:
		return nil, errkind.Errorf(errkind.Invalid, "manifest %s is an artifact of type %q, not an image", desc.Digest, shorten(m.ArtifactType))
	default:
		return nil, errkind.Errorf(errkind.Invalid, "manifest %s has a configuration of media type %q: it is not an image", desc.Digest, shorten(m.Config.MediaType))
	}
	for _, l := range m.Layers {
		if err := checkLayer(l); err != nil {
			return nil, fmt.Errorf("manifest %s: %w", desc.Digest, err)
		}
	}
	config, err := s.fetchSmall(ctx, src, *m.Config, maxConfig)
	if err != nil {
		return nil, err
	}
	c, err := parseConfig(config)
	if err != nil {
		return nil, err
	}
	p := &parts{id: ID(digest.FromBytes(config)), config: config}
	if len(m.Layers) > maxLayersPerImage || len(c.RootFS.DiffIDs) != len(m.Layers) {
		return nil, errkind.Errorf(errkind.Invalid, "manifest %s has %d layers and its configuration %d; at most %d are possible", desc.Digest, len(m.Layers), len(c.RootFS.DiffIDs), maxLayersPerImage)
	}
	for i, l := range m.Layers {
		p.layers = append(p.layers, blob{digest: l.Digest, size: l.Size, diffID: c.RootFS.DiffIDs[i]})
	}
	return p, nil
}

// checkLayer refuses what cannot be a layer. Which compression it has is told from
// its bytes.
func checkLayer(l ocispec.Descriptor) error {
	if err := validDigest(l.Digest); err != nil {
		return errkind.New(errkind.Invalid, err)
	}
	if l.Size < 0 {
		return errkind.Errorf(errkind.Invalid, "layer %s has a size of %d bytes", l.Digest, l.Size)
	}
	switch l.MediaType {
	case ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd,
		// Deprecated, but images have them. They are fetched from the registry only.
		"application/vnd.oci.image.layer.nondistributable.v1.tar", "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
		"application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.diff.tar.gzip",
		"application/vnd.docker.image.rootfs.diff.tar.zstd", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
		octetStream, unknownContentType:
		return nil
	}
	return errkind.Errorf(errkind.Invalid, "layer %s has the media type %q, which is not that of a layer", l.Digest, shorten(l.MediaType))
}
