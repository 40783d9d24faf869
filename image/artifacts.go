package image

import (
	"context"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// fetchManifest fetches the manifest or index that a tag or a digest of the
// source's own repository leads to, with the source's credentials. What it returns
// is verified against its digest; of what type it is the caller must look. A
// blob that it names can be had by fetchSmall. NotFound: the registry has none.
func (s *Store) fetchManifest(ctx context.Context, src *remote, tagOrDigest string) (ocispec.Descriptor, []byte, error) {
	ref := Reference{Host: src.ref.Host, Repo: src.ref.Repo, Tag: tagOrDigest}
	if d, err := digest.Parse(tagOrDigest); err == nil {
		ref.Tag, ref.Digest = "", d
	}
	desc, err := src.resolve(ctx, ref)
	if err != nil {
		return desc, nil, err
	}
	data, err := s.fetchSmall(ctx, src, asManifest(desc), maxManifest)
	return desc, data, err
}

// asManifest gives desc a type that is looked for among the manifests.
func asManifest(desc ocispec.Descriptor) ocispec.Descriptor {
	if !isManifest(desc.MediaType) {
		desc.MediaType = ocispec.MediaTypeImageManifest
	}
	return desc
}
