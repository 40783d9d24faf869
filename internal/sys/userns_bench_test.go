package sys_test

import (
	"path/filepath"
	"testing"

	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/internal/testutil"
)

// BenchmarkPinUserNS is what a user namespace adds to a sandbox on the node's network.
func BenchmarkPinUserNS(b *testing.B) {
	testutil.RequireRoot(b)
	dir := b.TempDir()
	for name, req := range map[string]sys.NSRequest{
		"without": {IPC: filepath.Join(dir, "ipc")},
		"with":    {IPC: filepath.Join(dir, "ipc"), User: sys.UserNS{Path: filepath.Join(dir, "user"), UIDs: mapped, GIDs: mapped}},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := sys.PinNamespaces(req); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				for _, path := range []string{req.IPC, req.User.Path} {
					if path == "" {
						continue
					}
					if err := sys.Unpin(path); err != nil {
						b.Fatal(err)
					}
				}
				b.StartTimer()
			}
		})
	}
}
