package main

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
)

const (
	anyTag = `, "signedIdentity": {"type": "matchRepository"}`
	noName = `, "signedIdentity": {"type": "matchDigest"}`
)

// TestSignatures pulls images with signatures of all kinds, good and bad. want is
// part of the refusal, "" when the image must be accepted.
func TestSignatures(t *testing.T) {
	v, foreign := newSigstore(t), newSigstore(t)
	soon := time.Now().Add(5 * time.Minute) // while the certificates of the test hold
	key := keys["ecdsa"]
	byCA := certificateRule(t, v, anyTag)
	wrongDigest := v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("ab", 32)}
	for _, tt := range []struct {
		name string
		rule string
		sign func(n *node, repo string, d v1.Hash) // repo is with the host
		want string
	}{
		{"ECDSA", keyRule(t, key, anyTag), func(n *node, repo string, d v1.Hash) {
			n.attach("app", d, byKey(t, key, payload(repo, d)))
		}, ""},
		{"ECDSA P-384 with SHA-256", keyRule(t, keys["p384"], anyTag), func(n *node, repo string, d v1.Hash) {
			n.attach("app", d, byKey(t, keys["p384"], payload(repo, d)))
		}, ""},
		{"RSA", keyRule(t, keys["rsa"], anyTag), func(n *node, repo string, d v1.Hash) {
			n.attach("app", d, byKey(t, keys["rsa"], payload(repo, d)))
		}, ""},
		{"Ed25519", keyRule(t, keys["ed25519"], anyTag), func(n *node, repo string, d v1.Hash) {
			n.attach("app", d, byKey(t, keys["ed25519"], payload(repo, d)))
		}, ""},
		{"tag in the signature", keyRule(t, key, ""), func(n *node, repo string, d v1.Hash) {
			n.attach("app", d, byKey(t, key, payload(repo+":v1", d)))
		}, ""},
		{"the second of two", keyRule(t, key, anyTag), func(n *node, repo string, d v1.Hash) {
			n.attach("app", d, byKey(t, keys["other"], payload(repo, d)), byKey(t, key, payload(repo, d)))
		}, ""},
		{"certificate", byCA, func(n *node, repo string, d v1.Hash) {
			n.attach("app", d, byCertificate(t, v, subject, issuer, payload(repo, d), soon))
		}, ""},
		{"bundle by key", keyRule(t, key, noName), func(n *node, _ string, d v1.Hash) {
			n.refer("app", d, bundleByKey(t, key, statement(d, signed)))
		}, ""},
		{"bundle by Ed25519", keyRule(t, keys["ed25519"], noName), func(n *node, _ string, d v1.Hash) {
			n.refer("app", d, bundleByKey(t, keys["ed25519"], statement(d, signed)))
		}, ""},
		{"bundle by certificate", certificateRule(t, v, noName), func(n *node, _ string, d v1.Hash) {
			n.refer("app", d, bundleByCertificate(t, v, subject, issuer, statement(d, signed), soon))
		}, ""},
		{"bundle beside a bad old signature", keyRule(t, key, noName), func(n *node, repo string, d v1.Hash) {
			n.attach("app", d, byKey(t, keys["other"], payload(repo, d)))
			n.refer("app", d, bundleByKey(t, key, statement(d, signed)))
		}, ""},

		{"none", keyRule(t, key, anyTag), func(*node, string, v1.Hash) {}, "the registry has no signature of it"},
		{"wrong key", keyRule(t, key, anyTag), func(n *node, repo string, d v1.Hash) {
			n.attach("app", d, byKey(t, keys["other"], payload(repo, d)))
		}, "none of 1 signatures of it counts: layer 1 of the tag sha256-"},
		{"another digest", keyRule(t, key, anyTag), func(n *node, repo string, d v1.Hash) {
			n.attach("app", d, byKey(t, key, payload(repo, wrongDigest)))
		}, "it is for " + wrongDigest.String() + ", not for sha256:"},
		{"another repository", keyRule(t, key, anyTag), func(n *node, repo string, d v1.Hash) {
			n.attach("app", d, byKey(t, key, payload(repo+"x", d)))
		}, "which is not the name that matchRepository asks for"},
		{"no tag where one is asked for", keyRule(t, key, ""), func(n *node, repo string, d v1.Hash) {
			n.attach("app", d, byKey(t, key, payload(repo, d)))
		}, `cosign signs no tag: "signedIdentity": {"type": "matchRepository"}`},
		{"another tag", keyRule(t, key, ""), func(n *node, repo string, d v1.Hash) {
			n.attach("app", d, byKey(t, key, payload(repo+":v2", d)))
		}, "which is not the name that matchRepoDigestOrExact asks for"},
		{"changed payload", keyRule(t, key, anyTag), func(n *node, repo string, d v1.Hash) {
			s := byKey(t, key, payload(repo, wrongDigest))
			s.payload = payload(repo, d)
			n.attach("app", d, s)
		}, "made with none of the policy's keys, or is damaged"},
		{"no annotation", keyRule(t, key, anyTag), func(n *node, repo string, d v1.Hash) {
			n.attach("app", d, simple{payload: payload(repo, d)})
		}, "it has no annotation dev.cosignproject.cosign/signature"},
		{"another type of payload", keyRule(t, key, anyTag), func(n *node, repo string, d v1.Hash) {
			p := bytes.Replace(payload(repo, d), []byte("cosign container image"), []byte("another kind of"), 1)
			n.attach("app", d, byKey(t, key, p))
		}, "its payload is of type"},
		{"huge payload", keyRule(t, key, anyTag), func(n *node, repo string, d v1.Hash) {
			n.attach("app", d, byKey(t, key, append(payload(repo, d), bytes.Repeat([]byte(" "), 1<<20)...)))
		}, "more than 1048576"},
		{"more than 100", keyRule(t, key, anyTag), func(n *node, repo string, d v1.Hash) {
			n.attach("app", d, append(make([]simple, 100), byKey(t, key, payload(repo, d)))...)
		}, "there are more than 100 signatures"},
		{"huge manifest", keyRule(t, key, anyTag), func(n *node, repo string, d v1.Hash) {
			s := byKey(t, key, payload(repo, d))
			s.notes["padding"] = strings.Repeat("x", 5<<20)
			n.attach("app", d, s)
		}, "no signature of it was found; not all could be looked at: "},
		{"certificate where a key is asked for", keyRule(t, key, anyTag), func(n *node, repo string, d v1.Hash) {
			n.attach("app", d, byCertificate(t, v, subject, issuer, payload(repo, d), soon))
		}, "it was made with a certificate"},
		{"key where a certificate is asked for", byCA, func(n *node, repo string, d v1.Hash) {
			n.attach("app", d, byKey(t, key, payload(repo, d)))
		}, "it was made with a key"},
		{"another subject", byCA, func(n *node, repo string, d v1.Hash) {
			n.attach("app", d, byCertificate(t, v, "mallory@team.example", issuer, payload(repo, d), soon))
		}, `is for ["mallory@team.example"]`},
		{"another issuer", byCA, func(n *node, repo string, d v1.Hash) {
			n.attach("app", d, byCertificate(t, v, subject, "https://mallory.example", payload(repo, d), soon))
		}, "expected issuer value"},
		{"expired certificate", byCA, func(n *node, repo string, d v1.Hash) {
			n.attach("app", d, byCertificate(t, v, subject, issuer, payload(repo, d), time.Now().Add(time.Hour)))
		}, "outside certificate validity"},
		{"another log", byCA, func(n *node, repo string, d v1.Hash) {
			n.attach("app", d, byCertificate(t, foreign, subject, issuer, payload(repo, d), soon))
		}, "not enough verified log entries"},
		{"another CA, which uses the trusted log", certificateRuleOf(t, v, foreign, anyTag), func(n *node, repo string, d v1.Hash) {
			n.attach("app", d, byCertificate(t, foreign, subject, issuer, payload(repo, d), soon))
		}, "leaf certificate verification failed"},
		{"no log entry", byCA, func(n *node, repo string, d v1.Hash) {
			s := byCertificate(t, v, subject, issuer, payload(repo, d), soon)
			delete(s.notes, "dev.sigstore.cosign/bundle")
			n.attach("app", d, s)
		}, "not enough verified log entries"},
		{"log entry of another signature", byCA, func(n *node, repo string, d v1.Hash) {
			s := byCertificate(t, v, subject, issuer, payload(repo, d), soon)
			other := byCertificate(t, v, subject, issuer, payload(repo, d), soon)
			s.notes["dev.sigstore.cosign/bundle"] = other.notes["dev.sigstore.cosign/bundle"]
			n.attach("app", d, s)
		}, "transparency log signature does not match"},
		{"key without the log that is asked for", keyRule(t, key, fmt.Sprintf(`, "rekorPublicKeyData": %q`, testutil.KeyData(t, logKey(t, v)))+anyTag), func(n *node, repo string, d v1.Hash) {
			n.attach("app", d, byKey(t, key, payload(repo, d)))
		}, "not enough verified log entries"},
		{"bundle without a name", keyRule(t, key, anyTag), func(n *node, _ string, d v1.Hash) {
			n.refer("app", d, bundleByKey(t, key, statement(d, signed)))
		}, `"signedIdentity": {"type": "matchDigest"} accepts it`},
		{"bundle of another subject", keyRule(t, key, noName), func(n *node, _ string, d v1.Hash) {
			n.refer("app", d, bundleByKey(t, key, statement(wrongDigest, signed)))
		}, "it is for " + wrongDigest.String()},
		{"statement that is no signature", keyRule(t, key, noName), func(n *node, _ string, d v1.Hash) {
			n.refer("app", d, bundleByKey(t, key, statement(d, "https://slsa.dev/provenance/v1")))
		}, "not a signature"},
		{"bundle by another key", keyRule(t, key, noName), func(n *node, _ string, d v1.Hash) {
			n.refer("app", d, bundleByKey(t, keys["other"], statement(d, signed)))
		}, "none of 1 signatures of it counts: referrer sha256:"},
		{"expired bundle", certificateRule(t, v, noName), func(n *node, _ string, d v1.Hash) {
			n.refer("app", d, bundleByCertificate(t, v, subject, issuer, statement(d, signed), time.Now().Add(time.Hour)))
		}, "outside certificate validity"},
		{"no bundle", keyRule(t, key, noName), func(n *node, _ string, d v1.Hash) {
			n.refer("app", d, []byte(`{"a":`))
		}, "it is no bundle that can be verified"},
		{"two requirements, one met", keyRule(t, key, anyTag) + "," + keyRule(t, keys["other"], anyTag), func(n *node, repo string, d v1.Hash) {
			n.attach("app", d, byKey(t, key, payload(repo, d)))
		}, "[1] (sigstoreSigned) is not met"},
		{"two requirements, both met", keyRule(t, key, anyTag) + "," + keyRule(t, keys["other"], anyTag), func(n *node, repo string, d v1.Hash) {
			n.attach("app", d, byKey(t, key, payload(repo, d)), byKey(t, keys["other"], payload(repo, d)))
		}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, tt.rule)
			n.t = t
			d := n.push("app:v1")
			tt.sign(n, n.host+"/app", d)
			n.check("app:v1", tt.want)
		})
	}
}

// check pulls, and expects a refusal that says want, or none.
func (n *node) check(ref, want string) {
	n.t.Helper()
	err := n.pull(ref)
	if want == "" {
		if err != nil {
			n.t.Errorf("Pull(%s) = %v, want it accepted", ref, err)
		}
		return
	}
	begin := "SignatureValidationFailed: image " + n.host + "/" + ref + ": signature policy " + n.policyFile()
	if !errkind.Is(err, errkind.BadState) || !strings.HasPrefix(err.Error(), begin) || !strings.Contains(err.Error(), want) {
		n.t.Errorf("Pull(%s) = %v (%v)\nwant BadState that begins with %q and says %q", ref, err, errkind.Of(err), begin, want)
	}
	if len(n.store.List()) > 0 {
		n.t.Errorf("List = %v after a refused pull, want none", n.store.List())
	}
}

// TestIndexSigned accepts signatures of an index and of the manifest in it.
func TestIndexSigned(t *testing.T) {
	key := keys["ecdsa"]
	for _, what := range []string{"index", "manifest"} {
		t.Run(what, func(t *testing.T) {
			n := newNode(t, keyRule(t, key, anyTag))
			index, manifest := n.pushIndex("app:v1")
			n.check("app:v1", "has no signature")
			d := index
			if what == "manifest" {
				d = manifest
			}
			n.attach("app", d, byKey(t, key, payload(n.host+"/app", d)))
			n.check("app:v1", "")
			if err := n.pull("app@" + index.String()); err != nil {
				t.Errorf("Pull by digest = %v, want it accepted", err)
			}
		})
	}
}

// TestEachPullIsVerified moves a tag to an image that is not signed, changes the policy,
// and breaks it: what the store has does not help.
func TestEachPullIsVerified(t *testing.T) {
	key := keys["ecdsa"]
	n := newNode(t, keyRule(t, key, anyTag))
	d := n.push("app:v1")
	n.attach("app", d, byKey(t, key, payload(n.host+"/app", d)))
	n.check("app:v1", "")

	fetched := n.layers.Load()
	refused := func(ref, want string) {
		t.Helper()
		if err := n.pull(ref); !errkind.Is(err, errkind.BadState) || !strings.HasPrefix(err.Error(), "SignatureValidationFailed: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("Pull(%s) = %v, want a refusal that says %q", ref, err, want)
		}
	}
	n.push("app:v1")
	refused("app:v1", "has no signature")
	if got := n.layers.Load() - fetched; got > 1 {
		t.Errorf("a refused pull fetched %d blobs, want its configuration at most", got)
	}
	n.policy(`{"default": [{"type": "reject"}]}`)
	refused("app@"+d.String(), "default[0] rejects it")
	n.policy(`{"default": [`)
	refused("app@"+d.String(), "no image is accepted while its file is wrong: signature policy "+n.policyFile()+": line 1: unexpected end")
	n.policy(`{"default": [{"type": "insecureAcceptAnything"}]}`)
	n.check("app@"+d.String(), "")
	n.check("app:v1", "")
}

// TestRegistryFailsAtSignatures does not take a registry that is ill for one without
// signatures.
func TestRegistryFailsAtSignatures(t *testing.T) {
	key := keys["ecdsa"]
	tag := regexp.MustCompile(`/manifests/sha256-\w+\.sig$`)
	referrers := regexp.MustCompile(`/referrers/|/manifests/sha256-\w+$`) // the API, and the tag in its place
	for _, part := range []*regexp.Regexp{tag, referrers, regexp.MustCompile(`/referrers/`)} {
		n := newNode(t, keyRule(t, key, anyTag))
		n.push("app:v1")
		n.broken.Store(part)
		if err := n.pull("app:v1"); !errkind.Is(err, errkind.Unavailable) || !strings.HasPrefix(err.Error(), "RegistryUnavailable: ") {
			t.Errorf("Pull, %s broken = %v, want RegistryUnavailable", part, err)
		}
	}
	// A good signature that can be had is enough.
	n := newNode(t, keyRule(t, key, anyTag))
	d := n.push("app:v1")
	n.attach("app", d, byKey(t, key, payload(n.host+"/app", d)))
	n.broken.Store(referrers)
	n.check("app:v1", "")
}

// TestRequest refuses what crid does not send.
func TestRequest(t *testing.T) {
	for in, want := range map[string]string{
		"":                            "request: EOF",
		`{"trust": {"more": true}}`:   "unknown field",
		`{"trust": {}}`:               "neither a key nor",
		`{"trust": {"keys": ["no"]}}`: "public key: ",
	} {
		var out bytes.Buffer
		if err := run(strings.NewReader(in), &out); err == nil || !strings.Contains(err.Error(), want) || out.Len() > 0 {
			t.Errorf("run(%s) = %v, %q, want an error that says %q and no answer", in, err, out.String(), want)
		}
	}
}
