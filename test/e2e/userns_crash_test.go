//go:build failpoint

package e2e

import (
	"slices"
	"strings"
	"testing"
)

// TestCrashOfUserNamespace is TestCrashAtEveryFailpoint for a pod with a user
// namespace, where the sandbox and the container's making differ.
func TestCrashOfUserNamespace(t *testing.T) {
	usernsNode(t) // or skips
	begin := func(n *Node) *life {
		l := newLife(n)
		usernsPod(l.p, 1<<18)
		l.c.Linux.SecurityContext.NamespaceOptions = l.p.Linux.SecurityContext.NamespaceOptions
		return l
	}
	points := slices.DeleteFunc(failpointsOfALife(t, begin), func(point string) bool {
		return !strings.HasPrefix(point, "sandbox.run.") && !strings.HasPrefix(point, "sandbox.down.") && !strings.HasPrefix(point, "container.create.")
	})
	crashEverywhere(t, begin, points)
}
