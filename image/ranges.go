package image

import (
	"context"
	"errors"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Some registries and networks give each connection only a part of what the line
// can carry, and often one layer is most of an image. So a large layer is fetched
// in parts, some ahead of the one that is being read.
const (
	rangeBytes   = 4 << 20 // of one part
	rangesAhead  = 3       // parts of one layer that may wait in memory
	rangesMin    = 3       // parts that a layer must have
	rangesInARow = 4       // parts asked for at once when nothing can be fetched ahead
)

// errNoRanges means that the server sends all of a blob or nothing.
var errNoRanges = errors.New("the server knows no ranges")

// openLayer starts to read a layer. The caller closes it; an end of ctx ends a
// Read that waits.
func (s *Store) openLayer(ctx context.Context, src source, desc ocispec.Descriptor) io.ReadCloser {
	if _, ok := src.(*remote); !ok || s.maxDownloads == 1 || desc.Size < rangesMin*rangeBytes {
		return plainLayer{s.newDownload(ctx, src, desc)}
	}
	ctx, cancel := context.WithCancel(ctx)
	return &rangeReader{store: s, ctx: ctx, cancel: cancel, src: src, desc: desc}
}

type plainLayer struct{ *download }

func (p plainLayer) Close() error {
	p.close()
	return nil
}

// rangeReader reads a blob in parts: over a connection of its own, and, as far as
// Store.ranges has places, from parts that were fetched ahead. It waits for no
// place, so that layers cannot block one another.
type rangeReader struct {
	store  *Store
	ctx    context.Context //nolint:containedctx // of this layer alone
	cancel context.CancelFunc
	src    source
	desc   ocispec.Descriptor

	pos   int64 // bytes returned
	next  int64 // where the first part begins that nobody fetches
	plain bool  // there are no ranges: own has all that is left

	own   *download // nil while parts are read that were fetched ahead
	now   *part     // that is being read
	rest  []byte    // of now
	ahead []*part   // in order, the first begins where own or now ends
}

// part is a piece of a blob on its way into memory.
type part struct {
	buf    *[]byte
	n      int
	err    error
	done   chan struct{} // closed when the rest is set
	cancel context.CancelFunc
}

func (r *rangeReader) Read(p []byte) (int, error) {
	for {
		if len(r.rest) > 0 {
			n := copy(p, r.rest)
			r.rest = r.rest[n:]
			r.pos += int64(n)
			return n, nil
		}
		if r.now != nil {
			r.store.freePart(r.now)
			r.now = nil
			r.lookAhead()
		}
		if r.own != nil {
			if n, err := r.readOwn(p); n > 0 || err != nil {
				return n, err
			}
		}
		if r.pos == r.desc.Size {
			return 0, io.EOF
		}
		if err := r.nextPart(); err != nil {
			return 0, err
		}
	}
}

// readOwn reads from the layer's own connection. Its first bytes tell whether the
// server knows ranges.
func (r *rangeReader) readOwn(p []byte) (int, error) {
	n, err := r.own.Read(p)
	r.pos += int64(n)
	if r.own.whole && !r.plain {
		r.plain = true
		r.dropAhead()
	}
	switch {
	case n > 0:
		r.lookAhead()
		return n, nil
	case errors.Is(err, io.EOF):
		r.own.close()
		r.own = nil
		return 0, nil
	}
	return 0, err
}

// nextPart begins with what follows pos.
func (r *rangeReader) nextPart() error {
	if len(r.ahead) > 0 {
		p := r.ahead[0]
		select {
		case <-p.done:
		case <-r.ctx.Done():
			return context.Cause(r.ctx)
		}
		if p.err == nil {
			r.ahead, r.now, r.rest = r.ahead[1:], p, (*p.buf)[:p.n]
			return nil
		}
		if !errors.Is(p.err, errNoRanges) {
			return p.err
		}
		// Another host has come in that has none. Asking it for the rest is right
		// anyhow: what comes before is skipped, once.
		r.dropAhead()
	}
	r.own = r.store.newDownload(r.ctx, r.src, r.desc)
	r.own.offset, r.own.maySendAll = r.pos, true
	size := int64(rangeBytes)
	if r.pos > 0 {
		if r.store.ranges.TryAcquire(1) {
			r.store.ranges.Release(1)
		} else {
			size *= rangesInARow
		}
	}
	r.own.end = min(r.pos+size, r.desc.Size)
	r.next = r.own.end
	return nil
}

// lookAhead starts to fetch as many parts as there is room for.
func (r *rangeReader) lookAhead() {
	for !r.plain && r.next < r.desc.Size && len(r.ahead) < rangesAhead && r.store.ranges.TryAcquire(1) {
		ctx, cancel := context.WithCancel(r.ctx)
		p := &part{buf: r.store.partBuffer(), done: make(chan struct{}), cancel: cancel}
		d := r.store.newDownload(ctx, r.src, r.desc)
		d.offset, d.end = r.next, min(r.next+rangeBytes, r.desc.Size)
		r.next = d.end
		r.ahead = append(r.ahead, p)
		go p.fetch(d)
	}
}

// fetch is the goroutine of a part. It ends when all has come, or with p.cancel.
func (p *part) fetch(d *download) {
	defer close(p.done)
	defer d.close()
	p.n, p.err = io.ReadFull(d, (*p.buf)[:d.end-d.offset])
}

// dropAhead gives up what was being fetched ahead.
func (r *rangeReader) dropAhead() {
	for _, p := range r.ahead {
		p.cancel()
	}
	for _, p := range r.ahead {
		<-p.done
		r.store.freePart(p)
	}
	r.ahead = nil
}

// Close ends what is under way and waits for it.
func (r *rangeReader) Close() error {
	r.cancel()
	if r.own != nil {
		r.own.close()
	}
	if r.now != nil {
		r.store.freePart(r.now)
		r.now = nil
	}
	r.rest = nil
	r.dropAhead()
	return nil
}

// freePart gives back the room of a part that is done.
func (s *Store) freePart(p *part) {
	p.cancel()
	s.buffers.Put(p.buf)
	s.ranges.Release(1)
}

// partBuffer is room for a part, kept for the next one until the garbage collector
// wants it.
func (s *Store) partBuffer() *[]byte {
	if b, ok := s.buffers.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, rangeBytes)
	return &b
}
