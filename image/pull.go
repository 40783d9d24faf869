package image

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"github.com/cridproject/crid/image/signature"
	"github.com/cridproject/crid/internal/failpoint"
	"github.com/cridproject/crid/internal/trace"
)

// PullRequest says what to pull.
type PullRequest struct {
	Ref  string // as users write it
	Auth *Auth  // nil means anonymously
	// Progress is told of the layers; nil means nobody wants to know.
	Progress *Progress
}

// Pull fetches an image and returns its ID. Layers that the store has are not
// fetched; the manifest always is, with the caller's credentials, so that having
// been pulled by another gives nobody access. It stops when ctx ends. On error
// nothing new is in the store.
//
// NotFound: the registry has no such image, or none for this platform. Invalid:
// the name, or what the registry has, is no image. Unavailable: the registry
// cannot be reached; when that is why, the text begins with
// "RegistryUnavailable: ", and must be passed on as it is. BadState: the signature
// policy refuses the image; the text begins with "SignatureValidationFailed: ".
func (s *Store) Pull(ctx context.Context, req PullRequest) (id ID, err error) {
	began := time.Now()
	defer func() { s.observer.Pulled(time.Since(began), err) }()
	ref, err := ParseReference(req.Ref)
	if err != nil {
		return "", err
	}
	c, err := credentialsFor(req.Auth, ref.Host)
	if err != nil {
		return "", err
	}
	if err := ctx.Err(); err != nil {
		return "", fmt.Errorf("pull %s: %w", ref, context.Cause(ctx))
	}
	rule, err := s.signatures.ForImage(ref.String())
	if err != nil {
		return "", err
	}
	src, err := connect(ctx, ref, c, s.registryDirs, s.progressTimeout, s.retryPause)
	if err != nil {
		return "", err
	}
	defer src.close()
	if id, err = s.pull(ctx, src, ref, rule, c.key(), req.Progress); err != nil {
		return "", pullError(ctx, ref, s.explainFull(err))
	}
	klog.FromContext(ctx).V(2).Info("Pulled image", "image", id, "ref", ref.String(), "duration", time.Since(began))
	return id, nil
}

// pullError names the image, unless the text is already what a client looks for.
func pullError(ctx context.Context, ref Reference, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("pull %s: %w", ref, context.Cause(ctx))
	}
	var named *namedError
	if errors.As(err, &named) {
		return named.error
	}
	return fmt.Errorf("pull %s: %w", ref, err)
}

// namedError is an error whose text already begins as it must and names the image.
type namedError struct{ error }

func (e *namedError) Unwrap() error { return e.error }

func (s *Store) pull(ctx context.Context, src *remote, ref Reference, rule *signature.Rule, auth digest.Digest, progress *Progress) (ID, error) {
	if err := failpoint.Hit("image.pull.resolve"); err != nil {
		return "", err
	}
	turn := s.turn()
	step, end := trace.Start(ctx, "image.resolve")
	desc, err := src.resolve(step, ref)
	end(err)
	if err != nil {
		return "", err
	}
	step, end = trace.Start(ctx, "image.manifest", "digest", desc.Digest.String())
	p, err := s.fetchParts(step, src, desc)
	end(err)
	if err != nil {
		return "", err
	}
	// Before a byte of a layer, and also when the store has them all.
	if err := s.checkSignatures(ctx, src, rule, p.digests); err != nil {
		return "", err
	}
	names := []string{ref.withDigest(desc.Digest)}
	if ref.Tag != "" {
		names = append(names, ref.String())
	}
	from := origin{host: ref.Host, auth: auth}
	return p.id, s.add(ctx, src, from, p, names, turn, progress)
}

// add fetches the layers and makes the image.
func (s *Store) add(ctx context.Context, src source, from origin, p *parts, names []string, turn uint64, progress *Progress) error {
	step, end := trace.Start(ctx, "image.layers")
	held, err := s.fetchLayers(step, src, from, p.layers, progress)
	end(err)
	if err == nil {
		err = failpoint.Hit("image.pull.commit")
	}
	if err == nil {
		err = s.commit(ctx, p, names, turn)
	}
	if err != nil {
		s.drop(context.WithoutCancel(ctx), held...)
	}
	return err
}

// fetchLayers makes the store have and hold the layers, each once, some at a
// time. held are those that it holds, also on error.
func (s *Store) fetchLayers(ctx context.Context, src source, from origin, layers []blob, progress *Progress) (held []digest.Digest, err error) {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(s.maxDownloads)
	got := make([]bool, len(layers))
	seen := make(map[digest.Digest]bool)
	for i, b := range layers {
		if seen[b.diffID] {
			continue // the empty layer is in many images more than once
		}
		seen[b.diffID] = true
		st := progress.add(b.name(), b.size)
		g.Go(func() error {
			err := s.fetchLayer(ctx, src, flightKey{from, b}, st)
			got[i] = err == nil
			return err
		})
	}
	err = g.Wait()
	for i, ok := range got {
		if ok {
			held = append(held, layers[i].diffID)
		}
	}
	return held, err
}

// origin is where a download comes from and with what right. Pulls share a
// download only when both are the same: otherwise one could make another wait
// for, or fail with, what it alone may fetch.
type origin struct {
	host string
	auth digest.Digest
}

// flightKey names a download that can be shared.
type flightKey struct {
	origin
	blob blob
}

// flight is a layer on its way into the store.
type flight struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when it has landed and all is set
	meter  *meter

	waiters int  // +checklocks:Store.mu; at none it is cancelled
	landed  bool // +checklocks:Store.mu; from then on each waiter holds the layer, if err is nil
	err     error
}

// fetchLayer makes the store have the layer, and holds it.
func (s *Store) fetchLayer(ctx context.Context, src source, key flightKey, st *step) error {
	f := s.join(ctx, src, key)
	if f == nil {
		st.exists()
		return nil
	}
	st.meter.Store(f.meter)
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		s.leave(ctx, f, key)
		return context.Cause(ctx)
	}
}

// join holds the layer and returns nil when the store has it. Otherwise it
// becomes a waiter of its download, which it starts when there is none.
func (s *Store) join(ctx context.Context, src source, key flightKey) *flight {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holdLocked(key.blob.diffID) {
		return nil
	}
	if f := s.flights[key]; f != nil {
		f.waiters++
		return f
	}
	// The download goes on for others when this caller gives up; leave ends it.
	flying, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f := &flight{waiters: 1, cancel: cancel, done: make(chan struct{}), meter: &meter{}}
	s.flights[key] = f
	go s.fly(flying, src, f, key)
	return f
}

// fly is the goroutine of a flight. It ends when the layer is stored, the download
// fails, or the last waiter has left.
func (s *Store) fly(ctx context.Context, src source, f *flight, key flightKey) {
	defer close(f.done)
	defer f.cancel()
	err := s.download(ctx, src, key.blob, f.meter)
	s.mu.Lock()
	f.landed, f.err = true, err
	if s.flights[key] == f {
		delete(s.flights, key)
	}
	if err == nil {
		s.layers[key.blob.diffID].refs += f.waiters
	}
	s.mu.Unlock()
	if err == nil {
		f.meter.end(StepDone)
		s.drop(context.WithoutCancel(ctx), key.blob.diffID) // its own hold
	}
}

// leave gives up waiting. Who leaves last ends the download and waits for its
// end, so that no goroutine and no file outlives the pull.
func (s *Store) leave(ctx context.Context, f *flight, key flightKey) {
	s.mu.Lock()
	landed := f.landed
	if !landed {
		f.waiters--
	}
	last := f.waiters == 0
	if last && s.flights[key] == f {
		delete(s.flights, key) // who comes now starts anew
	}
	s.mu.Unlock()
	switch {
	case landed:
		<-f.done
		if f.err == nil {
			s.drop(context.WithoutCancel(ctx), key.blob.diffID)
		}
	case last:
		f.cancel()
		<-f.done
	}
}

// download fetches and stores one layer, and holds it.
func (s *Store) download(ctx context.Context, src source, b blob, m *meter) (err error) {
	began := time.Now()
	ctx, end := trace.Start(ctx, "image.layer", "digest", b.name().String())
	defer func() { end(err) }()
	dir, err := s.stage()
	if err != nil {
		return err
	}
	defer s.discard(ctx, dir)
	if err := failpoint.Hit("image.pull.layer"); err != nil {
		return err
	}
	// A context of its own: when unpacking fails, a read that waits for bytes of the layer
	// must end, and ctx must not.
	reading, cancel := context.WithCancel(ctx)
	defer cancel()
	d := s.openLayer(reading, src, b.descriptor())
	defer d.Close()
	meta, err := s.unpackLayer(ctx, m.reader(d), cancel, b, dir)
	if err != nil {
		return err
	}
	if err := s.storeLayer(dir, meta); err != nil {
		return err
	}
	s.observer.Unpacked(meta.Bytes)
	klog.FromContext(ctx).V(4).Info("Stored layer", "digest", b.name(), "bytes", meta.Bytes, "duration", time.Since(began))
	return nil
}
