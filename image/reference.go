package image

import (
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/cridproject/crid/internal/errkind"
)

// Reference is a canonical image name: registry, repository and either a tag or
// a digest.
type Reference struct {
	Host   string // "docker.io", "registry.example:5000"
	Repo   string // path in the registry: "library/busybox"
	Tag    string // "" with a digest
	Digest digest.Digest
}

// ParseReference reads a name as users write it: "busybox" is
// docker.io/library/busybox:latest. A digest beats a tag beside it. What is no
// name is Invalid.
func ParseReference(s string) (Reference, error) {
	named, err := reference.ParseDockerRef(s)
	if err != nil {
		return Reference{}, errkind.Errorf(errkind.Invalid, "image name %q: %w", shorten(s), err)
	}
	r := Reference{Host: reference.Domain(named), Repo: reference.Path(named)}
	switch n := named.(type) {
	case reference.Digested:
		r.Digest = n.Digest()
	case reference.Tagged:
		r.Tag = n.Tag()
	}
	return r, nil
}

// Name is the reference without tag and digest.
func (r Reference) Name() string { return r.Host + "/" + r.Repo }

// String is the canonical form; ParseReference reads it back.
func (r Reference) String() string {
	if r.Digest != "" {
		return r.withDigest(r.Digest)
	}
	return r.Name() + ":" + r.Tag
}

func (r Reference) withDigest(d digest.Digest) string { return r.Name() + "@" + string(d) }

// shorten keeps names from outside from filling the log.
func shorten(s string) string {
	const limit = 300
	if len(s) > limit {
		s = s[:limit] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}
