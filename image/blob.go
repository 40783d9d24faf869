package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cridproject/crid/internal/errkind"
)

// open fetches what desc names, from offset on. Nothing is verified.
//
// URLs in desc are not asked: a manifest can name any, and the daemon must not be
// made to ask the node's network for it. Layers that only those have are Windows'.
func (r *remote) open(ctx context.Context, desc ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	body, err := r.openRange(ctx, desc, offset, desc.Size)
	if err != nil {
		return nil, err // not a nil *blobBody
	}
	return body, nil
}

// openRange fetches the bytes from from up to, not with, to.
func (r *remote) openRange(ctx context.Context, desc ocispec.Descriptor, from, to int64) (*blobBody, error) {
	var body *blobBody
	err := r.each(ctx, r.inOrder(desc), func(e *endpoint) (err error) {
		body, err = r.openAt(ctx, e, desc, from, to)
		return err
	})
	return body, err
}

// inOrder is the hosts to ask for desc: those that broke off sending it last.
func (r *remote) inOrder(desc ocispec.Descriptor) []*endpoint {
	hosts := r.that(func(e *endpoint) bool { return e.canPull })
	r.mu.Lock()
	defer r.mu.Unlock()
	broken := r.broken[desc.Digest]
	slices.SortStableFunc(hosts, func(a, b *endpoint) int { return slices.Index(broken, a) - slices.Index(broken, b) })
	return hosts
}

// blame remembers that a host broke off while it sent desc.
func (r *remote) blame(desc ocispec.Descriptor, e *endpoint) {
	r.mu.Lock()
	defer r.mu.Unlock()
	broken := slices.DeleteFunc(r.broken[desc.Digest], func(b *endpoint) bool { return b == e })
	r.broken[desc.Digest] = append(broken, e)
}

// hasOther reports whether some host has not yet broken off while it sent desc.
func (r *remote) hasOther(desc ocispec.Descriptor) bool {
	hosts := r.inOrder(desc)
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(hosts) > 0 && !slices.Contains(r.broken[desc.Digest], hosts[0])
}

func (r *remote) openAt(ctx context.Context, e *endpoint, desc ocispec.Descriptor, from, to int64) (*blobBody, error) {
	q := request{method: http.MethodGet, kind: "blobs", name: string(desc.Digest), header: http.Header{"Accept": {"*/*"}}}
	if isManifest(desc.MediaType) {
		q.kind = "manifests"
		q.header.Set("Accept", desc.MediaType+", */*")
	}
	if from > 0 || to < desc.Size {
		q.header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, to-1))
	}
	resp, err := r.ask(ctx, e, q) //nolint:bodyclose // blobBody has it
	if status, ok := errors.AsType[*statusError](err); ok && status.code == http.StatusRequestedRangeNotSatisfiable && q.header.Get("Range") != "" {
		// It may know no ranges. If it has other bytes, its whole answer shows that.
		q.header.Del("Range")
		resp, err = r.ask(ctx, e, q) //nolint:bodyclose // blobBody has it
	}
	if err != nil {
		return nil, err
	}
	b := &blobBody{remote: r, host: e, desc: desc, left: to - from}
	b.answer, _ = resp.Body.(*answer)
	if err := b.place(resp, from); err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

// isManifest reports whether a registry has such a document among its manifests.
func isManifest(mediaType string) bool {
	switch mediaType {
	case ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, dockerManifest, dockerIndex:
		return true
	}
	return false
}

// blobBody is a part of a blob as it comes from a host.
type blobBody struct {
	*answer
	remote *remote
	host   *endpoint
	desc   ocispec.Descriptor
	skip   int64 // bytes that come before those asked for
	left   int64 // bytes asked for that have not come
	whole  bool  // the host sends all that it has, since it knows no ranges
}

// place looks at what part of the blob the answer has. from is where to begin.
func (b *blobBody) place(resp *http.Response, from int64) error {
	if resp.StatusCode != http.StatusPartialContent {
		b.whole, b.skip = true, from
		if resp.ContentLength >= 0 && resp.ContentLength != b.desc.Size {
			return errkind.Errorf(errkind.Invalid, "it has %d bytes for %s, which should have %d", resp.ContentLength, b.desc.Digest, b.desc.Size)
		}
		return nil
	}
	var first, last int64
	total := "*"
	said := resp.Header.Get("Content-Range")
	if n, _ := fmt.Sscanf(strings.TrimSpace(said), "bytes %d-%d/%s", &first, &last, &total); n != 3 || first != from || last-first+1 < b.left ||
		total != "*" && total != fmt.Sprint(b.desc.Size) {
		return errkind.Errorf(errkind.Invalid, "asked for %s from byte %d of %d on, it answers with %q", b.desc.Digest, from, b.desc.Size, shorten(said))
	}
	return nil
}

// Read implements io.Reader. It returns no bytes and no error while it skips, so
// that its caller sees progress.
func (b *blobBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	most := b.left
	if b.skip > 0 {
		most = b.skip
	}
	n, err := b.answer.Read(p[:min(int64(len(p)), most)])
	if b.skip > 0 {
		b.skip -= int64(n)
		n = 0
	}
	b.left -= int64(n)
	if err != nil && b.left > 0 {
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("it ended %d bytes before its end: %w", b.left, io.ErrUnexpectedEOF)
		}
		b.remote.blame(b.desc, b.host)
		return n, &chainError{remote: b.remote, tries: []hostError{{b.host, err}}}
	}
	return n, err
}
