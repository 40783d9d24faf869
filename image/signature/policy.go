// Package signature decides by a policy file whether an image may be pulled.
//
// The file is that of other container tools, containers-policy.json(5): which
// signatures an image of a registry, namespace or repository must have. The package
// reads it, finds the rule for an image, and compares what signatures say with what is
// wanted. Their cryptography is done by another program, crid-verify, because the
// libraries for it would cost crid memory at every moment
// (docs/decisions/0023-signatures.md). It knows nothing of registries: package image
// fetches signatures and hands them over.
package signature

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/distribution/reference"
)

// Transports of the policy file that crid asks for.
const (
	Docker        = "docker"         // pulls from registries
	DockerArchive = "docker-archive" // imports of what docker save writes
	OCIArchive    = "oci-archive"    // imports of OCI layouts
)

// The types of requirements, by their names in the file.
const (
	acceptAnything = "insecureAcceptAnything"
	reject         = "reject"
	sigstoreSigned = "sigstoreSigned"
)

// policy is a policy file with the keys that it names, as they were when it was
// read.
type policy struct {
	file       string
	global     []requirement
	transports map[string]map[string][]requirement // transport → scope
}

// requirement is one of those that an image must meet.
type requirement struct {
	path     string // where in the file it stands
	kind     string
	trust    Trust    // of sigstoreSigned
	identity identity // of sigstoreSigned
}

// load reads a policy file and all files that it names.
func load(file string) (*policy, error) {
	data, err := readFile(file)
	if err != nil {
		return nil, fmt.Errorf("signature policy: %w", err)
	}
	p, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("signature policy %s: %w", file, err)
	}
	p.file = file
	return p, nil
}

func parse(data []byte) (*policy, error) {
	if err := syntax(data); err != nil {
		return nil, err
	}
	o, err := readObject("", data)
	if err != nil {
		return nil, err
	}
	p := &policy{transports: make(map[string]map[string][]requirement)}
	global := o.take("default")
	if global == nil {
		return nil, at("default", "is missing: it must say what holds for images that nothing else is said of")
	}
	if p.global, err = parseRequirements("default", global); err != nil {
		return nil, err
	}
	if raw := o.take("transports"); raw != nil {
		if err := p.parseTransports(raw); err != nil {
			return nil, err
		}
	}
	return p, o.done()
}

func (p *policy) parseTransports(raw []byte) error {
	transports, err := readObject("transports", raw)
	if err != nil {
		return err
	}
	for _, transport := range transports.keys {
		scopes, err := readObject(transports.sub(transport), transports.fields[transport])
		if err != nil {
			return err
		}
		p.transports[transport] = make(map[string][]requirement)
		for _, scope := range scopes.keys {
			path := fmt.Sprintf("%s[%q]", scopes.path, shorten(scope))
			if transport == Docker && scope != "" && !isScope(scope) {
				return at(path, "no image can have this scope: it must be a fully expanded name or the beginning of one, as registry.example/team, docker.io/library/busybox:1.36 or *.example.com")
			}
			if p.transports[transport][scope], err = parseRequirements(path, scopes.fields[scope]); err != nil {
				return err
			}
		}
	}
	return nil
}

// isScope reports whether a scope of the docker transport can be that of an image.
func isScope(s string) bool {
	if sub, ok := strings.CutPrefix(s, "*."); ok {
		return domain.MatchString(sub) && !strings.ContainsAny(sub, ":[")
	}
	if isPrefix(s) {
		return true
	}
	ref, err := reference.ParseNormalizedNamed(s)
	return err == nil && ref.String() == s && isPrefix(ref.Name())
}

func parseRequirements(path string, raw []byte) ([]requirement, error) {
	var list []json.RawMessage
	if err := json.Unmarshal(raw, &list); err != nil || len(list) == 0 {
		return nil, at(path, "must be a list of requirements, [{\"type\": ...}, ...], and not empty")
	}
	var all []requirement
	for i, raw := range list {
		r, err := parseRequirement(fmt.Sprintf("%s[%d]", path, i), raw)
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}

func parseRequirement(path string, raw []byte) (requirement, error) {
	r := requirement{path: path}
	o, err := readObject(path, raw)
	if err != nil {
		return r, err
	}
	if r.kind, err = o.text("type"); err != nil {
		return r, err
	}
	switch r.kind {
	case acceptAnything, reject:
	case sigstoreSigned:
		if err := r.parseSigstore(o); err != nil {
			return r, err
		}
	case "signedBy":
		return r, at(o.sub("type"), "signedBy, signatures by GPG, is not supported; use %s", sigstoreSigned)
	default:
		return r, at(o.sub("type"), "is %q, must be %s, %s or %s", shorten(r.kind), sigstoreSigned, reject, acceptAnything)
	}
	return r, o.done()
}

func (r *requirement) parseSigstore(o *object) error {
	var err error
	if r.trust.Keys, err = o.publicKeys("key"); err != nil {
		return err
	}
	if o.take("pki") != nil {
		return at(o.sub("pki"), "is not supported; use fulcio or a key")
	}
	fulcio := o.take("fulcio")
	switch {
	case (fulcio == nil) == (r.trust.Keys == nil):
		return at(o.path, "must have a key (keyPath, keyPaths, keyData, keyDatas) or fulcio, and not both")
	case fulcio != nil:
		if err := r.parseFulcio(o.sub("fulcio"), fulcio); err != nil {
			return err
		}
	}
	if r.trust.Logs, err = o.publicKeys("rekorPublicKey"); err != nil {
		return err
	}
	if fulcio != nil && r.trust.Logs == nil {
		return at(o.path, "must have a rekorPublicKeyPath or rekorPublicKeyData beside fulcio: its certificates hold for minutes, and the log says when they were used")
	}
	r.identity, err = parseIdentity(o.sub("signedIdentity"), o.take("signedIdentity"))
	return err
}

func (r *requirement) parseFulcio(path string, raw []byte) error {
	o, err := readObject(path, raw)
	if err != nil {
		return err
	}
	found, err := o.blobs("ca", false)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return at(path, "must have caPath or caData, the certificates of the CA")
	}
	if r.trust.Authorities, err = found[0].authorities(); err != nil {
		return err
	}
	for key, to := range map[string]*string{"oidcIssuer": &r.trust.Issuer, "subjectEmail": &r.trust.Subject} {
		if *to, err = o.text(key); err != nil {
			return err
		}
		if *to == "" {
			return at(path, "must have oidcIssuer and subjectEmail: who vouches for the signer, and who that is")
		}
	}
	return o.done()
}

// find is what holds for an image: by the longest scope that its name begins with,
// else by domains with a wildcard, else the transport's default, else that of all. A
// registry is one however its host is spelled; the spelling of the image's name counts
// first.
func (p *policy) find(transport string, ref reference.Named) []requirement {
	scopes := p.transports[transport]
	folded := make(map[string]string, len(scopes)) // to scopes
	for _, s := range slices.Sorted(maps.Keys(scopes)) {
		if f := fold(s); folded[f] == "" || f == s {
			folded[f] = s
		}
	}
	for _, s := range append(scopesOf(ref), "") {
		if found, ok := scopes[s]; ok {
			return found
		}
		if other := folded[fold(s)]; other != "" {
			return scopes[other]
		}
	}
	return p.global
}

// fold gives a registry's host in a scope one spelling: case is nothing to DNS, and 443
// is the port where none is named.
func fold(scope string) string {
	host, path, deep := strings.Cut(scope, "/")
	host = strings.TrimSuffix(strings.ToLower(host), ":443")
	if deep {
		host += "/" + path
	}
	return host
}

// scopesOf is all scopes of an image, the longest first. A nil ref has none.
func scopesOf(ref reference.Named) []string {
	if ref == nil {
		return nil
	}
	scopes := []string{ref.String()}
	for name := ref.Name(); ; {
		scopes = append(scopes, name)
		i := strings.LastIndexByte(name, '/')
		if i < 0 {
			break
		}
		name = name[:i]
	}
	host, _, _ := strings.Cut(reference.Domain(ref), ":")
	for {
		_, parent, ok := strings.Cut(host, ".")
		if !ok {
			return scopes
		}
		scopes = append(scopes, "*."+parent)
		host = parent
	}
}

// asksForSignatures reports whether anything in the policy needs one.
func (p *policy) asksForSignatures() bool {
	wants := func(r requirement) bool { return r.kind == sigstoreSigned }
	if slices.ContainsFunc(p.global, wants) {
		return true
	}
	for scopes := range maps.Values(p.transports) {
		for list := range maps.Values(scopes) {
			if slices.ContainsFunc(list, wants) {
				return true
			}
		}
	}
	return false
}
