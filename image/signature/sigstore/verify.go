// Package sigstore verifies signatures with the libraries of the Sigstore project.
//
// Only crid-verify links it: the libraries are large. It asks nobody on the network:
// keys, certificate authorities and logs are those of the request. What came from a
// registry is taken for hostile; what was signed is handed back, and judged by the
// caller.
package sigstore

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/options"

	signatures "github.com/cridproject/crid/image/signature"
)

const (
	simpleSigning = "cosign container image signature" // type of a payload in critical.type
	maxChain      = 10                                 // certificates that come with a signature
)

// Verify judges each signature of a request. An error means that the request's trust
// cannot be used; signatures never are one.
func Verify(req signatures.Request) (signatures.Answer, error) {
	t, err := newTrust(req.Trust)
	if err != nil {
		return signatures.Answer{}, err
	}
	var a signatures.Answer
	for _, s := range req.Signatures {
		v, err := t.verify(s)
		if err != nil {
			v = signatures.Verdict{Refused: err.Error()}
		}
		a.Verdicts = append(a.Verdicts, v)
	}
	return a, nil
}

// trust is a request's, parsed.
type trust struct {
	keys            []root.TimeConstrainedVerifier // each key once for every way in which it can sign
	authorities     []*x509.Certificate
	issuer, subject string
	logs            map[string]*root.TransparencyLog // by key ID in hex
}

func newTrust(from signatures.Trust) (*trust, error) {
	t := &trust{issuer: from.Issuer, subject: from.Subject, logs: make(map[string]*root.TransparencyLog)}
	for _, text := range from.Keys {
		key, err := cryptoutils.UnmarshalPEMToPublicKey([]byte(text))
		if err != nil {
			return nil, fmt.Errorf("public key: %w", err)
		}
		verifiers, err := verifiersOf(key)
		if err != nil {
			return nil, err
		}
		t.keys = append(t.keys, verifiers...)
	}
	for _, text := range from.Authorities {
		certs, err := cryptoutils.UnmarshalCertificatesFromPEM([]byte(text))
		if err != nil {
			return nil, fmt.Errorf("certificate authority: %w", err)
		}
		t.authorities = append(t.authorities, certs...)
	}
	for _, text := range from.Logs {
		key, err := cryptoutils.UnmarshalPEMToPublicKey([]byte(text))
		if err != nil {
			return nil, fmt.Errorf("key of a transparency log: %w", err)
		}
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			return nil, fmt.Errorf("key of a transparency log: %w", err)
		}
		id := sha256.Sum256(der)
		t.logs[hex.EncodeToString(id[:])] = &root.TransparencyLog{
			ID: id[:], PublicKey: key, HashFunc: crypto.SHA256, SignatureHashFunc: crypto.SHA256,
			ValidityPeriodStart: time.Unix(0, 0), // required; the policy has none
		}
	}
	if len(t.keys) == 0 && (len(t.authorities) == 0 || t.issuer == "" || t.subject == "" || len(t.logs) == 0) {
		return nil, errors.New("neither a key nor a certificate authority with an issuer, a subject and a log is trusted")
	}
	return t, nil
}

// verifiersOf is the key with each hash and variant that cosign has signed with.
func verifiersOf(key crypto.PublicKey) ([]root.TimeConstrainedVerifier, error) {
	usual, err := signature.LoadDefaultVerifier(key)
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	// Older releases use SHA-256 with every curve and key size.
	var other signature.Verifier
	if _, ok := key.(ed25519.PublicKey); ok {
		other, err = signature.LoadDefaultVerifier(key, options.WithED25519ph())
	} else {
		other, err = signature.LoadVerifier(key, crypto.SHA256)
	}
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	never := time.Time{} // keys of a policy do not expire
	return []root.TimeConstrainedVerifier{root.NewExpiringKey(usual, never, never), root.NewExpiringKey(other, never, never)}, nil
}

// material is what the library is to trust, with one of the keys, if any.
type material struct {
	root.BaseTrustedMaterial
	key         root.TimeConstrainedVerifier
	authorities []root.CertificateAuthority
	logs        map[string]*root.TransparencyLog
}

func (m *material) PublicKeyVerifier(string) (root.TimeConstrainedVerifier, error) {
	if m.key == nil {
		return nil, errors.New("it was made with a key, not with a certificate")
	}
	return m.key, nil
}

func (m *material) FulcioCertificateAuthorities() []root.CertificateAuthority { return m.authorities }

func (m *material) RekorLogs() map[string]*root.TransparencyLog { return m.logs }

// verify judges one signature.
func (t *trust) verify(s signatures.Signature) (signatures.Verdict, error) {
	if s.Bundle != nil {
		return t.verifyBundle(s.Bundle)
	}
	if len(s.Payload) == 0 {
		return signatures.Verdict{}, errors.New("it signs nothing")
	}
	b, chain, err := convert(s)
	if err != nil {
		return signatures.Verdict{}, err
	}
	if _, err := t.check(b, chain, s.Payload); err != nil {
		return signatures.Verdict{}, err
	}
	return readPayload(s.Payload)
}

// verifyBundle judges a signature in the bundle format, of which cosign makes
// statements of in-toto.
func (t *trust) verifyBundle(data []byte) (signatures.Verdict, error) {
	b := new(bundle.Bundle)
	if err := b.UnmarshalJSON(data); err != nil {
		return signatures.Verdict{}, fmt.Errorf("it is no bundle that can be verified: %w", err)
	}
	if b.GetDsseEnvelope() == nil {
		return signatures.Verdict{}, errors.New("its bundle signs a file, not a statement about an image")
	}
	result, err := t.check(b, nil, nil)
	if err != nil {
		return signatures.Verdict{}, err
	}
	return readStatement(result)
}

// check does the cryptography. payload is what is signed when it is not in the bundle.
func (t *trust) check(b *bundle.Bundle, chain []*x509.Certificate, payload []byte) (*verify.VerificationResult, error) {
	content, err := b.VerificationContent()
	if err != nil {
		return nil, err
	}
	var opts []verify.VerifierOption
	if len(t.logs) > 0 {
		opts = append(opts, verify.WithTransparencyLog(1))
	}
	hasCertificate := content.Certificate() != nil
	switch {
	case len(t.keys) > 0 && hasCertificate:
		return nil, errors.New("it was made with a certificate, not with a key of the policy")
	case len(t.keys) > 0:
		return t.checkKeys(b, append(opts, verify.WithNoObserverTimestamps()), payload)
	case !hasCertificate:
		return nil, errors.New("it was made with a key, not with a certificate of the policy's authority")
	}
	if err := t.checkSubject(content.Certificate()); err != nil {
		return nil, err
	}
	m := &material{logs: t.logs}
	for _, ca := range t.authorities {
		m.authorities = append(m.authorities, &root.FulcioCertificateAuthority{Root: ca, Intermediates: slices.Concat(t.authorities, chain)})
	}
	// The log's signed promise is what says when the certificate was used.
	v, err := verify.NewVerifier(m, append(opts, verify.WithIntegratedTimestamps(1))...)
	if err != nil {
		return nil, err
	}
	who, err := verify.NewShortCertificateIdentity(t.issuer, "", t.subject, "")
	if err != nil {
		return nil, err
	}
	return v.Verify(b, verify.NewPolicy(policyArtifact(payload), verify.WithCertificateIdentity(who)))
}

// checkSubject says clearly what the library would refuse with less words, and makes
// sure that an email address was certified as such.
func (t *trust) checkSubject(c *x509.Certificate) error {
	if strings.Contains(t.subject, "://") {
		for _, u := range c.URIs {
			if u.String() == t.subject {
				return nil
			}
		}
	} else if slices.Contains(c.EmailAddresses, t.subject) {
		return nil
	}
	names := slices.Clone(c.EmailAddresses)
	for _, u := range c.URIs {
		names = append(names, u.String())
	}
	return fmt.Errorf("its certificate, not verified, is for %q, not for %q", names, t.subject)
}

// checkKeys tries one key after the other.
func (t *trust) checkKeys(b *bundle.Bundle, opts []verify.VerifierOption, payload []byte) (*verify.VerificationResult, error) {
	var first error
	for _, key := range t.keys {
		v, err := verify.NewVerifier(&material{key: key, logs: t.logs}, opts...)
		if err != nil {
			return nil, err
		}
		result, err := v.Verify(b, verify.NewPolicy(policyArtifact(payload), verify.WithKey()))
		if err == nil {
			return result, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, fmt.Errorf("it was made with none of the policy's keys, or is damaged: %w", first)
}

// convert makes a bundle of a signature with a payload beside it. chain are the
// certificates that came with it.
func convert(s signatures.Signature) (b *bundle.Bundle, chain []*x509.Certificate, err error) {
	raw, err := base64.StdEncoding.DecodeString(s.Base64)
	if err != nil || len(raw) == 0 {
		return nil, nil, errors.New("its annotation dev.cosignproject.cosign/signature is missing or no base64")
	}
	digest := sha256.Sum256(s.Payload)
	p := &protobundle.Bundle{
		MediaType:            "application/vnd.dev.sigstore.bundle+json;version=0.1", // the one with promises of a log alone
		VerificationMaterial: &protobundle.VerificationMaterial{},
		Content: &protobundle.Bundle_MessageSignature{MessageSignature: &protocommon.MessageSignature{
			MessageDigest: &protocommon.HashOutput{Algorithm: protocommon.HashAlgorithm_SHA2_256, Digest: digest[:]},
			Signature:     raw,
		}},
	}
	if s.Certificate == "" {
		p.VerificationMaterial.Content = &protobundle.VerificationMaterial_PublicKey{PublicKey: &protocommon.PublicKeyIdentifier{}}
	} else {
		leaf, err := certificates(s.Certificate)
		if err != nil || len(leaf) == 0 {
			return nil, nil, fmt.Errorf("its certificate: no certificate in PEM: %w", err)
		}
		if chain, err = certificates(s.Chain); err != nil {
			return nil, nil, fmt.Errorf("its certificate chain: %w", err)
		}
		p.VerificationMaterial.Content = &protobundle.VerificationMaterial_X509CertificateChain{
			X509CertificateChain: &protocommon.X509CertificateChain{Certificates: []*protocommon.X509Certificate{{RawBytes: leaf[0].Raw}}},
		}
	}
	if s.LogEntry != "" {
		entry, err := convertEntry(s.LogEntry)
		if err != nil {
			return nil, nil, fmt.Errorf("its log entry: %w", err)
		}
		p.VerificationMaterial.TlogEntries = []*protorekor.TransparencyLogEntry{entry}
	}
	b, err = bundle.NewBundle(p)
	return b, chain, err
}

func certificates(pem string) ([]*x509.Certificate, error) {
	if pem == "" {
		return nil, nil
	}
	certs, err := cryptoutils.UnmarshalCertificatesFromPEM([]byte(pem))
	if err == nil && len(certs) > maxChain {
		err = fmt.Errorf("more than %d certificates", maxChain)
	}
	return certs, err
}

// convertEntry reads the annotation dev.sigstore.cosign/bundle: what a log has
// stored, and its signed promise.
func convertEntry(text string) (*protorekor.TransparencyLogEntry, error) {
	var e struct {
		SignedEntryTimestamp []byte
		Payload              struct {
			Body           []byte `json:"body"`
			IntegratedTime int64  `json:"integratedTime"`
			LogIndex       int64  `json:"logIndex"`
			LogID          string `json:"logID"`
		}
	}
	if err := json.Unmarshal([]byte(text), &e); err != nil {
		return nil, err
	}
	id, err := hex.DecodeString(e.Payload.LogID)
	if err != nil {
		return nil, fmt.Errorf("ID of the log: %w", err)
	}
	var kind struct {
		Kind       string `json:"kind"`
		APIVersion string `json:"apiVersion"`
	}
	if err := json.Unmarshal(e.Payload.Body, &kind); err != nil {
		return nil, fmt.Errorf("its body: %w", err)
	}
	return &protorekor.TransparencyLogEntry{
		LogIndex:          e.Payload.LogIndex,
		LogId:             &protocommon.LogId{KeyId: id},
		KindVersion:       &protorekor.KindVersion{Kind: kind.Kind, Version: kind.APIVersion},
		IntegratedTime:    e.Payload.IntegratedTime,
		InclusionPromise:  &protorekor.InclusionPromise{SignedEntryTimestamp: e.SignedEntryTimestamp},
		CanonicalizedBody: e.Payload.Body,
	}, nil
}

// readPayload reads a verified payload in the "simple signing" format,
// containers-signature(5).
func readPayload(data []byte) (signatures.Verdict, error) {
	var p struct {
		Critical struct {
			Type  string `json:"type"`
			Image struct {
				Digest string `json:"docker-manifest-digest"`
			} `json:"image"`
			Identity struct {
				Reference string `json:"docker-reference"`
			} `json:"identity"`
		} `json:"critical"`
	}
	if err := json.Unmarshal(data, &p); err != nil {
		return signatures.Verdict{}, fmt.Errorf("its payload: %w", err)
	}
	if p.Critical.Type != simpleSigning {
		return signatures.Verdict{}, fmt.Errorf("its payload is of type %q, must be %q", p.Critical.Type, simpleSigning)
	}
	if p.Critical.Image.Digest == "" {
		return signatures.Verdict{}, errors.New("its payload names no digest")
	}
	return signatures.Verdict{Digests: []string{p.Critical.Image.Digest}, Name: p.Critical.Identity.Reference}, nil
}

// readStatement reads a verified statement. One that says something about an image, as
// what it was built from, is no signature of the image: a scan's bad result is
// signed as well.
func readStatement(r *verify.VerificationResult) (signatures.Verdict, error) {
	s := r.Statement
	if s == nil {
		return signatures.Verdict{}, errors.New("it has no statement")
	}
	if s.GetPredicateType() != signatures.SignPredicate {
		return signatures.Verdict{}, fmt.Errorf("it is a statement of type %q, not a signature (%q)", s.GetPredicateType(), signatures.SignPredicate)
	}
	var v signatures.Verdict
	for _, subject := range s.GetSubject() {
		if hex := subject.GetDigest()["sha256"]; hex != "" {
			v.Digests = append(v.Digests, "sha256:"+hex)
		}
		// A name counts when there is one for all that is signed.
		if len(s.GetSubject()) == 1 {
			v.Name = subject.GetName()
		}
	}
	if len(v.Digests) == 0 {
		return v, errors.New("its statement names no SHA-256 digest")
	}
	return v, nil
}

// policyArtifact tells the library what is signed: payload, or what the bundle holds.
func policyArtifact(payload []byte) verify.ArtifactPolicyOption {
	if payload == nil {
		return verify.WithoutArtifactUnsafe() // the caller compares the statement's digests
	}
	return verify.WithArtifact(bytes.NewReader(payload))
}
