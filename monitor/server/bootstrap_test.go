package server

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cridproject/crid/internal/testutil"
)

// What ps shows of this program: TestMain has started it as a monitor is started.
func TestThreadNames(t *testing.T) {
	testutil.RequireRoot(t)
	threads, err := filepath.Glob("/proc/self/task/*/comm")
	if err != nil || len(threads) < 2 {
		t.Fatalf("threads of this program: %q, %v", threads, err)
	}
	for _, file := range threads {
		if name, err := os.ReadFile(file); err == nil && string(name) != "crid-monitor\n" {
			t.Errorf("%s has %q, want crid-monitor", file, name)
		}
	}
}
