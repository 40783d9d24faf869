package image

import (
	"archive/tar"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"k8s.io/klog/v2"

	"github.com/cridproject/crid/image/dirfd"
	"github.com/cridproject/crid/image/signature"
	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/failpoint"
)

// ImportOptions changes what Import does.
type ImportOptions struct {
	// Name is given to the image instead of the names in the archive; "" means
	// those. Only for an archive of one image.
	Name string
	// Progress is told of the layers, once the archive has been read; nil means
	// nobody wants to know.
	Progress *Progress
}

const (
	// What is remembered of an archive: it has a few files by image and layer, of names
	// of a hundred bytes, and a configuration is some KiB.
	maxArchiveFiles   = 100_000
	maxArchiveNames   = 16 << 20 // bytes
	maxArchiveConfigs = 32 << 20 // bytes of the configurations that manifest.json names

	containerdName = "io.containerd.image.name" // annotation with a full name
)

// Import adds the images of an OCI layout or a docker archive, as a tar stream,
// compressed or not. The stream is first written to the store's disk: an archive
// names its parts at the end. Without any name an image can be used by its ID.
// On error images of the archive that came before may be in the store, whole.
func (s *Store) Import(ctx context.Context, r io.Reader, o ImportOptions) ([]Image, error) {
	dir, err := s.stage()
	if err != nil {
		return nil, err
	}
	defer s.discard(ctx, dir)
	if err := failpoint.Hit("image.import.spool"); err != nil {
		return nil, err
	}
	a, err := spool(ctx, r, dir, s.limits)
	if err != nil {
		return nil, fmt.Errorf("read image archive: %w", s.explainFull(err))
	}
	if err := s.signatures.ForArchive(a.transport()); err != nil {
		return nil, err
	}
	entries, err := a.entries()
	if err != nil {
		return nil, fmt.Errorf("image archive: %w", err)
	}
	if o.Name != "" {
		ref, err := ParseReference(o.Name)
		if err != nil {
			return nil, err
		}
		if len(entries) != 1 || ref.Digest != "" {
			return nil, errkind.Errorf(errkind.Invalid, "image archive: the name %s cannot be given: it must have a tag, and the archive one image, not %d", ref, len(entries))
		}
		entries[0].names = []string{ref.String()}
	}
	var images []Image
	for _, e := range entries {
		id, err := s.importOne(ctx, a, e, o.Progress)
		if err != nil {
			return images, fmt.Errorf("image archive: %w", s.explainFull(err))
		}
		i, err := s.Image(string(id))
		if err != nil {
			return images, err // removed meanwhile
		}
		klog.FromContext(ctx).V(2).Info("Imported image", "image", id, "names", i.RepoTags)
		images = append(images, i)
	}
	return images, nil
}

func (s *Store) importOne(ctx context.Context, a *archive, e archived, progress *Progress) (ID, error) {
	p := e.parts
	if p == nil {
		var err error
		if p, err = s.fetchParts(ctx, a, e.desc); err != nil {
			return "", err
		}
	}
	var names []string
	for _, n := range e.names {
		ref, err := ParseReference(n)
		if err != nil {
			return "", err
		}
		names = append(names, ref.String())
		if e.desc.Digest != "" && ref.Digest == "" {
			names = append(names, ref.withDigest(e.desc.Digest))
		}
	}
	return p.id, s.add(ctx, a, origin{host: a.dir}, p, names, s.turn(), progress)
}

// archived is one image of an archive: an OCI descriptor, or parts named by file.
type archived struct {
	names []string
	desc  ocispec.Descriptor
	parts *parts
}

// archive is an archive on disk. Its files have numbers for names: those in the
// archive are only looked up.
type archive struct {
	dir   string
	files map[string]string        // cleaned name → path on disk
	links map[string]string        // cleaned name → cleaned target
	blobs map[digest.Digest]string // layers of docker archives, by diff ID → name
}

// spool writes the archive's files to dir.
func spool(ctx context.Context, r io.Reader, dir string, limits Limits) (*archive, error) {
	raw, closeRaw, err := decompress(r)
	if err != nil {
		return nil, err
	}
	defer closeRaw()
	room := limits.Bytes
	if room == 0 {
		if room, err = dirfd.Free(dir); err != nil {
			return nil, err
		}
	}
	raw = &boundedReader{r: raw, left: room}
	a := &archive{dir: dir, files: make(map[string]string), links: make(map[string]string), blobs: make(map[digest.Digest]string)}
	buf := make([]byte, 256<<10)
	files, names := 0, 0
	for tr := tar.NewReader(raw); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return a, nil
		}
		if err != nil {
			return nil, corrupt("tar", err)
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if files++; files > maxArchiveFiles {
			return nil, errkind.Errorf(errkind.Invalid, "it has more than %d files", maxArchiveFiles)
		}
		if names += len(h.Name) + len(h.Linkname); names > maxArchiveNames {
			return nil, errkind.Errorf(errkind.Invalid, "the names of its files have more than %d MiB", maxArchiveNames>>20)
		}
		name := path.Clean("/" + h.Name)[1:]
		switch h.Typeflag {
		case tar.TypeReg:
			to := filepath.Join(dir, strconv.Itoa(files))
			if err := spoolFile(tr, to, buf); err != nil {
				return nil, entryError(h.Name, err)
			}
			a.files[name] = to
		case tar.TypeSymlink: // old docker archives share layers so
			a.links[name] = path.Join("/", path.Dir(name), h.Linkname)[1:]
		case tar.TypeLink:
			a.links[name] = path.Clean("/" + h.Linkname)[1:]
		}
	}
}

func spoolFile(r io.Reader, to string, buf []byte) error {
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, r, buf)
	if err != nil && errkind.Of(err) == errkind.Other && errors.Is(err, io.ErrUnexpectedEOF) {
		err = corrupt("tar", err)
	}
	return errors.Join(err, f.Close())
}

// path is where the file of that name in the archive is.
func (a *archive) path(name string) (string, bool) {
	name = path.Clean("/" + name)[1:]
	for range 3 {
		if p, ok := a.files[name]; ok {
			return p, true
		}
		target, ok := a.links[name]
		if !ok {
			break
		}
		name = target
	}
	return "", false
}

func (a *archive) read(name string, limit int64) ([]byte, error) {
	p, ok := a.path(name)
	if !ok {
		return nil, errkind.Errorf(errkind.Invalid, "it has no file %q", shorten(name))
	}
	f, err := os.Open(p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = errkind.Errorf(errkind.Invalid, "its file %q has more than %d bytes", shorten(name), limit)
	}
	return data, err
}

// transport is what the signature policy calls an archive of this kind.
func (a *archive) transport() string {
	if _, ok := a.path(ocispec.ImageIndexFile); ok {
		return signature.OCIArchive
	}
	return signature.DockerArchive
}

// entries lists the images. An archive that is both an OCI layout and a docker
// archive, as docker save writes today, is taken as the first, with the names of
// both.
func (a *archive) entries() ([]archived, error) {
	_, isOCI := a.path(ocispec.ImageIndexFile)
	_, isDocker := a.path("manifest.json")
	var docker []archived
	var err error
	if isDocker {
		if docker, err = a.dockerEntries(); err != nil && !isOCI {
			return nil, err
		}
	}
	switch {
	case isOCI:
		return a.ociEntries(docker)
	case isDocker:
		return docker, nil
	}
	return nil, errkind.Errorf(errkind.Invalid, "it has neither %s, as an OCI layout, nor manifest.json, as a docker archive", ocispec.ImageIndexFile)
}

func (a *archive) ociEntries(docker []archived) ([]archived, error) {
	data, err := a.read(ocispec.ImageIndexFile, maxManifest)
	if err != nil {
		return nil, err
	}
	var ix ocispec.Index
	if err := json.Unmarshal(data, &ix); err != nil {
		return nil, errkind.Errorf(errkind.Invalid, "%s: %w", ocispec.ImageIndexFile, err)
	}
	if len(ix.Manifests) == 0 {
		return nil, errkind.Errorf(errkind.Invalid, "%s lists no image", ocispec.ImageIndexFile)
	}
	var entries []archived
	at := make(map[digest.Digest]int)
	for _, desc := range ix.Manifests {
		n, known := at[desc.Digest]
		if !known {
			n = len(entries)
			at[desc.Digest] = n
			entries = append(entries, archived{desc: desc})
		}
		full := cmp.Or(desc.Annotations[containerdName], desc.Annotations[ocispec.AnnotationRefName])
		// A tag alone, as some tools write it, does not say whose it is.
		if strings.ContainsAny(full, "/:") {
			entries[n].names = append(entries[n].names, full)
		}
	}
	// A single image without a full name has it in the docker half.
	if len(entries) == 1 && len(docker) == 1 {
		entries[0].names = append(entries[0].names, docker[0].names...)
	}
	return entries, nil
}

// dockerImage is one image of a docker archive's manifest.json.
type dockerImage struct {
	Config   string // names of files in the archive
	RepoTags []string
	Layers   []string // lowest first
}

// dockerEntries reads manifest.json, which lists configurations and layers by
// file name. Their digests are not in it: a layer is verified by its diff ID.
func (a *archive) dockerEntries() ([]archived, error) {
	data, err := a.read("manifest.json", maxManifest)
	if err != nil {
		return nil, err
	}
	var list []dockerImage
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, errkind.Errorf(errkind.Invalid, "manifest.json: %w", err)
	}
	if len(list) == 0 {
		return nil, errkind.Errorf(errkind.Invalid, "manifest.json lists no image")
	}
	var entries []archived
	configs := 0
	for _, m := range list {
		config, err := a.read(m.Config, maxConfig)
		if err != nil {
			return nil, err
		}
		if configs += len(config); configs > maxArchiveConfigs {
			return nil, errkind.Errorf(errkind.Invalid, "the configurations that manifest.json names have more than %d MiB", maxArchiveConfigs>>20)
		}
		c, err := parseConfig(config)
		if err != nil {
			return nil, err
		}
		if len(c.RootFS.DiffIDs) != len(m.Layers) || len(m.Layers) > maxLayersPerImage {
			return nil, errkind.Errorf(errkind.Invalid, "manifest.json has %d layers and %q %d; at most %d are possible", len(m.Layers), shorten(m.Config), len(c.RootFS.DiffIDs), maxLayersPerImage)
		}
		p := &parts{id: ID(digest.FromBytes(config)), config: config}
		for i, name := range m.Layers {
			if _, ok := a.path(name); !ok {
				return nil, errkind.Errorf(errkind.Invalid, "it has no file %q, which is a layer", shorten(name))
			}
			d := c.RootFS.DiffIDs[i]
			a.blobs[d] = name
			p.layers = append(p.layers, blob{size: -1, diffID: d})
		}
		entries = append(entries, archived{names: m.RepoTags, parts: p})
	}
	return entries, nil
}

// open is source's. A layer of a docker archive has no digest but its diff ID,
// which the descriptor then carries.
func (a *archive) open(_ context.Context, desc ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	name := path.Join("blobs", desc.Digest.Algorithm().String(), desc.Digest.Encoded())
	if desc.Size < 0 {
		name = a.blobs[desc.Digest]
	}
	p, ok := a.path(name)
	if !ok {
		return nil, errkind.Errorf(errkind.Invalid, "it has no file %s", name)
	}
	f, err := os.Open(p)
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// again is source's: a file does not change by reading it again.
func (a *archive) again(_ context.Context, err error, _ int) error { return err }

// explain is source's.
func (a *archive) explain(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = errkind.Errorf(errkind.Invalid, "its file is shorter than the archive says")
	}
	return fmt.Errorf("%s: %w", what, err)
}
