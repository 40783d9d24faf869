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

// counting figures are new ones each time.
type counting struct {
	Figures

	asked uint64
}

func (c *counting) Usage(string, cgstat.Parts) (Usage, error) {
	c.asked++
	return Usage{CPUNanoseconds: Value{N: c.asked, Known: true}}, nil
}

// Whoever gets no rate makes one of two answers, which must not be of one time; with
// a rate the answers of a second are one.
func TestUsageWithoutRateIsNew(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	figures := &counting{}
	m := &Manager{recent: recent{figures: figures, now: func() time.Time { return now }}}
	var rate cpuRate
	var last time.Time
	for _, step := range []struct {
		after        time.Duration
		known, again bool // a rate; the figures of before
	}{
		{after: 0},
		{after: time.Millisecond},
		{after: time.Millisecond},
		{after: time.Second, known: true},
		{after: time.Millisecond, known: true, again: true},
		{after: time.Second, known: true},
		{after: 2 * maxWindow},
		{after: time.Millisecond},
	} {
		now = now.Add(step.after)
		_, at, nanocores, err := m.usage("/c", cgstat.Tasks, &rate)
		if err != nil || nanocores.Known != step.known || at.Equal(last) != step.again {
			t.Errorf("after %v: read at %v, before at %v, rate %v, %v; want %+v", step.after, at, last, nanocores, err, step)
		}
		last = at
	}
}
