package sandboxtest

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// ErrInjected is what fails where a test has told it to.
var ErrInjected = errors.New("injected by the test")

// errCrashed is what a manager sees that has crashed, whatever it tries.
var errCrashed = errors.New("this crid has crashed")

// Faults lets operations of a fake fail or wait. Operations are named after
// their methods: "attach", "prepare".
type Faults struct {
	mu     sync.Mutex
	before map[string]error
	after  map[string]error
	gates  map[string]*gate
}

type gate struct {
	reached chan struct{}
	once    sync.Once
	open    chan struct{}
}

// FailAt makes op fail before it does anything, until FailAt(op, nil).
func (f *Faults) FailAt(op string, err error) { f.set(&f.before, op, err) }

// FailAfter makes op fail when it has been done.
func (f *Faults) FailAfter(op string, err error) { f.set(&f.after, op, err) }

func (f *Faults) set(m *map[string]error, op string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if *m == nil {
		*m = map[string]error{}
	}
	if (*m)[op] = err; err == nil {
		delete(*m, op)
	}
}

// Block holds op until release is called or its context ends; reached is closed
// when the first call has come.
func (f *Faults) Block(op string) (reached <-chan struct{}, release func()) {
	g := &gate{reached: make(chan struct{}), open: make(chan struct{})}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gates == nil {
		f.gates = map[string]*gate{}
	}
	f.gates[op] = g
	return g.reached, sync.OnceFunc(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.gates[op] == g {
			delete(f.gates, op)
		}
		close(g.open)
	})
}

// do carries out op by calling effect, as faults allow.
func (f *Faults) do(ctx context.Context, op string, effect func() error) error {
	f.mu.Lock()
	before, after, g := f.before[op], f.after[op], f.gates[op]
	f.mu.Unlock()
	if g != nil {
		g.once.Do(func() { close(g.reached) })
		select {
		case <-g.open:
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", op, context.Cause(ctx))
		}
	}
	if before != nil {
		return before
	}
	if err := effect(); err != nil {
		return err
	}
	return after
}
