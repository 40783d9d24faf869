package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cridproject/crid/internal/errkind"
)

// ExportFormat is a form of image archives.
type ExportFormat string

// The forms that Export writes.
const (
	FormatOCI    ExportFormat = "oci"    // an OCI image layout: index.json and blobs
	FormatDocker ExportFormat = "docker" // what docker load takes: manifest.json and blobs
)

// ExportOptions say what Export writes.
type ExportOptions struct {
	// Images are names or IDs, at least one. A name with a tag is exported alone,
	// with an ID go all tags that the image has.
	Images   []string
	Format   ExportFormat // "" means FormatOCI
	Progress *Progress    // is told of the layers; nil means nobody wants to know
}

// Export writes images as one tar archive; what they share is in it once. Layers
// are not compressed, so that they have the digests that the images' configurations
// name, and the images keep their IDs wherever they are imported. On error what
// has been written is of no use.
//
// NotFound: there is no such image. BadState: an older crid has unpacked a layer
// and kept no skeleton, or a layer is damaged.
func (s *Store) Export(ctx context.Context, w io.Writer, o ExportOptions) error {
	if o.Format != "" && o.Format != FormatOCI && o.Format != FormatDocker {
		return errkind.Errorf(errkind.Invalid, "export: unknown format %q; there are %s and %s", o.Format, FormatOCI, FormatDocker)
	}
	if len(o.Images) == 0 {
		return errkind.Errorf(errkind.Invalid, "export: no image is named")
	}
	e := &exporter{store: s, w: tar.NewWriter(w), written: make(map[digest.Digest]bool), steps: make(map[digest.Digest]*step)}
	for _, ref := range o.Images {
		release, err := e.take(ctx, ref, o.Progress)
		if err != nil {
			return fmt.Errorf("export %s: %w", ref, err)
		}
		defer release()
	}
	for _, x := range e.images {
		if err := e.image(ctx, x, o.Format); err != nil {
			return fmt.Errorf("export image %s: %w", x.record.ID.Short(), err)
		}
	}
	var err error
	if o.Format == FormatDocker {
		err = e.dockerManifest()
	} else {
		err = errors.Join(e.json(ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}), e.index())
	}
	return errors.Join(err, e.w.Close())
}

// exporter writes one archive.
type exporter struct {
	store   *Store
	w       *tar.Writer
	images  []*exported
	written map[digest.Digest]bool
	steps   map[digest.Digest]*step
}

// exported is an image of the archive.
type exported struct {
	record *record
	metas  []layerMeta
	tags   []string
	desc   ocispec.Descriptor // of its manifest, once that is written
}

// take holds an image until release. One that is named twice is taken once.
func (e *exporter) take(ctx context.Context, ref string, p *Progress) (release func(), err error) {
	i, err := e.store.Image(ref)
	if err != nil {
		return nil, err
	}
	r, metas, release, err := e.store.holdImage(ctx, i.ID)
	if err != nil {
		return nil, err
	}
	for _, m := range metas {
		if m.Archive == 0 {
			release()
			return nil, errkind.Errorf(errkind.BadState, "an older crid has pulled it, which kept too little to make its archives again; pull it again: `crid image remove`, then `crid image pull`")
		}
	}
	n := slices.IndexFunc(e.images, func(x *exported) bool { return x.record.ID == i.ID })
	if n < 0 {
		n = len(e.images)
		e.images = append(e.images, &exported{record: r, metas: metas})
		for _, m := range metas {
			if e.steps[m.DiffID] == nil {
				e.steps[m.DiffID] = p.add(m.DiffID, m.Archive)
			}
		}
	}
	tags := i.RepoTags
	if named, err := ParseReference(ref); err == nil && slices.Contains(tags, named.String()) {
		tags = []string{named.String()}
	}
	for _, tag := range tags {
		if !slices.Contains(e.images[n].tags, tag) {
			e.images[n].tags = append(e.images[n].tags, tag)
		}
	}
	return release, nil
}

// image writes the blobs of one image.
func (e *exporter) image(ctx context.Context, x *exported, format ExportFormat) error {
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.Digest(x.record.ID), Size: int64(len(x.record.Config))},
		Layers:    []ocispec.Descriptor{},
	}
	for _, l := range x.metas {
		if err := e.layer(ctx, l); err != nil {
			return err
		}
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: l.DiffID, Size: l.Archive})
	}
	if err := e.blob(digest.Digest(x.record.ID), x.record.Config); err != nil || format == FormatDocker {
		return err
	}
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	x.desc = ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	return e.blob(x.desc.Digest, data)
}

func blobName(d digest.Digest) string {
	return path.Join(ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// layer writes the archive of a layer and checks that it is the one.
func (e *exporter) layer(ctx context.Context, m layerMeta) error {
	if e.written[m.DiffID] {
		return nil
	}
	e.written[m.DiffID] = true
	l, err := openLayer(e.store.layerPath(m.DiffID))
	if err != nil {
		return damaged(m.DiffID, err)
	}
	defer l.close()
	if err := e.header(blobName(m.DiffID), m.Archive); err != nil {
		return err
	}
	meter := e.steps[m.DiffID].begin()
	hashed := newHashReader(meter.reader(&contextReader{ctx, l}), digest.SHA256)
	source := &sourceError{r: hashed}
	n, err := io.CopyBuffer(e.w, source, make([]byte, 256<<10))
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case source.err != nil:
		return damaged(m.DiffID, source.err)
	case err != nil && !errors.Is(err, tar.ErrWriteTooLong):
		return err
	}
	if got := hashed.digest(digest.SHA256); err != nil || n != m.Archive || got != m.DiffID {
		return damaged(m.DiffID, fmt.Errorf("its archive now has %d bytes and the digest %s", n, got))
	}
	meter.end(StepDone)
	return nil
}

func damaged(d digest.Digest, err error) error {
	return errkind.Errorf(errkind.BadState, "layer %s is damaged: %w; `crid image verify` tells how, and what mends it", d, err)
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context //nolint:containedctx // of one copy
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// sourceError remembers an error, so that it can be told from the writer's.
type sourceError struct {
	r   io.Reader
	err error
}

func (s *sourceError) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

func (e *exporter) blob(d digest.Digest, data []byte) error {
	if e.written[d] {
		return nil
	}
	e.written[d] = true
	return e.file(blobName(d), data)
}

func (e *exporter) json(name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return e.file(name, data)
}

func (e *exporter) file(name string, data []byte) error {
	if err := e.header(name, int64(len(data))); err != nil {
		return err
	}
	_, err := e.w.Write(data)
	return err
}

// header begins a file. It has no time of its own: the same images make the same
// archive.
func (e *exporter) header(name string, size int64) error {
	return e.w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size})
}

// index writes index.json. A name is in the annotations that containerd looks
// at, and its tag in that of the OCI specification.
func (e *exporter) index() error {
	ix := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, x := range e.images {
		for _, tag := range x.tags {
			desc := x.desc
			desc.Annotations = map[string]string{containerdName: tag, ocispec.AnnotationRefName: tag[strings.LastIndexByte(tag, ':')+1:]}
			ix.Manifests = append(ix.Manifests, desc)
		}
		if len(x.tags) == 0 {
			ix.Manifests = append(ix.Manifests, x.desc)
		}
	}
	return e.json(ocispec.ImageIndexFile, ix)
}

// dockerManifest writes manifest.json.
func (e *exporter) dockerManifest() error {
	list := []dockerImage{}
	for _, x := range e.images {
		d := dockerImage{Config: blobName(digest.Digest(x.record.ID)), RepoTags: x.tags, Layers: []string{}}
		for _, l := range x.record.layers {
			d.Layers = append(d.Layers, blobName(l))
		}
		list = append(list, d)
	}
	return e.json("manifest.json", list)
}
