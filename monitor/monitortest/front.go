package monitortest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/monitor"
)

// Monitor is what a connection to a monitor can do: the methods of
// *monitor.Client.
type Monitor interface {
	Create(ctx context.Context, r monitor.CreateRequest) (monitor.CreateReply, *monitor.Hold, error)
	Start(ctx context.Context, id string) error
	Exec(ctx context.Context, r monitor.ExecRequest, stdio [3]*os.File) (*monitor.ExecProcess, error)
	Attach(ctx context.Context, r monitor.AttachRequest, stdio [3]*os.File) error
	Signal(ctx context.Context, r monitor.SignalRequest) error
	Resize(ctx context.Context, r monitor.ResizeRequest) error
	ReopenLog(ctx context.Context, id string) error
	Update(ctx context.Context, r monitor.UpdateRequest) (monitor.UpdateReply, error)
	Delete(ctx context.Context, r monitor.DeleteRequest) error
	Hold(ctx context.Context, r monitor.HoldRequest) (monitor.HoldReply, *os.File, error)
	Release(ctx context.Context, r monitor.ReleaseRequest) error
	Adopt(ctx context.Context, r monitor.AdoptRequest, h *monitor.Hold) error
	List(ctx context.Context) ([]monitor.Listed, error)
	Ack(ctx context.Context, id string) error
	Dump(ctx context.Context) (monitor.DumpReply, error)
	Shutdown(ctx context.Context) error
	Peer() monitor.Hello
	Done() <-chan struct{}
	Close()
}

var (
	_ Monitor = (*monitor.Client)(nil)
	_ Monitor = (*Front)(nil)
)

// Front is a connection to a Fake. See *monitor.Client for its methods.
type Front struct {
	f      *Fake
	onExit func(monitor.Exit)
	done   chan struct{}
	wg     sync.WaitGroup

	mu    sync.Mutex // taken after Fake.mu; not held while OnExit runs
	some  sync.Cond  // signalled when a field below changes
	exits []monitor.Exit
	busy  bool // OnExit runs
	lost  error
}

func (fr *Front) put(e monitor.Exit) {
	fr.mu.Lock()
	defer fr.mu.Unlock()
	if fr.lost == nil {
		fr.exits = append(fr.exits, e)
		fr.some.Broadcast()
	}
}

// dispatch calls OnExit until the front is lost and the queue is empty.
func (fr *Front) dispatch() {
	defer fr.wg.Done()
	fr.mu.Lock()
	defer fr.mu.Unlock()
	for {
		for len(fr.exits) == 0 && fr.lost == nil {
			fr.some.Wait()
		}
		if len(fr.exits) == 0 {
			return
		}
		e := fr.exits[0]
		fr.exits = fr.exits[1:]
		fr.busy = true
		fr.mu.Unlock()
		if fr.onExit != nil {
			fr.onExit(e)
		}
		fr.mu.Lock()
		fr.busy = false
		fr.some.Broadcast()
	}
}

func (fr *Front) settle() {
	fr.mu.Lock()
	defer fr.mu.Unlock()
	for fr.busy || len(fr.exits) > 0 {
		fr.some.Wait()
	}
}

// lose ends the front. Execs of it get their one Exit first, as with a Client.
func (fr *Front) lose(why error) {
	fr.f.mu.Lock()
	delete(fr.f.fronts, fr)
	fr.f.loseExecsLocked(fr)
	fr.f.mu.Unlock()
	fr.mu.Lock()
	defer fr.mu.Unlock()
	if fr.lost == nil {
		fr.lost = why
		close(fr.done)
		fr.some.Broadcast()
	}
}

// Close is *monitor.Client's.
func (fr *Front) Close() {
	fr.lose(errors.New("the connection was closed"))
	fr.mu.Lock()
	fr.exits = nil
	fr.some.Broadcast()
	fr.mu.Unlock()
	fr.wg.Wait()
}

// Done is *monitor.Client's.
func (fr *Front) Done() <-chan struct{} { return fr.done }

// Peer is *monitor.Client's.
func (fr *Front) Peer() monitor.Hello {
	return monitor.Hello{Version: monitor.Version, Build: "fake", PID: 1 << 22}
}

func (fr *Front) unavailable(op string) error {
	fr.mu.Lock()
	defer fr.mu.Unlock()
	if fr.lost == nil {
		return nil
	}
	return errkind.Errorf(errkind.Unavailable, "%s: crid-monitor: %w", op, fr.lost)
}

// run carries out one call. do runs with Fake.mu held; drop closes a result
// that nobody gets.
func run[T any](ctx context.Context, fr *Front, op, id string, do func() (T, error), drop func(T)) (T, error) {
	var none T
	if err := fr.unavailable(op); err != nil {
		return none, err
	}
	if err := ctx.Err(); err != nil {
		return none, fmt.Errorf("%s: crid-monitor was not asked: %w", op, err)
	}
	f := fr.f
	f.mu.Lock()
	f.calls = append(f.calls, op+" "+id)
	g := f.gates[op]
	f.mu.Unlock()
	if g == nil {
		return perform(f, op, do, drop)
	}
	return gated(ctx, fr, g, op, func() (T, error) { return perform(f, op, do, drop) }, drop)
}

// perform does it, unless the test wants it to fail.
func perform[T any](f *Fake, op string, do func() (T, error), drop func(T)) (T, error) {
	var none T
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.failBefore[op]; err != nil {
		return none, err
	}
	v, err := do()
	if err != nil {
		return none, err
	}
	if err := f.failAfter[op]; err != nil {
		drop(v)
		return none, err
	}
	return v, nil
}

// gated does it once the gate opens. Whoever waits may leave before.
func gated[T any](ctx context.Context, fr *Front, g *gate, op string, do func() (T, error), drop func(T)) (T, error) {
	type result struct {
		v   T
		err error
	}
	f := fr.f
	reply := make(chan result)
	left := make(chan struct{})
	f.running.Go(func() {
		select {
		case <-g.open:
		case <-f.stop:
			return
		}
		v, err := do()
		select {
		case reply <- result{v, err}:
		case <-left:
			if err == nil {
				f.mu.Lock()
				drop(v)
				f.mu.Unlock()
			}
		}
	})
	g.once.Do(func() { close(g.reached) })
	var none T
	select {
	case r := <-reply:
		return r.v, r.err
	case <-fr.done:
		close(left)
		return none, fr.unavailable(op)
	case <-ctx.Done():
		close(left)
		return none, fmt.Errorf("%s: waiting for crid-monitor: %w", op, ctx.Err())
	}
}

// do is run for calls without a result.
func (fr *Front) do(ctx context.Context, op, id string, do func() error) error {
	_, err := run(ctx, fr, op, id, func() (struct{}, error) { return struct{}{}, do() }, func(struct{}) {})
	return err
}

// findLocked is a container that must be there.
func (f *Fake) findLocked(id string) (*container, error) {
	c := f.containers[id]
	if c == nil {
		return nil, errkind.Errorf(errkind.NotFound, "no container %s", id)
	}
	return c, nil
}

// findRunningLocked is findLocked for one that must run.
func (f *Fake) findRunningLocked(id string) (*container, error) {
	c, err := f.findLocked(id)
	if err == nil && c.state != running {
		return nil, errkind.Errorf(errkind.BadState, "container %s is %s, not running", id, c.state)
	}
	return c, err
}

// Create is *monitor.Client's.
func (fr *Front) Create(ctx context.Context, r monitor.CreateRequest) (monitor.CreateReply, *monitor.Hold, error) {
	type made struct {
		reply monitor.CreateReply
		hold  *monitor.Hold
	}
	f := fr.f
	var program Outcome
	if f.o.Container != nil {
		program = f.o.Container(argsOf(r.Spec))
	}
	m, err := run(ctx, fr, monitor.OpCreate, r.ID, func() (made, error) {
		if f.containers[r.ID] != nil || f.orphans[r.ID] != nil {
			return made{}, errkind.Errorf(errkind.Exists, "container %s exists already", r.ID)
		}
		h, err := f.holdLocked(r.ID, r.FDs())
		if err != nil {
			return made{}, err
		}
		files, err := newStdio(&r)
		if err != nil {
			h.Close()
			return made{}, err
		}
		f.lastPID++
		f.containers[r.ID] = &container{req: r, program: program, pid: f.lastPID, state: created, execs: map[string]*execution{}, applied: appliedOf(r.Spec), io: files}
		return made{monitor.CreateReply{PID: f.lastPID, Applied: appliedOf(r.Spec)}, h}, nil
	}, func(m made) { m.hold.Close() })
	return m.reply, m.hold, err
}

// Start is *monitor.Client's.
func (fr *Front) Start(ctx context.Context, id string) error {
	f := fr.f
	return fr.do(ctx, monitor.OpStart, id, func() error {
		c, err := f.findLocked(id)
		if err != nil {
			return err
		}
		if c.state != created {
			return errkind.Errorf(errkind.BadState, "container %s is %s, not created", id, c.state)
		}
		if c.program.Err != nil {
			f.endLocked(c, monitor.Exit{ID: id, Code: 1, At: f.o.Now()})
			return c.program.Err
		}
		c.state, c.started = running, true
		if c.program.Run != nil {
			f.running.Go(func() { f.runProgram(c) })
		}
		if c.program.Ends {
			f.endLocked(c, monitor.Exit{ID: id, Code: c.program.Code, At: f.o.Now()})
		}
		return nil
	})
}

// harmless signals do not end a process that does not care for them.
var harmless = []int{0, int(syscall.SIGCHLD), int(syscall.SIGCONT), int(syscall.SIGURG), int(syscall.SIGWINCH)}

// Signal is *monitor.Client's.
func (fr *Front) Signal(ctx context.Context, r monitor.SignalRequest) error {
	f := fr.f
	return fr.do(ctx, monitor.OpSignal, r.ID, func() error {
		c, err := f.findLocked(r.ID)
		switch {
		case err != nil:
			return err
		case r.Signal < 0 || r.Signal > 64:
			return errkind.Errorf(errkind.Invalid, "signal %d: there are 0 to 64", r.Signal)
		case c.state == exited:
			return nil
		}
		deadly := !slices.Contains(harmless, r.Signal)
		if r.ExecID != "" {
			if deadly {
				f.endExecLocked(c, r.ExecID, 128+r.Signal)
			}
			return nil
		}
		c.signals = append(c.signals, r.Signal)
		if deadly && (!f.ignored[r.ID] || r.Signal == int(syscall.SIGKILL)) {
			f.endLocked(c, monitor.Exit{ID: r.ID, Code: 128 + r.Signal, At: f.o.Now()})
		}
		return nil
	})
}

// Resize is *monitor.Client's.
func (fr *Front) Resize(ctx context.Context, r monitor.ResizeRequest) error {
	f := fr.f
	return fr.do(ctx, monitor.OpResize, r.ID, func() error {
		c, err := f.findLocked(r.ID)
		if err == nil && r.ExecID == "" && !c.req.TTY {
			return errkind.Errorf(errkind.BadState, "container %s has no terminal", r.ID)
		}
		return err
	})
}

// ReopenLog is *monitor.Client's.
func (fr *Front) ReopenLog(ctx context.Context, id string) error {
	f := fr.f
	return fr.do(ctx, monitor.OpReopenLog, id, func() error {
		_, err := f.findRunningLocked(id)
		return err
	})
}

// Update is *monitor.Client's. What was asked for is applied as it is.
func (fr *Front) Update(ctx context.Context, r monitor.UpdateRequest) (monitor.UpdateReply, error) {
	f := fr.f
	applied := monitor.Applied{Resources: r.Resources, OOMScoreAdj: r.OOMScoreAdj}
	err := fr.do(ctx, monitor.OpUpdate, r.ID, func() error {
		c, err := f.findLocked(r.ID)
		if err != nil {
			return err
		}
		if c.state == exited {
			return errkind.Errorf(errkind.BadState, "container %s is exited", r.ID)
		}
		if f.refuse != nil {
			if err := f.refuse(r); err != nil {
				return err
			}
		}
		c.applied = applied
		return nil
	})
	return monitor.UpdateReply{Applied: applied}, err
}

// Delete is *monitor.Client's.
func (fr *Front) Delete(ctx context.Context, r monitor.DeleteRequest) error {
	f := fr.f
	return fr.do(ctx, monitor.OpDelete, r.ID, func() error {
		if c := f.containers[r.ID]; c != nil && c.state != exited {
			f.endLocked(c, monitor.Exit{ID: r.ID, Code: 128 + 9, At: f.o.Now()})
		}
		if c := f.orphans[r.ID]; c != nil {
			c.io.seal()
		}
		delete(f.containers, r.ID)
		delete(f.orphans, r.ID)
		delete(f.ignored, r.ID)
		f.ackLocked(r.ID)
		return nil
	})
}

func (f *Fake) ackLocked(id string) {
	f.journal = slices.DeleteFunc(f.journal, func(e monitor.Exit) bool { return e.ID == id })
}

// Ack is *monitor.Client's.
func (fr *Front) Ack(ctx context.Context, id string) error {
	return fr.do(ctx, monitor.OpAck, id, func() error {
		fr.f.ackLocked(id)
		return nil
	})
}
