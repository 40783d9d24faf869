package image

import (
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/cridproject/crid/internal/errkind"
)

// Pattern says which images are pinned: kubelet does not remove them when the disk
// gets full. ParsePattern makes one.
type Pattern struct {
	id   ID
	ref  string   // canonical, with tag or digest
	name string   // canonical, and any tag or digest
	glob []string // what stands between the stars
}

// ParsePattern reads a pattern as people write it: an image's ID, a name with tag
// or digest, a name without for all of them, or a canonical name with stars, each
// of which stands for any text, slashes too. Anything else is Invalid.
func ParsePattern(s string) (Pattern, error) {
	if strings.Contains(s, "*") {
		// What a name may hold, so that a pattern that can match nothing is told.
		if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`,;"'\?[]{}|`, r) }) {
			return Pattern{}, errkind.Errorf(errkind.Invalid, "pattern %q: no image's name is like that; only * is special, for any text", shorten(s))
		}
		return Pattern{glob: strings.Split(s, "*")}, nil
	}
	if strings.HasPrefix(s, "sha256:") {
		if err := digest.Digest(s).Validate(); err != nil {
			return Pattern{}, errkind.Errorf(errkind.Invalid, "pattern %q: an image's ID must be given in full: %w", shorten(s), err)
		}
		return Pattern{id: ID(s)}, nil
	}
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return Pattern{}, errkind.Errorf(errkind.Invalid, "pattern %q: neither an image's name nor its ID, and without *: %w", shorten(s), err)
	}
	if reference.IsNameOnly(named) {
		return Pattern{name: named.Name()}, nil
	}
	ref, err := ParseReference(s)
	return Pattern{ref: ref.String()}, err
}

// Matches reports whether the image is one of those meant.
func (p Pattern) Matches(i *Image) bool {
	if p.id != "" {
		return i.ID == p.id
	}
	return slices.ContainsFunc(i.RepoTags, p.matchesName) || slices.ContainsFunc(i.RepoDigests, p.matchesName)
}

func (p Pattern) matchesName(ref string) bool {
	switch {
	case p.ref != "":
		return ref == p.ref
	case p.name != "":
		rest, ok := strings.CutPrefix(ref, p.name)
		return ok && rest != "" && strings.ContainsRune(":@", rune(rest[0])) && !strings.Contains(rest, "/")
	case len(p.glob) == 0:
		return false
	}
	first, last := p.glob[0], p.glob[len(p.glob)-1]
	rest, ok := strings.CutPrefix(ref, first)
	for _, part := range p.glob[1 : len(p.glob)-1] {
		var at int
		if at = strings.Index(rest, part); at < 0 {
			return false
		}
		rest = rest[at+len(part):]
	}
	return ok && strings.HasSuffix(rest, last)
}

func parsePatterns(all []string) ([]Pattern, error) {
	patterns := make([]Pattern, 0, len(all))
	for _, s := range all {
		p, err := ParsePattern(s)
		if err != nil {
			return nil, err
		}
		patterns = append(patterns, p)
	}
	return patterns, nil
}
