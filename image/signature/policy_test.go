package signature

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/cridproject/crid/internal/errkind"
)

// testKey and testCA are PEM files.
var testKey, testCA = makeKeys()

func makeKeys() (key, ca string) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	der, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		panic(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true}
	cert, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	if err != nil {
		panic(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}))
}

func inBase64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// TestParseErrors says of each wrong file where it is wrong, and accepts it mended.
func TestParseErrors(t *testing.T) {
	dir := t.TempDir()
	keyPath := filepath.Join(dir, "key.pub")
	if err := os.WriteFile(keyPath, []byte(testKey), 0o600); err != nil {
		t.Fatal(err)
	}
	key, ca := inBase64(testKey), inBase64(testCA)
	one := func(requirement string) string { return `{"default": [` + requirement + `]}` }
	scope := func(s string) string {
		return `{"default": [{"type": "reject"}], "transports": {"docker": {"` + s + `": [{"type": "reject"}]}}}`
	}
	signed := func(more string) string {
		return one(`{"type": "sigstoreSigned", "keyData": "` + key + `"` + more + `}`)
	}
	keyless := func(fulcio string) string {
		return one(`{"type": "sigstoreSigned", "rekorPublicKeyData": "` + key + `", "fulcio": {` + fulcio + `}}`)
	}
	for _, tt := range []struct {
		name, in string
		want     string // "" means right
	}{
		{"accept all", one(`{"type": "insecureAcceptAnything"}`), ""},
		{"key", signed(``), ""},
		{"key file", one(`{"type": "sigstoreSigned", "keyPath": "` + keyPath + `"}`), ""},
		{"key files", one(`{"type": "sigstoreSigned", "keyPaths": ["` + keyPath + `", "` + keyPath + `"]}`), ""},
		{"key and log", signed(`, "rekorPublicKeyData": "` + key + `"`), ""},
		{"certificate", keyless(`"caData": "` + ca + `", "oidcIssuer": "https://i.example", "subjectEmail": "a@b.example"`), ""},
		{"remap", signed(`, "signedIdentity": {"type": "remapIdentity", "prefix": "mirror.example", "signedPrefix": "docker.io/library"}`), ""},
		{"registry", scope("registry.example:5000"), ""},
		{"namespace", scope("registry.example/team"), ""},
		{"hub's", scope("docker.io/library/busybox"), ""},
		{"tag", scope("registry.example/team/app:v1"), ""},
		{"wildcard", scope("*.example.com"), ""},
		{"local", scope("localhost:5000"), ""},
		{"transport", scope(""), ""},
		{"another transport", `{"default": [{"type": "reject"}], "transports": {"dir": {"/srv": [{"type": "reject"}]}}}`, ""},

		{"empty", ``, "unexpected end of JSON input"},
		{"syntax", "{\n\"default\": [}\n", "line 2: invalid character '}'"},
		{"no object", `[]`, "must be an object"},
		{"no default", `{}`, "default: is missing"},
		{"empty list", `{"default": []}`, "default: must be a list of requirements"},
		{"unknown key", `{"default": [{"type": "reject"}], "tranports": {}}`, "tranports: is not known here"},
		{"twice", `{"default": [{"type": "reject"}], "default": [{"type": "insecureAcceptAnything"}]}`, "default: is there twice"},
		{"twice, by another spelling", `{"default": [{"type": "reject"}], "def\u0061ult": [{"type": "insecureAcceptAnything"}]}`, "default: is there twice"},
		{"twice inside", one(`{"type": "reject", "type": "insecureAcceptAnything"}`), "default[0].type: is there twice"},
		{"unknown type", one(`{"type": "accept"}`), `default[0].type: is "accept", must be sigstoreSigned, reject or insecureAcceptAnything`},
		{"no type", one(`{}`), `default[0].type: is ""`},
		{"type of another case", one(`{"Type": "reject"}`), `default[0].type: is ""`},
		{"GPG", one(`{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k"}`), "default[0].type: signedBy, signatures by GPG, is not supported; use sigstoreSigned"},
		{"more beside reject", one(`{"type": "reject", "keyPath": "/k"}`), "default[0].keyPath: is not known here"},
		{"no key", one(`{"type": "sigstoreSigned"}`), "default[0]: must have a key"},
		{"two keys", signed(`, "keyPath": "` + keyPath + `"`), "default[0].keyData: cannot be there beside keyPath"},
		{"pki", one(`{"type": "sigstoreSigned", "pki": {}}`), "default[0].pki: is not supported"},
		{"missing file", one(`{"type": "sigstoreSigned", "keyPath": "/absent/key.pub"}`), "default[0].keyPath: open /absent/key.pub: no such file"},
		{"relative file", one(`{"type": "sigstoreSigned", "keyPath": "key.pub"}`), `default[0].keyPath: is "key.pub", must be an absolute path`},
		{"bad base64", one(`{"type": "sigstoreSigned", "keyData": "???"}`), "default[0].keyData: must be base64 of a PEM file"},
		{"no PEM", one(`{"type": "sigstoreSigned", "keyDatas": ["` + key + `", "aGVsbG8="]}`), "default[0].keyDatas[1]: must have one public key in PEM"},
		{"two in one", one(`{"type": "sigstoreSigned", "keyData": "` + inBase64(testKey+testKey) + `"}`), "must have one public key in PEM"},
		{"certificate as key", one(`{"type": "sigstoreSigned", "keyData": "` + ca + `"}`), "has a CERTIFICATE in PEM, must be a PUBLIC KEY"},
		{"key as number", one(`{"type": "sigstoreSigned", "keyData": 7}`), "default[0].keyData: must be a text"},
		{"key as null", one(`{"type": "sigstoreSigned", "keyPath": null}`), "default[0].keyPath: must be a text"},
		{"no CA", keyless(`"oidcIssuer": "https://i.example", "subjectEmail": "a@b.example"`), "default[0].fulcio: must have caPath or caData"},
		{"key as CA", keyless(`"caData": "` + key + `", "oidcIssuer": "i", "subjectEmail": "s"`), "default[0].fulcio.caData: must have certificates in PEM"},
		{"no subject", keyless(`"caData": "` + ca + `", "oidcIssuer": "i"`), "default[0].fulcio: must have oidcIssuer and subjectEmail"},
		{"no log", one(`{"type": "sigstoreSigned", "fulcio": {"caData": "` + ca + `", "oidcIssuer": "i", "subjectEmail": "s"}}`), "default[0]: must have a rekorPublicKeyPath"},
		{"key and certificate", signed(`, "rekorPublicKeyData": "` + key + `", "fulcio": {}`), "default[0]: must have a key (keyPath, keyPaths, keyData, keyDatas) or fulcio, and not both"},
		{"identity", signed(`, "signedIdentity": {"type": "matchAny"}`), `default[0].signedIdentity.type: is "matchAny", must be one of`},
		{"reference without tag", signed(`, "signedIdentity": {"type": "exactReference", "dockerReference": "a.example/b"}`), "default[0].signedIdentity.dockerReference: is \"a.example/b\", must have a tag"},
		{"repository with tag", signed(`, "signedIdentity": {"type": "exactRepository", "dockerRepository": "a.example/b:c"}`), "must have no tag"},
		{"prefix", signed(`, "signedIdentity": {"type": "remapIdentity", "prefix": "busybox", "signedPrefix": "a.example"}`), "default[0].signedIdentity.prefix: is \"busybox\", must be a registry"},
		{"short name", scope("busybox"), `transports.docker["busybox"]: no image can have this scope`},
		{"short path", scope("library/busybox"), "no image can have this scope"},
		{"scheme", scope("https://registry.example"), "no image can have this scope"},
		{"two wildcards", scope("*.*.example"), "no image can have this scope"},
		{"slash", scope("registry.example/"), "no image can have this scope"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parse([]byte(tt.in))
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("parse = %v, want %q", err, tt.want)
			}
		})
	}
}

// TestFind finds the most specific scope.
func TestFind(t *testing.T) {
	const accept, no = `[{"type": "insecureAcceptAnything"}]`, `[{"type": "reject"}]`
	p, err := parse(fmt.Appendf(nil, `{"default": %[2]s, "transports": {"docker": {
		"registry.example": %[1]s, "registry.example/team": %[2]s, "registry.example/team/app": %[1]s,
		"registry.example/team/app:old": %[2]s, "registry.example/team/app@sha256:%[3]s": %[2]s,
		"registry.example:5000": %[2]s, "*.example.com": %[1]s, "*.sub.example.com": %[2]s,
		"Upper.example:443/a": %[1]s, "two.example": %[1]s, "two.example:443": %[2]s,
		"docker.io/library": %[1]s}, "oci-archive": {"": %[1]s}}}`, accept, no, strings.Repeat("ab", 32)))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"registry.example/app":            "registry.example",
		"registry.example/team2/app":      "registry.example",
		"registry.example/team/other":     "registry.example/team",
		"registry.example/team/app":       "registry.example/team/app",
		"registry.example/team/app:old":   "registry.example/team/app:old",
		"registry.example/team/app:older": "registry.example/team/app",
		"registry.example/team/app/sub":   "registry.example/team/app",
		"registry.example:5000/team/app":  "registry.example:5000",
		"a.example.com/app":               "*.example.com",
		"a.sub.example.com:443/app":       "*.sub.example.com",
		"example.com/app":                 "default",
		"busybox":                         "docker.io/library",
		"docker.io/other/busybox":         "default",
		"registry.example2/app":           "default",
		"REGISTRY.example/team/other":     "registry.example/team",
		"registry.example:443/team/app":   "registry.example/team/app",
		"Registry.Example:443/x:443":      "registry.example",
		"registry.example:4433/app":       "default",
		"A.Sub.Example.com/app":           "*.sub.example.com",
		"upper.example/a/b":               "Upper.example:443/a",
		"two.example/a":                   "two.example",
		"two.example:443/a":               "two.example:443",
		"registry.example/team/app@sha256:" + strings.Repeat("ab", 32): "registry.example/team/app@sha256:" + strings.Repeat("ab", 32),
	} {
		ref, err := reference.ParseDockerRef(name)
		if err != nil {
			t.Fatal(err)
		}
		wantPath := want
		if want != "default" {
			wantPath = fmt.Sprintf("transports.docker[%q]", want)
		}
		if got := p.find(Docker, ref)[0].path; got != wantPath+"[0]" {
			t.Errorf("find(%s) = %s, want %s", name, got, wantPath)
		}
	}
	if got := p.find(OCIArchive, nil)[0].path; got != `transports["oci-archive"][""][0]` {
		t.Errorf("find(oci-archive) = %s", got)
	}
	if got := p.find(DockerArchive, nil)[0].path; got != "default[0]" {
		t.Errorf("find(docker-archive) = %s, want default", got)
	}
}

// TestIdentity compares the name that is wanted with the one that is signed, by each
// kind of signedIdentity.
func TestIdentity(t *testing.T) {
	const app = "registry.example/team/app"
	byDigest := app + "@" + digest.FromString("x").String()
	for _, tt := range []struct {
		id             string
		wanted, signed string
		want           bool
	}{
		{`{"type": "matchExact"}`, app + ":v1", app + ":v1", true},
		{`{"type": "matchExact"}`, app + ":v1", app + ":v2", false},
		{`{"type": "matchExact"}`, app + ":v1", app, false},
		{`{"type": "matchExact"}`, byDigest, app + ":v1", false},
		{``, app + ":v1", app + ":v1", true},
		{``, app + ":v1", app, false},
		{``, app + ":latest", app, false},
		{``, byDigest, app + ":v1", true},
		{``, byDigest, app, true},
		{``, byDigest, app + "2", false},
		{``, byDigest, "", false},
		{`{"type": "matchRepository"}`, app + ":v1", app, true},
		{`{"type": "matchRepository"}`, app + ":v1", app + ":v2", true},
		{`{"type": "matchRepository"}`, app + ":v1", "registry.example/team/other", false},
		{`{"type": "matchRepository"}`, app + ":v1", "other.example/team/app", false},
		{`{"type": "matchRepository"}`, app + ":v1", "../x", false},
		{`{"type": "matchRepository"}`, "docker.io/library/busybox:1", "index.docker.io/library/busybox", true},
		{`{"type": "exactReference", "dockerReference": "up.example/app:v1"}`, app + ":v9", "up.example/app:v1", true},
		{`{"type": "exactReference", "dockerReference": "up.example/app:v1"}`, app + ":v9", "up.example/app", false},
		{`{"type": "exactRepository", "dockerRepository": "up.example/app"}`, app + ":v9", "up.example/app:v1", true},
		{`{"type": "exactRepository", "dockerRepository": "up.example/app"}`, app + ":v9", app, false},
		{`{"type": "remapIdentity", "prefix": "registry.example/team", "signedPrefix": "up.example"}`, app + ":v1", "up.example/app:v1", true},
		{`{"type": "remapIdentity", "prefix": "registry.example/team", "signedPrefix": "up.example"}`, app + ":v1", app + ":v1", false},
		{`{"type": "remapIdentity", "prefix": "registry.example/te", "signedPrefix": "up.example"}`, app + ":v1", app + ":v1", true},
		{`{"type": "remapIdentity", "prefix": "registry.example", "signedPrefix": "up.example"}`, "registry.example:5000/a:v1", "registry.example:5000/a:v1", true},
		{`{"type": "remapIdentity", "prefix": "registry.example", "signedPrefix": "up.example"}`, byDigest, "up.example/team/app", true},
		{`{"type": "matchDigest"}`, app + ":v1", "", true},
		{`{"type": "matchDigest"}`, app + ":v1", "other.example/x", true},
	} {
		var raw []byte
		if tt.id != "" {
			raw = []byte(tt.id)
		}
		id, err := parseIdentity("id", raw)
		if err != nil {
			t.Fatal(err)
		}
		wanted, err := reference.ParseNormalizedNamed(tt.wanted)
		if err != nil {
			t.Fatal(err)
		}
		if err := id.matches(wanted, tt.signed); (err == nil) != tt.want {
			t.Errorf("%s.matches(%s, %s) = %v, want %v", id.kind, tt.wanted, tt.signed, err, tt.want)
		}
	}
}

// TestNew refuses to start with a policy that could not be applied.
func TestNew(t *testing.T) {
	file := filepath.Join(t.TempDir(), "policy.json")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	wantError := func(want string) {
		t.Helper()
		_, err := New(Options{PolicyFile: file, Program: "/absent/crid-verify"})
		if !errkind.Is(err, errkind.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("New = %v, want Invalid that says %q", err, want)
		}
	}
	wantError("signature policy: open " + file)
	write(`{"default": 1}`)
	wantError("signature policy " + file + ": default: must be a list")
	write(`{"default": [{"type": "sigstoreSigned", "keyData": "` + inBase64(testKey) + `"}]}`)
	wantError("/absent/crid-verify")
	write(`{"default": [{"type": "reject"}]}`)
	if _, err := New(Options{PolicyFile: file, Program: "/absent/crid-verify"}); err != nil {
		t.Errorf("New with a policy that needs no verifier = %v", err)
	}
}

// TestArchives applies the policy to imports, and lets a nil checker accept all.
func TestArchives(t *testing.T) {
	file := filepath.Join(t.TempDir(), "policy.json")
	const allowed = `"transports": {"oci-archive": {"": [{"type": "insecureAcceptAnything"}]}}`
	for in, want := range map[string]string{
		`{"default": [{"type": "insecureAcceptAnything"}]}`:                                                  "",
		`{"default": [{"type": "reject"}], ` + allowed + `}`:                                                 "",
		`{"default": [{"type": "reject"}]}`:                                                                  "default[0] rejects it",
		`{"default": [{"type": "sigstoreSigned", "keyData": "` + inBase64(testKey) + `"}]}`:                  "archives have none: to allow imports, add",
		`{"default": [{"type": "sigstoreSigned", "keyData": "` + inBase64(testKey) + `"}], ` + allowed + `}`: "",
	} {
		if err := os.WriteFile(file, []byte(in), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := New(Options{PolicyFile: file, Program: "/bin/true"})
		if err != nil {
			t.Fatal(err)
		}
		err = c.ForArchive(OCIArchive)
		if want == "" && err != nil || want != "" && (!errkind.Is(err, errkind.BadState) || !strings.HasPrefix(err.Error(), failed+"archive: signature policy "+file) || !strings.Contains(err.Error(), want)) {
			t.Errorf("ForArchive with %s = %v, want %q", in, err, want)
		}
	}
	var none *Checker
	if r, err := none.ForImage("registry.example/app:v1"); err != nil || r.NeedsSignatures() || r.Check(t.Context(), nil) != nil || none.ForArchive(OCIArchive) != nil {
		t.Errorf("a nil Checker refuses: %v, %v", r, err)
	}
}

// TestVerifierFails takes no answer of a program that fails for a good one.
func TestVerifierFails(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "policy.json")
	if err := os.WriteFile(file, []byte(`{"default": [{"type": "sigstoreSigned", "keyData": "`+inBase64(testKey)+`", "signedIdentity": {"type": "matchDigest"}}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	d := digest.FromString("x")
	good := fmt.Sprintf(`{"verdicts":[{"digests":[%q]}]}`, d)
	for _, tt := range []struct{ name, script, want string }{
		{"good", "echo '" + good + "'", ""},
		{"good, and failed", "echo '" + good + "'; echo broken >&2; exit 1", "exit status 1 broken"},
		{"nothing", "exit 0", "unexpected end of JSON input"},
		{"no verdict", `echo '{"verdicts":[]}'`, "gave 0 verdicts on 1 signatures"},
		{"no digest", `echo '{"verdicts":[{}]}'`, "a verdict without a digest"},
		{"too long", "head -c 5000000 /dev/zero", "answer of"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			program := filepath.Join(dir, strings.ReplaceAll(tt.name, " ", "-"))
			if err := os.WriteFile(program, []byte("#!/bin/sh\nPATH=/usr/bin:/bin\ncat >/dev/null\n"+tt.script+"\n"), 0o700); err != nil {
				t.Fatal(err)
			}
			c, err := New(Options{PolicyFile: file, Program: program})
			if err != nil {
				t.Fatal(err)
			}
			r, err := c.ForImage("registry.example/app:v1")
			if err != nil {
				t.Fatal(err)
			}
			err = r.Check(t.Context(), []digest.Digest{d}, func(context.Context) ([]Signature, error) {
				return []Signature{{Origin: "here", Payload: []byte("x"), Base64: "eA=="}}, nil
			})
			if tt.want == "" && err != nil || tt.want != "" && (!errkind.Is(err, errkind.BadState) || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("Check = %v, want %q", err, tt.want)
			}
		})
	}
}

// FuzzParse looks for files that panic, and for those that are read in two ways: what
// parse accepts must have a type known to it in every requirement.
func FuzzParse(f *testing.F) {
	key := inBase64(testKey)
	for _, s := range []string{
		`{"default": [{"type": "reject"}]}`,
		`{"default": [{"type": "sigstoreSigned", "keyData": "` + key + `", "signedIdentity": {"type": "matchRepository"}}], "transports": {"docker": {"*.example.com": [{"type": "insecureAcceptAnything"}]}}}`,
		`{"default": [{"type": "sigstoreSigned", "fulcio": {"caData": "x", "oidcIssuer": "i", "subjectEmail": "s"}, "rekorPublicKeyData": "` + key + `"}]}`,
		`{"default": [{"type": "sigstoreSigned", "keyDatas": ["` + key + `"], "signedIdentity": {"type": "remapIdentity", "prefix": "a.example", "signedPrefix": "b.example"}}]}`,
	} {
		f.Add([]byte(s))
	}
	ref, err := reference.ParseNormalizedNamed("registry.example/team/app:v1")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if strings.Contains(string(data), "Path") {
			return // files of the machine
		}
		p, err := parse(data)
		if err != nil {
			return
		}
		found := p.find(Docker, ref)
		if len(found) == 0 {
			t.Fatal("no requirement for an image: it would be accepted")
		}
		for _, q := range found {
			switch q.kind {
			case acceptAnything, reject:
			case sigstoreSigned:
				if len(q.trust.Keys) == 0 && (len(q.trust.Authorities) == 0 || q.trust.Issuer == "" || q.trust.Subject == "" || len(q.trust.Logs) == 0) {
					t.Fatalf("%s trusts nobody, or anybody", q.path)
				}
				_ = q.identity.matches(ref, "registry.example/other")
			default:
				t.Fatalf("kind %q", q.kind)
			}
		}
	})
}
