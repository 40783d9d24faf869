package sandbox

import (
	"testing"
	"time"

	"github.com/cridproject/crid/internal/cgstat"
)

// changing figures have the limits changed while the kernel is asked for the first time.
type changing struct {
	Figures

	recent *recent
	asked  int
}

func (c *changing) Usage(string, cgstat.Parts) (Usage, error) {
	if c.asked++; c.asked == 1 {
		c.recent.forget()
	}
	return Usage{}, nil
}

// What was being read when limits changed is nobody's answer afterwards.
func TestRecentForgetsWhatIsBeingRead(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	figures := &changing{}
	r := &recent{figures: figures, now: func() time.Time { return now }}
	figures.recent = r
	for range 3 {
		if _, at, err := r.Usage("/c", cgstat.Tasks); err != nil || !at.Equal(now) {
			t.Fatalf("Usage = %v, %v", at, err)
		}
	}
	if figures.asked != 2 {
		t.Errorf("the kernel was asked %d times, want 2: the reading of before the change, and one after", figures.asked)
	}
}
