package e2e

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
)

const goarch = runtime.GOARCH

// Set once by TestMain, before any test runs.
var (
	thePrograms Programs
	keep        bool
)

func programs(t testing.TB) Programs {
	t.Helper()
	if thePrograms.Crid == "" {
		t.Fatal("e2e: nodes can be made by this package's tests only")
	}
	return thePrograms
}

func quote(s string) string { return fmt.Sprintf("%q", s) }

// toml renders "section.key" → value; values are TOML already.
func toml(values map[string]string) string {
	keys := make([]string, 0, len(values))
	for k := range values {
		keys = append(keys, k)
	}
	// Keys without a section come first, or they would fall into one.
	slices.SortFunc(keys, func(a, b string) int {
		if x, y := strings.Contains(a, "."), strings.Contains(b, "."); x != y {
			if y {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	var b strings.Builder
	section := ""
	for _, k := range keys {
		key := k
		if s, rest, ok := strings.Cut(k, "."); ok {
			key = rest
			if s != section {
				section = s
				fmt.Fprintf(&b, "\n[%s]\n", s)
			}
		}
		fmt.Fprintf(&b, "%s = %s\n", key, values[k])
	}
	return b.String()
}
