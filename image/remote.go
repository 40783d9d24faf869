package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cridproject/crid/internal/errkind"
)

const (
	userAgent   = "crid"
	maxTries    = 5 // of one thing without a byte coming
	firstPause  = 200 * time.Millisecond
	longestWait = 30 * time.Second // that a registry may ask for
)

// remote is one repository of a registry, as seen with one set of credentials. It
// may be used concurrently.
type remote struct {
	ref   Reference
	creds credentials
	hosts []*endpoint // in the order in which they are asked; the last is the registry itself
	auth  *authorizer
	pause time.Duration // before the second try

	mu sync.Mutex
	// broken are the hosts that broke off while sending a blob: for this blob they
	// are asked last. +checklocks:mu
	broken map[digest.Digest][]*endpoint
}

// connect reads the hosts.toml files, so that a change of them counts from the
// next pull on. Nothing is sent yet. A host that takes longer than silence (0 or
// less means no limit) to begin an answer counts as one that cannot be reached.
// pause is before the second try of what failed, and grows.
func connect(ctx context.Context, ref Reference, c credentials, dirs []string, silence, pause time.Duration) (*remote, error) {
	_, hosts, err := hostsOf(ctx, dirs, ref.Host)
	if err != nil {
		return nil, err
	}
	for i, h := range hosts {
		h.silence = silenceOf(silence, i == len(hosts)-1)
	}
	return &remote{
		ref: ref, creds: c, hosts: hosts, auth: newAuthorizer(c, ref.Repo), pause: pause,
		broken: make(map[digest.Digest][]*endpoint),
	}, nil
}

// close ends the connections that are not in use. Another pull may still have one,
// of a download that they share.
func (r *remote) close() { closeIdle(r.hosts) }

// request is one thing to ask for.
type request struct {
	method, kind, name string // "GET", "manifests", "latest"
	query              url.Values
	header             http.Header
}

// ask sends the request to one host, as often as it takes to identify. An answer
// that is no success is a *statusError.
func (r *remote) ask(ctx context.Context, e *endpoint, q request) (*http.Response, error) {
	const challenges = 3             // of the registry, of where it redirects to, and one token that has ended
	refused := make(map[string]bool) // origins that have had their chance to say what they want
	for n := 0; ; n++ {
		req, err := http.NewRequestWithContext(ctx, q.method, e.url(q.query, r.ref.Repo, q.kind, q.name).String(), nil)
		if err != nil {
			return nil, err
		}
		for _, h := range []http.Header{{"User-Agent": {userAgent}, "Accept-Encoding": {"identity"}}, q.header, e.header} {
			for name, values := range h {
				req.Header[http.CanonicalHeaderKey(name)] = values
			}
		}
		sent := ""
		resp, at, err := e.send(ctx, req, func(ctx context.Context, at *url.URL) (_ string, err error) {
			sent, err = r.auth.header(ctx, e, at)
			return sent, err
		})
		if err != nil {
			return nil, err
		}
		switch {
		case resp.StatusCode >= 200 && resp.StatusCode <= 299:
			return resp, nil
		case resp.StatusCode != http.StatusUnauthorized:
			return nil, newStatusError(resp, at)
		}
		header := resp.Header
		denied := newStatusError(resp, at)
		if n == challenges || refused[originOf(at)] {
			return nil, &deniedError{denied}
		}
		refused[originOf(at)] = true
		if err := r.auth.challenged(ctx, e, at, header, sent, denied); err != nil {
			return nil, err
		}
	}
}

// each asks hosts one after the other, until do gets what it wants from one.
func (r *remote) each(ctx context.Context, hosts []*endpoint, do func(*endpoint) error) error {
	failed := &chainError{remote: r}
	for _, e := range hosts {
		err := do(e)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		failed.tries = append(failed.tries, hostError{e, err})
	}
	if len(failed.tries) == 0 {
		return errkind.Errorf(errkind.Invalid, "registry configuration of %s: no host has the capability to pull or resolve", r.ref.Host)
	}
	return failed
}

// again waits until it is time to try anew. It returns err when there is no use in
// that. tries is how often it has been tried.
func (r *remote) again(ctx context.Context, err error, tries int) error {
	if tries >= maxTries || !r.transient(err) {
		return err
	}
	pause := r.pauseAfter(err, tries)
	if pause > longestWait {
		return err
	}
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// pauseAfter grows, is at random, so that not all nodes come back at once, and is at
// least what the registry asks for.
func (r *remote) pauseAfter(err error, tries int) time.Duration {
	pause := r.pause << (tries - 1)
	pause = pause/2 + rand.N(pause+1)
	if chain, ok := errors.AsType[*chainError](err); ok {
		pause = max(pause, chain.retryAfter())
	}
	return pause
}

// keepAsking is each, again and again while that may help.
func (r *remote) keepAsking(ctx context.Context, hosts []*endpoint, do func(*endpoint) error) error {
	for tries := 1; ; tries++ {
		err := r.each(ctx, hosts, do)
		if err == nil {
			return nil
		}
		if err := r.again(ctx, err, tries); err != nil {
			return err
		}
	}
}

// that are the hosts that can do what is asked for.
func (r *remote) that(can func(*endpoint) bool) []*endpoint {
	return slices.DeleteFunc(slices.Clone(r.hosts), func(e *endpoint) bool { return !can(e) })
}

// manifestTypes are what crid understands; a registry may convert to what it is asked for.
var manifestTypes = strings.Join([]string{ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, dockerIndex, dockerManifest, "*/*"}, ", ")

// resolve asks for the manifest that ref, of the same repository, leads to now.
func (r *remote) resolve(ctx context.Context, ref Reference) (desc ocispec.Descriptor, err error) {
	name := ref.Tag
	if ref.Digest != "" {
		name = string(ref.Digest)
	}
	hosts := r.that(func(e *endpoint) bool { return e.canPull && (e.canResolve || ref.Digest != "") })
	err = r.keepAsking(ctx, hosts, func(e *endpoint) (err error) {
		desc, err = r.resolveAt(ctx, e, name, ref.Digest)
		return err
	})
	if err != nil {
		what := ""
		if ref != r.ref {
			what = name
		}
		return desc, r.explain(ctx, what, err)
	}
	return desc, nil
}

func (r *remote) resolveAt(ctx context.Context, e *endpoint, name string, want digest.Digest) (ocispec.Descriptor, error) {
	q := request{method: http.MethodHead, kind: "manifests", name: name, header: http.Header{"Accept": {manifestTypes}}}
	resp, err := r.ask(ctx, e, q)
	if status, ok := errors.AsType[*statusError](err); ok && status.method == http.MethodHead && status.code/100 == 4 &&
		status.code != http.StatusNotFound && status.code != http.StatusTooManyRequests {
		// It has no HEAD, or does not say in it why it refuses.
		q.method = http.MethodGet
		resp, err = r.ask(ctx, e, q)
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	resp.Body.Close()
	mediaType, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	desc := ocispec.Descriptor{MediaType: strings.TrimSpace(mediaType), Digest: digest.Digest(resp.Header.Get("Docker-Content-Digest")), Size: resp.ContentLength}
	if want != "" {
		desc.Digest = want
	}
	if desc.Size >= 0 && validDigest(desc.Digest) == nil {
		return desc, nil
	}
	return r.measure(ctx, e, q, desc, want)
}

// measure gets the manifest to see its size and digest, which not all registries tell.
func (r *remote) measure(ctx context.Context, e *endpoint, q request, desc ocispec.Descriptor, want digest.Digest) (ocispec.Descriptor, error) {
	q.method = http.MethodGet
	data, err := r.document(ctx, e, q, "manifest")
	if err != nil {
		return desc, err
	}
	desc.Size = int64(len(data))
	if want == "" {
		desc.Digest = digest.FromBytes(data)
	}
	return desc, nil
}

// document gets all of a manifest, or of what is as small. what is its name in an error.
func (r *remote) document(ctx context.Context, e *endpoint, q request, what string) ([]byte, error) {
	resp, err := r.ask(ctx, e, q)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := readSmall(resp, maxManifest+1)
	if err == nil && len(data) > maxManifest {
		err = errkind.Errorf(errkind.Invalid, "%s %s has more than %d bytes", what, q.name, maxManifest)
	}
	return data, err
}

// referrers lists the manifests of the same repository that say that they are
// about d (OCI distribution specification, "Listing Referrers"), also from a
// registry that has them as an index with a tag instead. artifactType "" means
// all. None is no error.
func (r *remote) referrers(ctx context.Context, d digest.Digest, artifactType string) (found []ocispec.Descriptor, err error) {
	hosts := r.that(func(e *endpoint) bool { return e.canPull && e.canResolve })
	err = r.keepAsking(ctx, hosts, func(e *endpoint) error {
		q := request{method: http.MethodGet, kind: "referrers", name: string(d), header: http.Header{"Accept": {ocispec.MediaTypeImageIndex}}}
		if artifactType != "" {
			q.query = url.Values{"artifactType": {artifactType}}
		}
		var err error = &statusError{code: http.StatusNotFound}
		if e.canRefer {
			found, err = r.index(ctx, e, q)
		}
		if status, ok := errors.AsType[*statusError](err); ok && (status.code == http.StatusNotFound || status.code == http.StatusBadRequest || status.code == http.StatusMethodNotAllowed) {
			q.kind, q.name, q.query = "manifests", strings.Replace(string(d), ":", "-", 1), nil
			found, err = r.index(ctx, e, q)
		}
		return err
	})
	if err != nil {
		err = certain(r.explain(ctx, "referrers of "+d.String(), err))
		if errkind.Is(err, errkind.NotFound) {
			return nil, nil
		}
		return nil, err
	}
	return slices.DeleteFunc(found, func(m ocispec.Descriptor) bool { return artifactType != "" && m.ArtifactType != artifactType }), nil
}

// index is the manifests of an index that the registry makes up, or a client has.
func (r *remote) index(ctx context.Context, e *endpoint, q request) ([]ocispec.Descriptor, error) {
	data, err := r.document(ctx, e, q, "its index")
	if err != nil {
		return nil, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, fmt.Errorf("its index %s: %w", q.name, err)
	}
	return index.Manifests, nil
}
