package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protodsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/testing/ca"
	"github.com/sigstore/sigstore-go/pkg/tlog"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/cridproject/crid/image"
	"github.com/cridproject/crid/image/signature"
	"github.com/cridproject/crid/internal/testutil"
)

// envVerifier makes the test binary crid-verify.
const envVerifier = "CRID_VERIFY_TEST"

// verifier is a program that is crid-verify, without the second that the race detector
// sleeps at a program's end: it gets no environment.
var verifier string

func TestMain(m *testing.M) {
	if os.Getenv(envVerifier) != "" {
		main()
		return
	}
	dir, err := os.MkdirTemp("", "crid-verify-")
	if err != nil {
		panic(err)
	}
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	verifier = filepath.Join(dir, "crid-verify")
	script := fmt.Sprintf("#!/bin/sh\nGORACE=atexit_sleep_ms=0 %s=1 exec %q\n", envVerifier, self)
	if err := os.WriteFile(verifier, []byte(script), 0o700); err != nil {
		panic(err)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

const (
	issuer  = "https://issuer.example"
	subject = "builds@team.example"

	simpleType = "application/vnd.dev.cosign.simplesigning.v1+json"
	bundleType = "application/vnd.dev.sigstore.bundle.v0.3+json"
)

// node is a registry and what a node with a policy needs to pull from it.
type node struct {
	t      *testing.T
	host   string
	store  *image.Store
	dir    string
	broken atomic.Pointer[regexp.Regexp] // paths that the registry fails at
	layers atomic.Int32                  // requests for blobs
}

// newNode makes a node whose policy has these requirements for the registry.
func newNode(t *testing.T, requirements ...string) *node {
	t.Helper()
	n := &node{t: t, dir: t.TempDir()}
	next := registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(true))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if part := n.broken.Load(); part != nil && part.MatchString(r.URL.Path) {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			n.layers.Add(1)
		}
		next.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	n.host = strings.TrimPrefix(server.URL, "http://")
	n.policy(fmt.Sprintf(`{"default": [{"type": "reject"}], "transports": {"docker": {%q: [%s]}}}`, n.host, strings.Join(requirements, ", ")))
	checker, err := signature.New(signature.Options{PolicyFile: n.policyFile(), Program: verifier})
	if err != nil {
		t.Fatal(err)
	}
	n.store, err = image.New(image.Options{Root: filepath.Join(n.dir, "store"), RegistryDirs: []string{}, Signatures: checker})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.store.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func (n *node) policyFile() string { return filepath.Join(n.dir, "policy.json") }

func (n *node) policy(text string) {
	n.t.Helper()
	if err := os.WriteFile(n.policyFile(), []byte(text), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) pull(ref string) error {
	_, err := n.store.Pull(n.t.Context(), image.PullRequest{Ref: n.host + "/" + ref})
	return err
}

// push makes an image with a random layer.
func (n *node) push(ref string) v1.Hash {
	n.t.Helper()
	img, err := random.Image(64, 1)
	if err != nil {
		n.t.Fatal(err)
	}
	return n.write(ref, img)
}

func (n *node) write(ref string, img v1.Image) v1.Hash {
	n.t.Helper()
	if err := remote.Write(n.name(ref), img); err != nil {
		n.t.Fatal(err)
	}
	h, err := img.Digest()
	if err != nil {
		n.t.Fatal(err)
	}
	return h
}

// pushIndex makes an index with one image, and returns both digests.
func (n *node) pushIndex(ref string) (index, manifest v1.Hash) {
	n.t.Helper()
	img, err := random.Image(64, 1)
	if err != nil {
		n.t.Fatal(err)
	}
	ix := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img})
	if err := remote.WriteIndex(n.name(ref), ix); err != nil {
		n.t.Fatal(err)
	}
	if manifest, err = img.Digest(); err == nil {
		index, err = ix.Digest()
	}
	if err != nil {
		n.t.Fatal(err)
	}
	return index, manifest
}

func (n *node) name(ref string) name.Reference {
	n.t.Helper()
	r, err := name.ParseReference(n.host + "/" + ref)
	if err != nil {
		n.t.Fatal(err)
	}
	return r
}

// simple is a signature as a layer of cosign's tag.
type simple struct {
	payload []byte
	notes   map[string]string
}

// attach writes signatures to the tag for the digest.
func (n *node) attach(repo string, d v1.Hash, sigs ...simple) {
	n.t.Helper()
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	for _, s := range sigs {
		var err error
		if img, err = mutate.Append(img, mutate.Addendum{Layer: static.NewLayer(s.payload, simpleType), Annotations: s.notes}); err != nil {
			n.t.Fatal(err)
		}
	}
	n.write(repo+":"+d.Algorithm+"-"+d.Hex+".sig", img)
}

// refer writes a bundle as a referrer of the digest.
func (n *node) refer(repo string, d v1.Hash, bundle []byte) {
	n.t.Helper()
	about, err := remote.Head(n.name(repo + "@" + d.String()))
	if err != nil {
		n.t.Fatal(err)
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), "application/vnd.oci.empty.v1+json")
	if img, err = mutate.Append(img, mutate.Addendum{Layer: static.NewLayer(bundle, bundleType)}); err != nil {
		n.t.Fatal(err)
	}
	img = mutate.Subject(img, *about).(v1.Image)
	h, err := img.Digest()
	if err != nil {
		n.t.Fatal(err)
	}
	n.write(repo+"@"+h.String(), img)
}

// payload is what cosign signs in the old format.
func payload(ref string, d v1.Hash) []byte {
	return fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, ref, d)
}

// statement is what cosign signs in the bundle format.
func statement(d v1.Hash, predicate string) []byte {
	return fmt.Appendf(nil, `{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":%q}}],"predicateType":%q,"predicate":{}}`, d.Hex, predicate)
}

const signed = "https://sigstore.dev/cosign/sign/v1"

// keys are one of each kind, made once.
var keys = map[string]crypto.Signer{"ecdsa": newECDSA(elliptic.P256()), "p384": newECDSA(elliptic.P384()), "rsa": newRSA(), "ed25519": newEd25519(), "other": newECDSA(elliptic.P256())}

func newECDSA(c elliptic.Curve) crypto.Signer {
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		panic(err)
	}
	return k
}

func newRSA() crypto.Signer {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
}

func newEd25519() crypto.Signer {
	_, k, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	return k
}

func sign(t *testing.T, key crypto.Signer, message []byte) []byte {
	t.Helper()
	opts, digest := crypto.SignerOpts(crypto.SHA256), message
	if _, ok := key.(ed25519.PrivateKey); ok {
		opts = crypto.Hash(0)
	} else {
		sum := sha256.Sum256(message)
		digest = sum[:]
	}
	sig, err := key.Sign(rand.Reader, digest, opts)
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

// byKey signs a payload as cosign does with a key and no log.
func byKey(t *testing.T, key crypto.Signer, payload []byte) simple {
	t.Helper()
	return simple{payload, map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(sign(t, key, payload))}}
}

// byCertificate signs a payload as cosign does without a key.
func byCertificate(t *testing.T, v *ca.VirtualSigstore, who, vouched string, payload []byte, at time.Time) simple {
	t.Helper()
	e, err := v.SignAtTime(who, vouched, payload, at)
	if err != nil {
		t.Fatal(err)
	}
	sig, leaf, p := proofs(t, e)
	logged, err := json.Marshal(map[string]any{
		"SignedEntryTimestamp": promise(t, v, p),
		"Payload": map[string]any{
			"body": p.GetCanonicalizedBody(), "integratedTime": p.GetIntegratedTime(),
			"logIndex": p.GetLogIndex(), "logID": hex.EncodeToString(p.GetLogId().GetKeyId()),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	var chain bytes.Buffer
	for _, c := range authority(v).Intermediates {
		_ = pem.Encode(&chain, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	return simple{payload, map[string]string{
		"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(sig),
		"dev.sigstore.cosign/certificate":    string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw})),
		"dev.sigstore.cosign/chain":          chain.String(),
		"dev.sigstore.cosign/bundle":         string(logged),
	}}
}

// promise is the log's signature of an entry.
func promise(t *testing.T, v *ca.VirtualSigstore, p *protorekor.TransparencyLogEntry) []byte {
	t.Helper()
	set, err := v.RekorSignPayload(tlog.RekorPayload{
		Body: base64.StdEncoding.EncodeToString(p.GetCanonicalizedBody()), IntegratedTime: p.GetIntegratedTime(),
		LogIndex: p.GetLogIndex(), LogID: hex.EncodeToString(p.GetLogId().GetKeyId()),
	})
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// proofs is the signature, its certificate, and the log's entry of it.
func proofs(t *testing.T, e *ca.TestEntity) (sig []byte, leaf *x509.Certificate, p *protorekor.TransparencyLogEntry) {
	t.Helper()
	entries, err := e.TlogEntries()
	if err != nil {
		t.Fatal(err)
	}
	content, err := e.VerificationContent()
	if err != nil {
		t.Fatal(err)
	}
	signed, err := e.SignatureContent()
	if err != nil {
		t.Fatal(err)
	}
	return signed.Signature(), content.Certificate(), entries[0].TransparencyLogEntry()
}

// authority is the CA of a virtual Sigstore.
func authority(v *ca.VirtualSigstore) *root.FulcioCertificateAuthority {
	return v.FulcioCertificateAuthorities()[0].(*root.FulcioCertificateAuthority)
}

// bundleByKey is a bundle with a statement, signed with a key.
func bundleByKey(t *testing.T, key crypto.Signer, statement []byte) []byte {
	t.Helper()
	sig := sign(t, key, dsse.PAE("application/vnd.in-toto+json", statement))
	return bundleOf(t, statement, sig, &protobundle.VerificationMaterial{
		Content: &protobundle.VerificationMaterial_PublicKey{PublicKey: &protocommon.PublicKeyIdentifier{Hint: "any"}},
	})
}

// bundleByCertificate is a bundle with a statement, signed without a key.
func bundleByCertificate(t *testing.T, v *ca.VirtualSigstore, who, vouched string, statement []byte, at time.Time) []byte {
	t.Helper()
	e, err := v.AttestAtTime(who, vouched, statement, at, true)
	if err != nil {
		t.Fatal(err)
	}
	sig, leaf, p := proofs(t, e)
	p.KindVersion = &protorekor.KindVersion{Kind: "dsse", Version: "0.0.1"}
	p.InclusionPromise = &protorekor.InclusionPromise{SignedEntryTimestamp: promise(t, v, p)}
	return bundleOf(t, statement, sig, &protobundle.VerificationMaterial{
		Content:     &protobundle.VerificationMaterial_Certificate{Certificate: &protocommon.X509Certificate{RawBytes: leaf.Raw}},
		TlogEntries: []*protorekor.TransparencyLogEntry{p},
	})
}

func bundleOf(t *testing.T, statement, sig []byte, m *protobundle.VerificationMaterial) []byte {
	t.Helper()
	data, err := protojson.Marshal(&protobundle.Bundle{
		MediaType: bundleType, VerificationMaterial: m,
		Content: &protobundle.Bundle_DsseEnvelope{DsseEnvelope: &protodsse.Envelope{
			Payload: statement, PayloadType: "application/vnd.in-toto+json", Signatures: []*protodsse.Signature{{Sig: sig}},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// newSigstore is a CA, a log and so on, made for the test.
func newSigstore(t *testing.T) *ca.VirtualSigstore {
	t.Helper()
	v, err := ca.NewVirtualSigstore()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// keyRule asks for a signature by the key; extra is more of the requirement.
func keyRule(t *testing.T, key crypto.Signer, extra string) string {
	t.Helper()
	return fmt.Sprintf(`{"type": "sigstoreSigned", "keyData": %q %s}`, testutil.KeyData(t, key.Public()), extra)
}

// certificateRule asks for a signature by a certificate of the CA that is in the log.
func certificateRule(t *testing.T, v *ca.VirtualSigstore, extra string) string {
	t.Helper()
	return certificateRuleOf(t, v, v, extra)
}

// certificateRuleOf trusts the CA of one and the log of another.
func certificateRuleOf(t *testing.T, v, log *ca.VirtualSigstore, extra string) string {
	t.Helper()
	rootPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority(v).Root.Raw})
	for _, c := range authority(v).Intermediates {
		rootPEM = append(rootPEM, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return fmt.Sprintf(`{"type": "sigstoreSigned", "fulcio": {"caData": %q, "oidcIssuer": %q, "subjectEmail": %q}, "rekorPublicKeyData": %q %s}`,
		base64.StdEncoding.EncodeToString(rootPEM), issuer, subject, testutil.KeyData(t, logKey(t, log)), extra)
}

func logKey(t *testing.T, v *ca.VirtualSigstore) crypto.PublicKey {
	t.Helper()
	for _, l := range v.RekorLogs() {
		return l.PublicKey
	}
	t.Fatal("no log")
	return nil
}
