package image

import (
	"io"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
)

// Progress is where an operation tells how far it is, layer by layer. The zero
// value is ready; a nil one is told nothing. It may be read at any time.
type Progress struct {
	mu    sync.Mutex
	steps []*step // +checklocks:mu
}

// Step is one layer of an operation, or one archive.
type Step struct {
	Name  string    `json:"name"` // digest of the layer
	State StepState `json:"state"`
	Done  int64     `json:"done"`  // bytes so far
	Total int64     `json:"total"` // bytes in all; -1 when that is not known
}

// StepState says where a step is.
type StepState string

// The states of a step.
const (
	StepWaiting StepState = "waiting"
	StepRunning StepState = "running"
	StepDone    StepState = "done"
	StepExists  StepState = "exists" // the store had the layer
)

// Steps is a snapshot, in the order of the image, lowest layer first.
func (p *Progress) Steps() []Step {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]Step, 0, len(p.steps))
	for _, s := range p.steps {
		all = append(all, s.snapshot())
	}
	return all
}

// step is a place in a list, for a meter that comes later.
type step struct {
	name  digest.Digest
	total int64
	meter atomic.Pointer[meter]
}

// meter counts the bytes of one layer. Pulls that share a download share it.
type meter struct {
	done  atomic.Int64
	state atomic.Pointer[StepState] // nil means StepRunning
}

// add makes a step. A nil p makes one that nobody sees.
func (p *Progress) add(name digest.Digest, total int64) *step {
	s := &step{name: name, total: total}
	if p != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.steps = append(p.steps, s)
	}
	return s
}

func (s *step) snapshot() Step {
	m := s.meter.Load()
	out := Step{Name: string(s.name), State: StepWaiting, Total: s.total}
	if m == nil {
		return out
	}
	out.Done, out.State = m.done.Load(), StepRunning
	if state := m.state.Load(); state != nil {
		out.State = *state
	}
	return out
}

// begin starts the step with a meter of its own.
func (s *step) begin() *meter {
	m := &meter{}
	s.meter.Store(m)
	return m
}

// exists says that there is nothing to do.
func (s *step) exists() { s.begin().end(StepExists) }

func (m *meter) end(state StepState) { m.state.Store(&state) }

// reader counts what is read of r.
func (m *meter) reader(r io.Reader) io.Reader { return &meterReader{r, m} }

type meterReader struct {
	r io.Reader
	m *meter
}

func (r *meterReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.m.done.Add(int64(n))
	return n, err
}
