package image

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"hash"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/cridproject/crid/internal/errkind"
)

// zstdWindow bounds the memory that one zstd stream may ask for.
const zstdWindow = 128 << 20

// decompress tells the compression by the first bytes: media types lie, and
// docker archives have none. close must be called; it does not close r.
func decompress(r io.Reader) (out io.Reader, close func(), err error) {
	br := bufio.NewReaderSize(r, 128<<10)
	magic, err := br.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, nil, corrupt("gzip", err)
		}
		return &codecReader{z, "gzip"}, func() { z.Close() }, nil
	case isZstd(magic):
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(zstdWindow))
		if err != nil {
			return nil, nil, corrupt("zstd", err)
		}
		return &codecReader{z, "zstd"}, z.Close, nil
	}
	return br, func() {}, nil
}

// isZstd knows a frame and one to be skipped, which may come first (RFC 8878,
// section 3.1).
func isZstd(magic []byte) bool {
	return bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}) ||
		len(magic) >= 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:4], []byte{0x2a, 0x4d, 0x18})
}

// codecReader tells errors in the compressed data from errors of its source,
// which carry a kind or are a context's.
type codecReader struct {
	r    io.Reader
	name string
}

func (c *codecReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = corrupt(c.name, err)
	}
	return n, err
}

func corrupt(format string, err error) error {
	var known *corruptError
	if errkind.Of(err) != errkind.Other || errors.Is(err, context.Canceled) || errors.As(err, &known) {
		return err
	}
	return &corruptError{format, err}
}

// corruptError says that data is not in its format. It matters whether its
// digest is right: then the image is bad, otherwise what came over the wire.
type corruptError struct {
	format string
	err    error
}

func (e *corruptError) Error() string { return "corrupt " + e.format + " data: " + e.err.Error() }
func (e *corruptError) Unwrap() error { return errkind.New(errkind.Invalid, e.err) }

// hashReader computes the digest of what passes.
type hashReader struct {
	r io.Reader
	h hash.Hash
	n int64
}

func newHashReader(r io.Reader, alg digest.Algorithm) *hashReader {
	return &hashReader{r: r, h: alg.Hash()}
}

func (h *hashReader) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	h.h.Write(p[:n])
	h.n += int64(n)
	return n, err
}

func (h *hashReader) digest(alg digest.Algorithm) digest.Digest { return digest.NewDigest(alg, h.h) }

const (
	aheadChunk  = 256 << 10
	aheadChunks = 4
)

// aheadReader reads its source in a goroutine of its own, so that decompressing
// and unpacking one layer take place at the same time.
type aheadReader struct {
	full  chan []byte // filled, in order
	empty chan []byte
	stop  chan struct{}
	done  chan struct{}
	err   error // of the source; valid when full is closed
	rest  []byte
	chunk []byte
}

func readAhead(r io.Reader) *aheadReader {
	a := &aheadReader{
		full: make(chan []byte, aheadChunks), empty: make(chan []byte, aheadChunks),
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	for range aheadChunks {
		a.empty <- make([]byte, aheadChunk)
	}
	go a.run(r)
	return a
}

func (a *aheadReader) run(r io.Reader) {
	defer close(a.done)
	defer close(a.full)
	for {
		var chunk []byte
		select {
		case chunk = <-a.empty:
		case <-a.stop:
			return
		}
		n, err := fill(r, chunk[:aheadChunk])
		if n > 0 {
			a.full <- chunk[:n] // never blocks: there are no more chunks than places
		}
		if err != nil {
			a.err = err
			return
		}
	}
}

// fill is io.ReadFull that keeps the source's error as it is.
func fill(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	return n, err
}

func (a *aheadReader) Read(p []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.chunk != nil {
			a.empty <- a.chunk
			a.chunk = nil
		}
		chunk, ok := <-a.full
		if !ok {
			return 0, a.err
		}
		a.chunk, a.rest = chunk, chunk
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// close waits for the goroutine, which may be in a read of the source: end that
// first, by its context.
func (a *aheadReader) close() {
	close(a.stop)
	<-a.done
}
