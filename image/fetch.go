package image

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	// transient reports whether asking again may help.
	transient(err error) bool
	// explain makes an error of open, or of reading what it gave, one to return.
	explain(ctx context.Context, what string, err error) error
}

const (
	maxManifest = 4 << 20 // bytes of a manifest or index, as registries allow
	maxConfig   = 8 << 20 // bytes of an image configuration
	maxTries    = 5       // of one download without a byte coming
	firstPause  = 200 * time.Millisecond
)

// errStalled is the cause of a download's end when nothing comes any more.
type stalledError struct{ after time.Duration }

func (e *stalledError) Error() string {
	return fmt.Sprintf("no byte has come for %v, the limit of progress_timeout", e.after)
}

// Unwrap gives it its kind.
func (e *stalledError) Unwrap() error { return errStalled }

var errStalled = errkind.New(errkind.Unavailable, errors.New("download stalled"))

// fetchSmall reads all of what desc names and verifies it.
func (s *Store) fetchSmall(ctx context.Context, src source, desc ocispec.Descriptor, limit int64) ([]byte, error) {
	if err := validDigest(desc.Digest); err != nil {
		return nil, errkind.New(errkind.Invalid, err)
	}
	if desc.Size < 0 || desc.Size > limit {
		return nil, errkind.Errorf(errkind.Invalid, "%s %s has %d bytes, more than %d", desc.MediaType, desc.Digest, desc.Size, limit)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	d := s.newDownload(ctx, cancel, src, desc)
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

// download reads a blob, goes on where it broke off, and gives up when nothing
// comes. It is an io.Reader; its errors are ready to be returned to a client.
type download struct {
	ctx     context.Context //nolint:containedctx // of this download alone; ended by stalled
	src     source
	desc    ocispec.Descriptor
	log     klog.Logger
	stalled *time.Timer // nil without a limit
	timeout time.Duration

	body   io.ReadCloser // nil between connections
	offset int64
	tries  int // since the last byte
}

// newDownload starts nothing yet. cancel must end ctx.
func (s *Store) newDownload(ctx context.Context, cancel context.CancelCauseFunc, src source, desc ocispec.Descriptor) *download {
	d := &download{ctx: ctx, src: src, desc: desc, log: klog.FromContext(ctx), timeout: s.progressTimeout}
	if d.timeout > 0 {
		d.stalled = time.AfterFunc(d.timeout, func() { cancel(&stalledError{d.timeout}) })
		d.stalled.Stop()
	}
	return d
}

func (d *download) Read(p []byte) (int, error) {
	for {
		n, err := d.try(p)
		if n > 0 {
			d.offset += int64(n)
			d.tries = 0
			return n, nil // an error comes again, or is mended, at the next read
		}
		switch {
		case err == nil:
			continue
		case errors.Is(err, io.EOF) && d.offset >= d.desc.Size:
			return 0, io.EOF
		case errors.Is(err, io.EOF):
			err = fmt.Errorf("it ended after %d of %d bytes: %w", d.offset, d.desc.Size, io.ErrUnexpectedEOF)
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
	if d.stalled != nil {
		d.stalled.Reset(d.timeout)
		defer d.stalled.Stop()
	}
	if d.body == nil {
		if err := failpoint.Hit("image.pull.fetch"); err != nil {
			return 0, err
		}
		body, err := d.src.open(d.ctx, d.desc, d.offset)
		if err != nil {
			return 0, err
		}
		d.body = body
	}
	return d.body.Read(p)
}

// again waits before the next attempt, or says why there is none.
func (d *download) again(err error) error {
	d.close()
	d.tries++
	if d.ctx.Err() != nil || d.tries >= maxTries || !d.src.transient(err) {
		return d.src.explain(d.ctx, d.desc.Digest.String(), err)
	}
	pause := firstPause << (d.tries - 1)
	d.log.V(2).Info("Download broke off, will go on", "digest", d.desc.Digest, "offset", d.offset, "attempt", d.tries, "err", withoutSecrets(err))
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-d.ctx.Done():
		return d.src.explain(d.ctx, d.desc.Digest.String(), d.ctx.Err())
	}
}

// close closes the connection. It must not run beside a Read.
func (d *download) close() {
	if d.body != nil {
		d.body.Close()
		d.body = nil
	}
}

// descriptor is what is fetched for a layer.
func (b *blob) descriptor() ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: b.name(), Size: b.size}
}
