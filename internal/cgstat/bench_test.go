package cgstat

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/internal/testutil"
)

// BenchmarkUsage reads a cgroup of this machine, in all its hierarchies.
func BenchmarkUsage(b *testing.B) {
	testutil.RequireRoot(b)
	path := fmt.Sprintf("/crid-cgstat-%d", os.Getpid())
	dirs, err := sys.CgroupDirs(path)
	if err != nil {
		b.Fatal(err)
	}
	for _, dir := range dirs {
		if err := os.Mkdir(dir, 0o755); err != nil {
			b.Skip(err, filepath.Dir(dir))
		}
		b.Cleanup(func() { os.Remove(dir) })
	}
	tree, err := Open()
	if err != nil {
		b.Fatal(err)
	}
	b.Run("Usage", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := tree.Usage(path, Swap); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Details", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := tree.Details(path); err != nil {
				b.Fatal(err)
			}
		}
	})
}
