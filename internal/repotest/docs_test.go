package repotest

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"
)

var (
	mdLink  = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ +(.+?) *$`)
	fence   = regexp.MustCompile("(?ms)^[ \t]*```.*?^[ \t]*```")

	// namedFile is a file of the repository named from the top, in prose or in a comment.
	namedFile = regexp.MustCompile(`(?:^|[\s` + "`" + `("'])((?:cmd|cri|sandbox|cni|image|monitor|internal|docs|hack|test|\.ci)/[\w./-]*\w\.(?:go|md|sh|toml|ya?ml|json))\b`)
)

func TestLinks(t *testing.T) {
	walk(t, func(file string) {
		text := fence.ReplaceAllString(string(read(t, file)), "")
		for _, m := range mdLink.FindAllStringSubmatch(text, -1) {
			link := m[1]
			if strings.Contains(link, "://") || strings.HasPrefix(link, "mailto:") {
				continue
			}
			target, anchor, _ := strings.Cut(link, "#")
			to := file
			if target != "" {
				to = path.Join(path.Dir(file), target)
			}
			if strings.HasPrefix(to, "..") || !exists(to) {
				t.Errorf("%s: link to %s, which does not exist", file, link)
				continue
			}
			if anchor != "" && strings.HasSuffix(to, ".md") && !hasHeading(string(read(t, to)), anchor) {
				t.Errorf("%s: link to %s, but %s has no such heading", file, link, to)
			}
		}
	}, ".md")
}

// TestNamedFiles: what a comment or a document calls a file is there.
func TestNamedFiles(t *testing.T) {
	walk(t, func(file string) {
		for n, line := range strings.Split(string(read(t, file)), "\n") {
			if strings.HasSuffix(file, ".go") {
				if i := strings.Index(line, "//"); i >= 0 {
					line = line[i+2:]
				} else {
					continue
				}
			}
			for _, m := range namedFile.FindAllStringSubmatch(line, -1) {
				if !exists(m[1]) {
					t.Errorf("%s:%d: names %s, which does not exist", file, n+1, m[1])
				}
			}
		}
	}, ".go", ".md", ".sh")
}

func exists(file string) bool {
	_, err := os.Stat(filepath.Join(root, file))
	return !errors.Is(err, fs.ErrNotExist)
}

// hasHeading reports whether a heading of text has the anchor that GitHub gives it.
func hasHeading(text, anchor string) bool {
	for _, m := range heading.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		if anchorOf(m[1]) == anchor {
			return true
		}
	}
	return false
}

func anchorOf(title string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsLetter(r) || unicode.IsDigit(r) || r == '-' || r == '_':
			return unicode.ToLower(r)
		case r == ' ':
			return '-'
		}
		return -1
	}, title)
}

func TestAnchorOf(t *testing.T) {
	for title, want := range map[string]string{
		"Run one e2e test":           "run-one-e2e-test",
		"What `crid check` does (1)": "what-crid-check-does-1",
		"Records: kill -9, always":   "records-kill--9-always",
	} {
		if got := anchorOf(title); got != want {
			t.Errorf("anchorOf(%q) = %q, want %q", title, got, want)
		}
	}
}
