package signature

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/distribution/reference"
)

// identity is a signedIdentity: which image name a signature must carry.
type identity struct {
	kind string
	ref  reference.Named // of exactReference and exactRepository
	// prefix and signed are those of remapIdentity.
	prefix, signed string
}

// The kinds of signedIdentity, by their names in the file.
const (
	matchExact             = "matchExact"
	matchRepoDigestOrExact = "matchRepoDigestOrExact"
	matchRepository        = "matchRepository"
	exactReference         = "exactReference"
	exactRepository        = "exactRepository"
	remapIdentity          = "remapIdentity"
	// matchDigest is crid's own: the digest alone counts. Signatures in the bundle
	// format carry no name.
	matchDigest = "matchDigest"
)

func parseIdentity(path string, raw []byte) (identity, error) {
	if raw == nil {
		return identity{kind: matchRepoDigestOrExact}, nil
	}
	o, err := readObject(path, raw)
	if err != nil {
		return identity{}, err
	}
	id := identity{}
	if id.kind, err = o.text("type"); err != nil {
		return id, err
	}
	switch id.kind {
	case matchExact, matchRepoDigestOrExact, matchRepository, matchDigest:
	case exactReference:
		id.ref, err = o.reference("dockerReference", true)
	case exactRepository:
		id.ref, err = o.reference("dockerRepository", false)
	case remapIdentity:
		if id.prefix, err = o.prefix("prefix"); err == nil {
			id.signed, err = o.prefix("signedPrefix")
		}
	default:
		return id, at(o.sub("type"), "is %q, must be one of %s", shorten(id.kind), strings.Join([]string{
			matchRepoDigestOrExact, matchExact, matchRepository, exactReference, exactRepository, remapIdentity, matchDigest,
		}, ", "))
	}
	if err != nil {
		return id, err
	}
	return id, o.done()
}

// reference is a field with an image name, with a tag or digest or without.
func (o *object) reference(key string, exact bool) (reference.Named, error) {
	s, err := o.text(key)
	if err != nil {
		return nil, err
	}
	ref, err := reference.ParseNormalizedNamed(s)
	switch {
	case err != nil:
		return nil, at(o.sub(key), "is %q, must be the name of an image: %w", shorten(s), err)
	case exact && reference.IsNameOnly(ref):
		return nil, at(o.sub(key), "is %q, must have a tag or a digest", shorten(s))
	case !exact && !reference.IsNameOnly(ref):
		return nil, at(o.sub(key), "is %q, must have no tag and no digest", shorten(s))
	}
	return ref, nil
}

func (o *object) prefix(key string) (string, error) {
	s, err := o.text(key)
	if err == nil && !isPrefix(s) {
		err = at(o.sub(key), "is %q, must be a registry, or one with the beginning of a repository's path, as in docker.io/library", shorten(s))
	}
	return s, err
}

var domain = regexp.MustCompile("^(?:" + reference.DomainRegexp.String() + ")$")

// isPrefix reports whether s is a registry, a namespace or a repository in the
// fully expanded form.
func isPrefix(s string) bool {
	host, _, deep := strings.Cut(s, "/")
	if !domain.MatchString(host) || !strings.ContainsAny(host, ".:") && host != "localhost" {
		return false
	}
	if !deep {
		return true
	}
	ref, err := reference.ParseNormalizedNamed(s + "/x")
	return err == nil && ref.String() == s+"/x" && reference.IsNameOnly(ref)
}

// matches reports whether the name that was signed is one for the image that is
// wanted. Neither gets a default tag: what is not said is not signed.
func (id identity) matches(wanted reference.Named, signed string) error {
	if id.kind == matchDigest {
		return nil
	}
	if signed == "" {
		return fmt.Errorf("it names no image, only a digest, as signatures in the bundle format do, and %s asks for a name; \"signedIdentity\": {\"type\": %q} accepts it", id.kind, matchDigest)
	}
	got, err := reference.ParseNormalizedNamed(signed)
	if err != nil {
		return fmt.Errorf("it is for %q, which is no image name", shorten(signed))
	}
	if id.fits(wanted, got) {
		return nil
	}
	text := fmt.Sprintf("it is for %s, which is not the name that %s asks for", shorten(got.String()), id.kind)
	if reference.IsNameOnly(got) && got.Name() == wanted.Name() && id.kind != exactReference {
		text += fmt.Sprintf("; cosign signs no tag: \"signedIdentity\": {\"type\": %q} accepts any of that repository", matchRepository)
	}
	return fmt.Errorf("%s", text)
}

func (id identity) fits(wanted, got reference.Named) bool {
	switch id.kind {
	case matchExact:
		return !reference.IsNameOnly(wanted) && got.String() == wanted.String()
	case matchRepoDigestOrExact:
		return repoDigestOrExact(wanted, got)
	case matchRepository:
		return got.Name() == wanted.Name()
	case exactReference:
		return got.String() == id.ref.String()
	case exactRepository:
		return got.Name() == id.ref.Name()
	case remapIdentity:
		remapped, ok := id.remap(wanted)
		return ok && repoDigestOrExact(remapped, got)
	}
	return false
}

func repoDigestOrExact(wanted, got reference.Named) bool {
	if _, ok := wanted.(reference.Tagged); ok {
		return got.String() == wanted.String()
	}
	_, ok := wanted.(reference.Digested)
	return ok && got.Name() == wanted.Name()
}

// remap replaces the prefix in the wanted name. A name that has another is left.
func (id identity) remap(wanted reference.Named) (reference.Named, bool) {
	rest, ok := strings.CutPrefix(wanted.String(), id.prefix)
	// After a registry alone a colon would begin its port.
	ends := "/:@"
	if !strings.Contains(id.prefix, "/") {
		ends = "/"
	}
	if !ok || rest == "" || !strings.ContainsRune(ends, rune(rest[0])) {
		return wanted, true
	}
	ref, err := reference.ParseNormalizedNamed(id.signed + rest)
	return ref, err == nil
}
