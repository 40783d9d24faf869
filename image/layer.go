package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"github.com/cridproject/crid/internal/atomicfile"
	"github.com/cridproject/crid/internal/errkind"
)

// A layer on disk is a folder named after its diff ID, with
//
//	fs/         the files, in the form that overlayfs takes as a lower folder
//	layer.json  what is known of them (layerMeta)
//	skeleton.zst, replaced/
//	            what else the layer's archive was made of, see skeletonWriter
const (
	layerFS   = "fs"
	layerFile = "layer.json"
)

// layerMeta is what is known of a stored layer without looking at its files.
type layerMeta struct {
	Version int
	DiffID  digest.Digest
	Bytes   uint64   // sum of the sizes of its files
	Disk    uint64   // space they take
	Inodes  uint64   // files, folders and links
	Implied []string // see Contents
	// Replaced says that the figures are upper bounds of what is in fs/: the archive
	// has replaced files of its own.
	Replaced bool `json:",omitempty"`
	// Archive is the size of the layer's archive, which can be made again; 0 when an
	// older crid has unpacked it, which kept no skeleton.
	Archive int64
}

const layerVersion = 1

// blob is a layer as it can be fetched.
type blob struct {
	digest digest.Digest // of the compressed bytes; "" when unknown, as in docker archives
	size   int64         // compressed; -1 when unknown
	diffID digest.Digest
}

// unpackLayer unpacks the compressed layer r into the new folder dir and checks
// that it is what b says: compressed size and digest, and diff ID. Hashing and
// decompressing run beside unpacking. On error dir holds rubbish; abort is called
// when no more of r is wanted, and must end a read of r that waits.
func (s *Store) unpackLayer(ctx context.Context, r io.Reader, abort func(), b blob, dir string) (layerMeta, error) {
	if err := os.Mkdir(filepath.Join(dir, layerFS), 0o755); err != nil {
		return layerMeta{}, err
	}
	packed := newHashReader(&sizedReader{r: r, left: b.size}, algorithm(b.digest))
	m, err := unpackStream(ctx, packed, abort, dir, s.limits)
	if err := ctx.Err(); err != nil {
		return layerMeta{}, context.Cause(ctx)
	}
	if err != nil {
		return layerMeta{}, b.blame(packed, err)
	}
	if err := b.check(packed); err != nil {
		return layerMeta{}, err
	}
	if m.DiffID != b.diffID {
		return layerMeta{}, errkind.Errorf(errkind.Invalid, "layer %s: unpacked it is %s, but the image's configuration says %s", b.name(), m.DiffID, b.diffID)
	}
	return m, writeJSON(filepath.Join(dir, layerFile), m, atomicfile.NoSync)
}

// unpackStream unpacks packed into the layer's folder dir and reads it to its end.
func unpackStream(ctx context.Context, packed io.Reader, abort func(), dir string, limits Limits) (layerMeta, error) {
	raw, closeRaw, err := decompress(packed)
	if err != nil {
		return layerMeta{}, err
	}
	defer closeRaw()
	ahead := readAhead(raw)
	defer ahead.close()
	tarred := newHashReader(ahead, digest.SHA256)
	skeleton, err := newSkeleton(tarred, dir)
	if err != nil {
		return layerMeta{}, err
	}
	m, err := unpackArchive(ctx, skeleton, limits)
	if err != nil {
		_ = skeleton.close()
		var c *corruptError
		if !errors.As(err, &c) {
			abort()
		}
		return layerMeta{}, err
	}
	m.DiffID = tarred.digest(digest.SHA256)
	return m, skeleton.close()
}

// unpackArchive unpacks a whole archive and writes its skeleton.
func unpackArchive(ctx context.Context, archive *skeletonWriter, limits Limits) (layerMeta, error) {
	made, err := unpack(ctx, filepath.Join(archive.dir, layerFS), archive, limits)
	if err != nil {
		return layerMeta{}, err
	}
	// Padding after the archive's end belongs to the digest; endless padding is a bomb.
	const padding = 64 << 20
	if n, err := io.Copy(io.Discard, io.LimitReader(archive, padding)); err != nil {
		return layerMeta{}, err
	} else if n == padding {
		return layerMeta{}, errTooLarge
	}
	size, err := archive.finish()
	if err != nil {
		return layerMeta{}, err
	}
	return layerMeta{
		Version: layerVersion, Bytes: made.Bytes, Inodes: made.Inodes + 1, Archive: archive.total,
		Disk: made.Disk + onDisk(uint64(size)), Implied: made.Implied, Replaced: made.Replaced,
	}, nil
}

// check compares what has passed through packed, up to the end, with b.
func (b *blob) check(packed *hashReader) error {
	// What is left is what the decompressor did not need.
	if _, err := io.Copy(io.Discard, packed); err != nil {
		return err
	}
	if b.size >= 0 && packed.n != b.size {
		return errkind.Errorf(errkind.Invalid, "layer %s: %d bytes came, but the manifest says %d", b.name(), packed.n, b.size)
	}
	if got := packed.digest(algorithm(b.digest)); b.digest != "" && got != b.digest {
		return errkind.Errorf(errkind.Invalid, "layer %s: what came has the digest %s", b.name(), got)
	}
	return nil
}

// blame explains why unpacking has failed. Data that cannot be decompressed and
// has the wrong digest was damaged on its way.
func (b *blob) blame(packed *hashReader, err error) error {
	var c *corruptError
	if errors.As(err, &c) {
		if wrong := b.check(packed); wrong != nil {
			return wrong
		}
	}
	return fmt.Errorf("layer %s: %w", b.name(), err)
}

func (b *blob) name() digest.Digest {
	if b.digest != "" {
		return b.digest
	}
	return b.diffID
}

func algorithm(d digest.Digest) digest.Algorithm {
	if d == "" {
		return digest.SHA256
	}
	return d.Algorithm()
}

// sizedReader fails when more than left bytes come; -1 means any number.
type sizedReader struct {
	r    io.Reader
	left int64
}

func (s *sizedReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if s.left >= 0 {
		if s.left -= int64(n); s.left < 0 {
			s.left = 0
			return 0, errkind.Errorf(errkind.Invalid, "more bytes came than the manifest says")
		}
	}
	return n, err
}

func writeJSON(path string, v any, sync atomicfile.Sync) error {
	data, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		return err
	}
	return atomicfile.Write(path, append(data, '\n'), 0o600, sync)
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
