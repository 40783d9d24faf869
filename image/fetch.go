package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/failpoint"
)

// source is where the parts of an image come from: a registry or an archive.
type source interface {
	// open starts to read what desc names, from the byte offset on.
	open(ctx context.Context, desc ocispec.Descriptor, offset int64) (io.ReadCloser, error)
	// again waits until it is time to open it once more after err, or returns err
	// when there is no use in that. tries is how often it has been tried.
	again(ctx context.Context, err error, tries int) error
	// explain makes an error of open, or of reading what it gave, one to return.
	explain(ctx context.Context, what string, err error) error
}

const (
	maxManifest = 4 << 20 // bytes of a manifest or index, as registries allow
	maxConfig   = 8 << 20 // bytes of an image configuration
)

// stalledError is why a download ends from which nothing comes any more.
type stalledError struct {
	desc  ocispec.Descriptor
	after time.Duration
}

func (e *stalledError) Error() string {
	return fmt.Sprintf("no byte has come for %v, the limit of progress_timeout", e.after)
}

// fetchSmall reads all of what desc names and verifies it.
func (s *Store) fetchSmall(ctx context.Context, src source, desc ocispec.Descriptor, limit int64) ([]byte, error) {
	if err := validDigest(desc.Digest); err != nil {
		return nil, errkind.New(errkind.Invalid, err)
	}
	if desc.Size < 0 || desc.Size > limit {
		return nil, errkind.Errorf(errkind.Invalid, "%s %s has %d bytes, more than %d", desc.MediaType, desc.Digest, desc.Size, limit)
	}
	d := s.newDownload(ctx, src, desc)
	defer d.close()
	data, err := io.ReadAll(io.LimitReader(d, desc.Size+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) != desc.Size || desc.Digest.Algorithm().FromBytes(data) != desc.Digest {
		return nil, errkind.Errorf(errkind.Invalid, "%s %s: what came is something else, of %d bytes", desc.MediaType, desc.Digest, len(data))
	}
	return data, nil
}

// download reads a blob, or a part of it, goes on where it broke off, and gives up
// when nothing comes. It is an io.Reader; its errors are ready to be returned to a
// client.
type download struct {
	ctx     context.Context //nolint:containedctx // of this download alone
	src     source
	desc    ocispec.Descriptor
	log     klog.Logger
	timeout time.Duration   // 0 or less means none
	fetched func(bytes int) // is told of what comes

	offset, end int64
	maySendAll  bool          // a part may become all of the rest, at a server without ranges
	whole       bool          // it has become that
	body        io.ReadCloser // nil between connections
	stalled     *time.Timer   // of body; nil without a limit
	tries       int           // since the last byte
}

// newDownload starts nothing yet.
func (s *Store) newDownload(ctx context.Context, src source, desc ocispec.Descriptor) *download {
	d := &download{
		ctx: ctx, src: src, desc: desc, log: klog.FromContext(ctx), timeout: s.progressTimeout, end: desc.Size,
		fetched: s.observer.Fetched,
	}
	if d.end < 0 {
		d.end = math.MaxInt64 // unknown, as in docker archives
	}
	return d
}

func (d *download) Read(p []byte) (int, error) {
	for {
		if d.offset >= d.end {
			return 0, io.EOF
		}
		n, err := d.try(p[:min(int64(len(p)), d.end-d.offset)])
		if n > 0 {
			d.offset += int64(n)
			d.tries = 0
			d.fetched(n)
			return n, nil // an error comes again, or is mended, at the next read
		}
		switch {
		case err == nil:
			continue
		case errors.Is(err, io.EOF) && d.desc.Size < 0:
			return 0, io.EOF
		case errors.Is(err, io.EOF):
			err = fmt.Errorf("it ended after %d of %d bytes: %w", d.offset, d.desc.Size, io.ErrUnexpectedEOF)
		}
		if errors.Is(err, errNoRanges) {
			return 0, err
		}
		if err := d.again(err); err != nil {
			return 0, err
		}
	}
}

// try reads from the connection there is, or makes one.
func (d *download) try(p []byte) (int, error) {
	if err := d.ctx.Err(); err != nil {
		return 0, err
	}
	if d.body == nil {
		if err := d.open(); err != nil {
			return 0, err
		}
	}
	if d.stalled != nil {
		d.stalled.Reset(d.timeout)
		defer d.stalled.Stop()
	}
	return d.body.Read(p)
}

func (d *download) open() error {
	if err := failpoint.Hit("image.pull.fetch"); err != nil {
		return err
	}
	body, err := d.openBody()
	if err != nil {
		return err
	}
	d.body = body
	if a, ok := body.(interface{ abort(error) }); ok && d.timeout > 0 {
		d.stalled = time.AfterFunc(d.timeout, func() { a.abort(&stalledError{d.desc, d.timeout}) })
		d.stalled.Stop()
	}
	return nil
}

// openBody asks for all that is left, or for the part.
func (d *download) openBody() (io.ReadCloser, error) {
	r, ok := d.src.(*remote)
	if !ok || d.end >= d.desc.Size {
		return d.src.open(d.ctx, d.desc, d.offset)
	}
	body, err := r.openRange(d.ctx, d.desc, d.offset, d.end)
	switch {
	case err != nil:
		return nil, err
	case body.whole && !d.maySendAll:
		body.Close()
		return nil, errNoRanges
	case body.whole:
		d.whole, d.end = true, d.desc.Size
		body.left = d.end - d.offset
	}
	return body, nil
}

// again waits before the next attempt, or says why there is none.
func (d *download) again(err error) error {
	d.close()
	d.tries++
	if d.ctx.Err() == nil {
		d.log.V(2).Info("Download broke off", "digest", d.desc.Digest, "offset", d.offset, "attempt", d.tries, "err", withoutSecrets(err))
	}
	if err := d.src.again(d.ctx, err, d.tries); err != nil {
		return d.src.explain(d.ctx, d.desc.Digest.String(), err)
	}
	return nil
}

// close closes the connection. It must not run beside a Read.
func (d *download) close() {
	if d.stalled != nil {
		d.stalled.Stop()
		d.stalled = nil
	}
	if d.body != nil {
		d.body.Close()
		d.body = nil
	}
}

// descriptor is what is fetched for a layer.
func (b *blob) descriptor() ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: b.name(), Size: b.size}
}
