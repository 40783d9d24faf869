// Package monitortest has a monitor in memory, for tests of what uses one, and
// the behaviour that every monitor must show.
//
// A Fake is the monitor; a Front is a connection to it and has the methods of
// *monitor.Client. A restart of the daemon is a Front closed and another made:
//
//	fake := monitortest.New(t, monitortest.Options{})
//	front := fake.Connect(monitor.ClientOptions{OnExit: …})
//	…
//	fake.Exit(id, 3) // the container ends with code 3
//	fake.Settle()    // OnExit has returned on every front
//	…
//	if left := fake.Residue(); len(left) > 0 { … }
package monitortest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sort"
	"sync"
	"testing"
	"time"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/monitor"
)

// Outcome is what becomes of a container's program when it is started.
type Outcome struct {
	Err  error // it cannot be executed
	Ends bool  // it ends at once, with Code; otherwise it runs until told
	Code int
	// Run, if set, is the program, which ends with the code that it returns. It
	// runs from Start on, and what it writes goes to those who are attached.
	Run func(*Process) int
}

// Process is a program that runs.
type Process struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Killed         <-chan struct{} // closed when it was signalled to death
}

// Exec is an exec under way, for Options.Exec.
type Exec struct {
	Request monitor.ExecRequest
	Process
}

// Options of a Fake. The zero value is of use.
type Options struct {
	// Container says what the program does; nil means that it runs until told.
	// args are the process.args of the spec.
	Container func(args []string) Outcome
	// Exec is the exec's program: it returns the exit code. Nil means exit 0 at once.
	Exec func(*Exec) int
	// Now is for Exit.At; nil means time.Now.
	Now func() time.Time
}

type state string

const (
	created state = "created"
	running state = "running"
	exited  state = "exited"
)

type container struct {
	req     monitor.CreateRequest
	program Outcome
	pid     int
	state   state
	started bool
	exit    *monitor.Exit
	signals []int
	applied monitor.Applied
	io      *stdio
	inTaken bool // a client has had its stdin
	execs   map[string]*execution
}

type execution struct {
	front  *Front
	done   chan monitor.Exit // nil once its front is lost
	killed chan struct{}
}

// handed is a file that a caller got and must close.
type handed struct {
	file *os.File
	what string
}

// Fake is a monitor in memory. Its methods may be called concurrently.
type Fake struct {
	o    Options
	stop chan struct{} // closed with the test

	mu         sync.Mutex // never held while OnExit or an Options function runs
	containers map[string]*container
	holders    map[string]int // sandbox → pid
	orphans    map[string]*container
	lostHolds  map[string]int
	journal    []monitor.Exit
	fronts     map[*Front]bool
	failBefore map[string]error
	failAfter  map[string]error
	refuse     func(monitor.UpdateRequest) error // nil refuses nothing
	gates      map[string]*gate
	ignored    map[string]bool // containers that only SIGKILL ends
	calls      []string
	handed     []handed
	lastPID    int
	running    sync.WaitGroup // goroutines
}

// New is a monitor that holds nothing. It ends with the test.
func New(t testing.TB, o Options) *Fake {
	if o.Now == nil {
		o.Now = time.Now
	}
	f := &Fake{
		o:          o,
		stop:       make(chan struct{}),
		containers: map[string]*container{},
		holders:    map[string]int{},
		orphans:    map[string]*container{},
		lostHolds:  map[string]int{},
		fronts:     map[*Front]bool{},
		failBefore: map[string]error{},
		failAfter:  map[string]error{},
		gates:      map[string]*gate{},
		ignored:    map[string]bool{},
		// Above the kernel's largest PID: nothing real is ever hit.
		lastPID: 1 << 22,
	}
	t.Cleanup(func() {
		close(f.stop)
		f.loseFronts(errors.New("the test has ended"))
		f.killExecs()
		f.sealAll()
		f.running.Wait()
	})
	return f
}

// Connect is a new connection. Exits that are not acknowledged come at once.
func (f *Fake) Connect(o monitor.ClientOptions) *Front {
	fr := &Front{f: f, onExit: o.OnExit, done: make(chan struct{})}
	fr.some.L = &fr.mu
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fronts[fr] = true
	for _, e := range f.journal {
		fr.put(e)
	}
	fr.wg.Add(1)
	go fr.dispatch()
	return fr
}

// FailAt makes every call of op fail with err before it does anything, until
// FailAt(op, nil). Ops are the names in package monitor: monitor.OpCreate.
func (f *Fake) FailAt(op string, err error) { f.set(f.failBefore, op, err) }

// FailAfter is FailAt, but the call is carried out: as if its reply were lost.
func (f *Fake) FailAfter(op string, err error) { f.set(f.failAfter, op, err) }

func (f *Fake) set(m map[string]error, op string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m[op] = err; err == nil {
		delete(m, op)
	}
}

// gate holds calls of one op.
type gate struct {
	reached chan struct{}
	once    sync.Once
	open    chan struct{}
}

// Block holds every call of op until release is called; reached is closed when
// the first has come. A call whose context ends meanwhile returns and is carried
// out after the release, as by a real monitor. Safe to release twice.
func (f *Fake) Block(op string) (reached <-chan struct{}, release func()) {
	g := &gate{reached: make(chan struct{}), open: make(chan struct{})}
	f.mu.Lock()
	f.gates[op] = g
	f.mu.Unlock()
	var once sync.Once
	return g.reached, func() {
		once.Do(func() {
			f.mu.Lock()
			if f.gates[op] == g {
				delete(f.gates, op)
			}
			f.mu.Unlock()
			close(g.open)
		})
	}
}

// Exit ends a container that was created or runs. Not known or ended already: a
// panic, for the test is wrong. One that has no monitor after Crash ends unseen.
func (f *Fake) Exit(id string, code int) { f.end(id, code, false) }

// OOM ends a container as the kernel's OOM killer does.
func (f *Fake) OOM(id string) { f.end(id, 128+9, true) }

func (f *Fake) end(id string, code int, oom bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.orphans[id]; c != nil {
		f.endUnseenLocked(c)
		return
	}
	c := f.containers[id]
	if c == nil || c.state == exited {
		panic(fmt.Sprintf("monitortest: Exit(%s): no such container runs", id))
	}
	f.endLocked(c, monitor.Exit{ID: id, Code: code, At: f.o.Now(), OOMKilled: oom})
}

// endUnseenLocked ends a container without a monitor.
func (f *Fake) endUnseenLocked(c *container) {
	c.io.seal()
	c.state = exited
	c.exit = &monitor.Exit{ID: c.req.ID, Code: -1, At: f.o.Now(), Lost: true}
}

// endLocked ends a container and its execs, journals the exit and sends it.
func (f *Fake) endLocked(c *container, e monitor.Exit) {
	for id := range c.execs {
		f.endExecLocked(c, id, 128+9)
	}
	c.io.seal()
	c.state, c.exit = exited, &e
	f.journal = append(f.journal, e)
	for fr := range f.fronts {
		fr.put(e)
	}
}

func (f *Fake) endExecLocked(c *container, execID string, code int) {
	x := c.execs[execID]
	if x == nil {
		return
	}
	delete(c.execs, execID)
	close(x.killed)
	if x.done != nil {
		x.done <- monitor.Exit{ID: c.req.ID, ExecID: execID, Code: code, At: f.o.Now()}
	}
}

// loseExecsLocked tells whoever waits for an exec on fr that its end will not be
// known, and kills it.
func (f *Fake) loseExecsLocked(fr *Front) {
	for _, c := range f.containers {
		for id, x := range c.execs {
			if x.front == fr && x.done != nil {
				x.done <- monitor.Exit{ID: c.req.ID, ExecID: id, Code: -1, At: f.o.Now(), Lost: true}
				x.done = nil
				f.endExecLocked(c, id, 128+9)
			}
		}
	}
}

// ExitExec ends an exec. Not known: nothing happens.
func (f *Fake) ExitExec(id, execID string, code int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.containers[id]; c != nil {
		f.endExecLocked(c, execID, code)
	}
}

// IgnoreSignals lets the container's first process survive all but SIGKILL.
func (f *Fake) IgnoreSignals(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ignored[id] = true
}

// Settle waits until all exits so far have been handed to OnExit on all fronts,
// and it has returned.
func (f *Fake) Settle() {
	f.mu.Lock()
	fronts := slices.Collect(maps.Keys(f.fronts))
	f.mu.Unlock()
	for _, fr := range fronts {
		fr.settle()
	}
}

// Crash kills the monitor and starts another: all fronts are lost, containers
// and holders run on but are not known until adopted. The journal stays.
func (f *Fake) Crash() {
	f.loseFronts(errors.New("the connection was lost: EOF"))
	f.killExecs()
	f.mu.Lock()
	defer f.mu.Unlock()
	maps.Copy(f.orphans, f.containers)
	maps.Copy(f.lostHolds, f.holders)
	clear(f.containers)
	clear(f.holders)
}

// Disconnect loses all fronts, and nothing else.
func (f *Fake) Disconnect() { f.loseFronts(errors.New("the connection was lost: EOF")) }

func (f *Fake) loseFronts(why error) {
	f.mu.Lock()
	fronts := slices.Collect(maps.Keys(f.fronts))
	f.mu.Unlock()
	for _, fr := range fronts {
		fr.lose(why)
	}
}

func (f *Fake) killExecs() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.containers {
		for id := range c.execs {
			f.endExecLocked(c, id, 128+9)
		}
	}
}

// sealAll ends the programs of all containers.
func (f *Fake) sealAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range []map[string]*container{f.containers, f.orphans} {
		for _, c := range m {
			c.io.seal()
		}
	}
}

// Calls is what was asked so far, each as "op id", in order.
func (f *Fake) Calls() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// Signals is what the first process of a container was sent, in order.
func (f *Fake) Signals(id string) []int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.containers[id]; c != nil {
		return slices.Clone(c.signals)
	}
	return nil
}

// Created is the request that made a container, and whether there is one.
func (f *Fake) Created(id string) (monitor.CreateRequest, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.containers[id]
	if c == nil {
		return monitor.CreateRequest{}, false
	}
	return c.req, true
}

// Journal is the exits that are not acknowledged.
func (f *Fake) Journal() []monitor.Exit {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.journal)
}

// Residue names, sorted, what the monitor still holds, and the descriptors that
// it handed out and that are still open.
func (f *Fake) Residue() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var left []string
	for what, m := range map[string]map[string]*container{"container": f.containers, "orphaned container": f.orphans} {
		for id, c := range m {
			left = append(left, fmt.Sprintf("%s %s (%s)", what, id, c.state))
		}
	}
	for what, m := range map[string]map[string]int{"holder": f.holders, "orphaned holder": f.lostHolds} {
		for id := range m {
			left = append(left, what+" "+id)
		}
	}
	for _, e := range f.journal {
		left = append(left, "unacknowledged exit of "+e.ID)
	}
	for _, h := range f.handed {
		if raw, err := h.file.SyscallConn(); err == nil && raw.Control(func(uintptr) {}) == nil {
			left = append(left, h.what)
		}
	}
	sort.Strings(left)
	return left
}

// handLocked is an open file that stands for the descriptor name of id.
func (f *Fake) handLocked(id, name string) (*os.File, error) {
	file, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, errkind.Errorf(errkind.Other, "monitortest: %w", err)
	}
	f.handed = append(f.handed, handed{file, "open " + name + " of " + id})
	return file, nil
}

// holdLocked is a Hold with the descriptors of names.
func (f *Fake) holdLocked(id string, names []string) (*monitor.Hold, error) {
	h := new(monitor.Hold)
	for _, name := range names {
		file, err := f.handLocked(id, name)
		if err != nil {
			h.Close()
			return nil, err
		}
		switch name {
		case monitor.FDPid:
			h.PIDFD = file
		case monitor.FDStdout:
			h.Stdout = file
		case monitor.FDStderr:
			h.Stderr = file
		case monitor.FDStdin:
			h.Stdin = file
		case monitor.FDConsole:
			h.Console = file
		}
	}
	return h, nil
}

// argsOf is process.args of an OCI spec; nil when there are none.
func argsOf(spec json.RawMessage) []string {
	var s struct {
		Process struct {
			Args []string `json:"args"`
		} `json:"process"`
	}
	_ = json.Unmarshal(spec, &s) // a test's spec may be anything
	return s.Process.Args
}
