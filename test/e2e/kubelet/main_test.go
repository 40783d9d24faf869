// Package kubelet runs a real kubelet on the real crid: pods come from a folder of
// manifests, and what is shown is what kubelet's own port and the containers
// themselves say. There is no API server, but for a stand-in where pods of files do
// not do.
//
// The tests run in a mount and a network namespace of their own, since a kubelet
// has fixed ports and folders. kubelet is built from the module hack/kubernetes:
//
//	hack/kubernetes/build.sh && sudo go test ./test/e2e/kubelet
//
// docs: CONTRIBUTING.md, "kubelet".
package kubelet

import (
	"flag"
	"os"
	"testing"

	"github.com/cridproject/crid/test/e2e"
)

func TestMain(m *testing.M) {
	// Subtests wait for one kubelet, whose pods make their way at the same time.
	if err := flag.Set("test.parallel", "32"); err != nil {
		panic(err)
	}
	os.Exit(e2e.Main(m, e2e.Apart))
}
