package sys_test

import (
	"path/filepath"
	"testing"

	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/internal/testutil"
)

// What the kernel takes for the namespaces of a pod: the floor of RunPodSandbox.
func BenchmarkPinNamespaces(b *testing.B) {
	testutil.RequireRoot(b)
	dir := b.TempDir()
	all := sys.NSRequest{
		Net: filepath.Join(dir, "netns", "crid"), IPC: filepath.Join(dir, "ipc"), UTS: filepath.Join(dir, "uts"),
		Hostname: "web-0", Setup: sys.LoopbackUp,
	}
	for name, req := range map[string]sys.NSRequest{"pod": all, "hostnetwork": {IPC: all.IPC}} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := sys.PinNamespaces(req); err != nil {
					b.Fatal(err)
				}
				for _, path := range []string{req.Net, req.IPC, req.UTS} {
					if path == "" {
						continue
					}
					if err := sys.Unpin(path); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
	if err := sys.Unmount(filepath.Dir(all.Net), 0); err != nil {
		b.Fatal(err)
	}
}
