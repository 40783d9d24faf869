package repotest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// programs and what they must not link, directly or through others.
var programs = []struct {
	folder string
	tags   string
	never  map[string]string // beginning of an import path → reason
}{
	{
		folder: "cmd/crid",
		never: map[string]string{
			"github.com/opencontainers/runc":         "libcontainer runs a C constructor before main in whatever links it",
			module + "/monitor/server":               "it links libcontainer",
			"github.com/seccomp":                     "it needs a C compiler and a C library, and filters are loaded in the monitor",
			module + "/internal/testutil":            "it is for tests",
			"testing":                                "it is for tests, and adds flags",
			"github.com/google/go-containerregistry": "it is for tests and tools",
			"github.com/sigstore":                    "it costs crid 4.6 MiB of memory at every moment; crid-verify has it",
		},
	},
	{
		folder: "cmd/crid-verify",
		never: map[string]string{
			"github.com/containerd/containerd": "it speaks to no registry",
			module + "/sandbox":                "it is a filter from standard input to standard output",
			module + "/cri":                    "it is a filter from standard input to standard output",
			module + "/monitor":                "it is a filter from standard input to standard output",
			module + "/internal/testutil":      "it is for tests",
		},
	},
	{
		folder: "cmd/crid-monitor",
		tags:   "runc_nocriu,seccomp",
		never: map[string]string{
			"google.golang.org/grpc":           monitorIsSmall,
			"google.golang.org/protobuf":       monitorIsSmall,
			"github.com/golang/protobuf":       monitorIsSmall,
			"github.com/gogo/protobuf":         monitorIsSmall,
			"github.com/checkpoint-restore":    monitorIsSmall + " (build it with the tag runc_nocriu)",
			"k8s.io/cri-api":                   monitorIsSmall,
			"github.com/containernetworking":   monitorIsSmall,
			"net/http":                         monitorIsSmall,
			"github.com/containerd/containerd": monitorIsSmall,
			"github.com/prometheus":            monitorIsSmall,
			"go.opentelemetry.io":              monitorIsSmall,
			module + "/cri":                    "the monitor knows nothing of CRI",
			module + "/sandbox":                "the monitor knows nothing of sandboxes",
			module + "/image":                  "the monitor knows nothing of images",
			module + "/cni":                    "the monitor knows nothing of networks",
			module + "/internal/testutil":      "it is for tests",
			"testing":                          "it is for tests, and adds flags",
		},
	},
}

const monitorIsSmall = "the monitor is executed again for every container and exec, and its memory is the cost of a pod"

func TestProgramsDoNotLink(t *testing.T) {
	for _, p := range programs {
		t.Run(p.folder, func(t *testing.T) {
			if files, _ := filepath.Glob(filepath.Join(root, p.folder, "*.go")); len(files) == 0 {
				t.Skipf("%s has no code yet", p.folder)
			}
			deps := goList(t, "-deps", "-tags", p.tags, "./"+p.folder)
			if len(deps) < 10 {
				t.Fatalf("go list -deps found %d packages: it does not see the program", len(deps))
			}
			for _, d := range deps {
				for never, why := range p.never {
					if d.ImportPath == never || strings.HasPrefix(d.ImportPath, never+"/") {
						t.Errorf("%s links %s: %s", p.folder, d.ImportPath, why)
					}
				}
			}
		})
	}
}

// TestProgramsExist keeps the test above from passing because a folder was renamed.
func TestProgramsExist(t *testing.T) {
	for _, p := range programs {
		if _, err := os.Stat(filepath.Join(root, p.folder)); err != nil {
			t.Error(err)
		}
	}
}
