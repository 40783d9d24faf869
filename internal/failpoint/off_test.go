//go:build !failpoint

package failpoint_test

import (
	"testing"

	"github.com/cridproject/crid/internal/failpoint"
)

func TestHitDoesNothing(t *testing.T) {
	t.Setenv("CRID_FAILPOINTS", "a=kill")
	if err := failpoint.Hit("a"); err != nil {
		t.Errorf("Hit without the build tag = %v, want nil", err)
	}
}
