package image

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cridproject/crid/image/signature"
	"github.com/cridproject/crid/internal/errkind"
)

// What cosign stores signatures as.
const (
	simpleSigningType = "application/vnd.dev.cosign.simplesigning.v1+json"
	bundleType        = "application/vnd.dev.sigstore.bundle" // and a version

	signatureNote   = "dev.cosignproject.cosign/signature"
	certificateNote = "dev.sigstore.cosign/certificate"
	chainNote       = "dev.sigstore.cosign/chain"
	logEntryNote    = "dev.sigstore.cosign/bundle"
	predicateNote   = "dev.sigstore.bundle.predicateType"
)

// maxSignatureBytes bounds all signatures of one image together.
const maxSignatureBytes = 8 << 20

// checkSignatures lets an image through that the rule accepts. Signatures come
// from the image's repository, by the same hosts and with the same credentials; one of
// the index that the name leads to counts as much as one of the manifest itself.
func (s *Store) checkSignatures(ctx context.Context, src *remote, rule *signature.Rule, digests []digest.Digest) error {
	f := &signatureFinder{store: s, src: src, room: maxSignatureBytes, left: signature.MaxSignatures}
	var sources []signature.Source
	for _, d := range digests {
		sources = append(sources, func(ctx context.Context) ([]signature.Signature, error) { return f.byTag(ctx, d) })
	}
	for _, d := range digests {
		sources = append(sources, func(ctx context.Context) ([]signature.Signature, error) { return f.byReferrers(ctx, d) })
	}
	err := rule.Check(ctx, digests, sources...)
	if err != nil && ctx.Err() == nil {
		return &namedError{err}
	}
	return err
}

// signatureFinder fetches the signatures of one image, within limits: what a
// registry lists is its own, or an attacker's, choice.
type signatureFinder struct {
	store *Store
	src   *remote
	room  int64 // bytes that may still be fetched
	left  int   // signatures that may still be fetched
}

// byTag finds signatures under the tag that cosign derives from a digest: each
// layer of that manifest is one.
func (f *signatureFinder) byTag(ctx context.Context, d digest.Digest) ([]signature.Signature, error) {
	tag := strings.Replace(d.String(), ":", "-", 1) + ".sig"
	doc, err := f.manifest(ctx, tag)
	if err != nil || doc == nil {
		return nil, err
	}
	var found []signature.Signature
	for i, l := range doc.Layers {
		if l.MediaType != simpleSigningType {
			continue
		}
		sig := signature.Signature{
			Origin: fmt.Sprintf("layer %d of the tag %s", i+1, tag),
			Base64: l.Annotations[signatureNote], Certificate: l.Annotations[certificateNote],
			Chain: l.Annotations[chainNote], LogEntry: l.Annotations[logEntryNote],
		}
		if err := f.count(); err != nil {
			return found, err
		}
		if sig.Base64 == "" {
			sig.Problem = "it has no annotation " + signatureNote
		} else if sig.Payload, sig.Problem, err = f.blob(ctx, l); err != nil {
			return found, err
		}
		found = append(found, sig)
	}
	return found, nil
}

// byReferrers finds signatures in the bundle format: manifests that say that they
// are about the digest.
func (f *signatureFinder) byReferrers(ctx context.Context, d digest.Digest) ([]signature.Signature, error) {
	// All of them: some tools leave the type of the artifact out of the list.
	list, err := f.src.referrers(ctx, d, "")
	if err != nil {
		return nil, err
	}
	var found []signature.Signature
	for _, r := range list {
		if !mayBeSignature(r) {
			continue
		}
		if err := validDigest(r.Digest); err != nil {
			return found, errkind.New(errkind.Invalid, err)
		}
		if err := f.count(); err != nil {
			return found, err
		}
		doc, err := f.manifest(ctx, r.Digest.String())
		if err != nil {
			return found, err
		}
		if doc == nil || len(doc.Layers) != 1 || !strings.HasPrefix(doc.Layers[0].MediaType, bundleType) {
			continue
		}
		sig := signature.Signature{Origin: "referrer " + r.Digest.String()}
		if sig.Bundle, sig.Problem, err = f.blob(ctx, doc.Layers[0]); err != nil {
			return found, err
		}
		found = append(found, sig)
	}
	return found, nil
}

// mayBeSignature reports whether a referrer can be a signature, as far as the list
// tells: other statements about an image are bundles as well.
func mayBeSignature(r ocispec.Descriptor) bool {
	switch {
	case r.Annotations[predicateNote] != "" && r.Annotations[predicateNote] != signature.SignPredicate:
		return false
	case strings.HasPrefix(r.ArtifactType, bundleType):
		return true
	}
	return r.ArtifactType == "" || r.ArtifactType == emptyConfigType
}

// manifest is the one of a tag or a digest, nil when there is none.
func (f *signatureFinder) manifest(ctx context.Context, tagOrDigest string) (*manifestDoc, error) {
	_, data, err := f.store.fetchManifest(ctx, f.src, tagOrDigest)
	err = certain(err)
	if errkind.Is(err, errkind.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var doc manifestDoc
	if err := json.Unmarshal(data, &doc); err != nil {
		return nil, errkind.Errorf(errkind.Invalid, "manifest %s: %w", tagOrDigest, err)
	}
	return &doc, nil
}

// count counts one signature.
func (f *signatureFinder) count() error {
	if f.left--; f.left < 0 {
		return errkind.Errorf(errkind.Invalid, "there are more than %d signatures", signature.MaxSignatures)
	}
	return nil
}

// blob fetches what a signature consists of. What is wrong with this one alone is
// its problem.
func (f *signatureFinder) blob(ctx context.Context, l ocispec.Descriptor) (data []byte, problem string, err error) {
	if l.Size > signature.MaxSignatureSize {
		return nil, fmt.Sprintf("it has %d bytes, more than %d", l.Size, signature.MaxSignatureSize), nil
	}
	if f.room -= max(l.Size, 0); f.room < 0 {
		return nil, "", errkind.Errorf(errkind.Invalid, "the signatures have more than %d bytes", maxSignatureBytes)
	}
	data, err = f.store.fetchSmall(ctx, f.src, l, signature.MaxSignatureSize)
	switch errkind.Of(err) {
	case errkind.NotFound, errkind.Invalid:
		return nil, err.Error(), nil
	default:
		return data, "", err
	}
}
