package monitortest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/monitor"
)

// patience is how long a monitor may take for anything. Only a broken one does.
const patience = 60 * time.Second

// Env is a monitor under test, with nothing in it. What is left of it goes with
// the test that asked for it.
type Env struct {
	// Connect is a new connection to the monitor. The suite closes it.
	Connect func(t *testing.T, onExit func(monitor.Exit)) Monitor
	// Container is a request for a container that runs args, with a PID namespace
	// of its own, no log, and these programs in its PATH: sh, sleep, true, echo,
	// cat. The suite fills in ID, TTY and Stdin, and process.terminal in Spec; id
	// is for what has to be unique, like the cgroup.
	Container func(t *testing.T, id string, args ...string) monitor.CreateRequest
	// Hold is a request for a sandbox's PID namespace, complete.
	Hold func(t *testing.T, id string) monitor.HoldRequest
	// Crash kills the monitor and starts another in its place. Nil skips the tests
	// that need it.
	Crash func(t *testing.T)
}

// Suite is the behaviour that every monitor must show. start gives each test a
// monitor of its own.
//
// The programs that it runs are few, so that a Fake can play them: see Busybox.
func Suite(t *testing.T, start func(t *testing.T) Env) {
	for _, tt := range []struct {
		name string
		test func(*suite)
	}{
		{"ExitCodeArrives", (*suite).exitCodeArrives},
		{"ExitIsJournalledUntilAck", (*suite).exitIsJournalledUntilAck},
		{"ExitGoesToEveryConnection", (*suite).exitGoesToEveryConnection},
		{"ListAfterReconnect", (*suite).listAfterReconnect},
		{"HoldNamesDescriptors", (*suite).holdNamesDescriptors},
		{"ProgramThatIsNotThere", (*suite).programThatIsNotThere},
		{"ExecExits", (*suite).execExits},
		{"ExecsAtOnce", (*suite).execsAtOnce},
		{"ExecIsKilled", (*suite).execIsKilled},
		{"ExecWithTerminal", (*suite).execWithTerminal},
		{"ExecEndsWithConnection", (*suite).execEndsWithConnection},
		{"AttachEchoes", (*suite).attachEchoes},
		{"AttachStdinStaysOpen", (*suite).attachStdinStaysOpen},
		{"AttachBeforeStart", (*suite).attachBeforeStart},
		{"AttachClientVanishes", (*suite).attachClientVanishes},
		{"AttachErrors", (*suite).attachErrors},
		{"SignalAll", (*suite).signalAll},
		{"SignalToExited", (*suite).signalToExited},
		{"DeleteIsIdempotent", (*suite).deleteIsIdempotent},
		{"DeleteOfRunning", (*suite).deleteOfRunning},
		{"DeleteForgetsExit", (*suite).deleteForgetsExit},
		{"ErrorsKeepKinds", (*suite).errorsKeepKinds},
		{"HoldAndRelease", (*suite).holdAndRelease},
		{"EndedContextLeavesConnection", (*suite).endedContextLeavesConnection},
		{"ShutdownOnlyWhenEmpty", (*suite).shutdownOnlyWhenEmpty},
		{"CrashAndAdopt", (*suite).crashAndAdopt},
		{"CrashKeepsJournal", (*suite).crashKeepsJournal},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.test(newSuite(t, start(t))) })
	}
}

// Busybox is an Options.Container that knows the programs of Suite.
func Busybox(args []string) Outcome {
	var code int
	switch cmd := strings.Join(args, " "); {
	case cmd == "true":
		return Outcome{Ends: true}
	case cmd == "cat":
		return Outcome{Run: func(p *Process) int {
			_, _ = io.Copy(p.Stdout, p.Stdin)
			return 0
		}}
	case scan(cmd, "sh -c echo out; echo err >&2; exit %d", &code):
		return Outcome{Run: func(p *Process) int {
			_, _ = fmt.Fprintln(p.Stdout, "out")
			_, _ = fmt.Fprintln(p.Stderr, "err")
			return code
		}}
	case strings.Contains(cmd, "sleep "):
		return Outcome{}
	case scan(cmd, "sh -c exit %d", &code):
		return Outcome{Ends: true, Code: code}
	}
	return Outcome{Err: errkind.Errorf(errkind.Invalid, "exec %q: executable file not found in $PATH", args)}
}

// BusyboxExec is an Options.Exec that knows the programs of Suite.
func BusyboxExec(x *Exec) int {
	var code int
	args := x.Request.Args
	switch cmd := strings.Join(args, " "); {
	case args[0] == "sleep":
		<-x.Killed
	case args[0] == "echo":
		_, _ = fmt.Fprintln(x.Stdout, strings.Join(args[1:], " "))
	case args[0] == "cat":
		_, _ = io.Copy(x.Stdout, x.Stdin)
	case scan(cmd, "sh -c echo out; echo err >&2; exit %d", &code):
		_, _ = fmt.Fprintln(x.Stdout, "out")
		_, _ = fmt.Fprintln(x.Stderr, "err")
	}
	return code
}

// Container is an Env.Container for a Fake.
func Container(t *testing.T, _ string, args ...string) monitor.CreateRequest {
	t.Helper()
	list, err := json.Marshal(args)
	if err != nil {
		t.Fatal(err)
	}
	return monitor.CreateRequest{Spec: fmt.Appendf(nil, `{"process":{"args":%s}}`, list)}
}

func scan(s, format string, v any) bool {
	_, err := fmt.Sscanf(s, format, v)
	return err == nil
}

// suite is one test of Suite.
type suite struct {
	t    *testing.T
	env  Env
	ctx  context.Context //nolint:containedctx // the test's own
	last int
}

func newSuite(t *testing.T, env Env) *suite {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return &suite{t: t, env: env, ctx: ctx}
}

// conn is a connection that collects exits.
type conn struct {
	Monitor
	s     *suite
	mu    sync.Mutex
	exits []monitor.Exit
	more  chan struct{} // closed and replaced when an exit comes
}

func (s *suite) connect() *conn {
	s.t.Helper()
	c := &conn{s: s, more: make(chan struct{})}
	c.Monitor = s.env.Connect(s.t, func(e monitor.Exit) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.exits = append(c.exits, e)
		close(c.more)
		c.more = make(chan struct{})
	})
	s.t.Cleanup(c.Close)
	return c
}

// exit waits for the exit of a container.
func (c *conn) exit(id string) monitor.Exit {
	c.s.t.Helper()
	for {
		c.mu.Lock()
		i := slices.IndexFunc(c.exits, func(e monitor.Exit) bool { return e.ID == id })
		if i >= 0 {
			defer c.mu.Unlock()
			return c.exits[i]
		}
		more := c.more
		c.mu.Unlock()
		select {
		case <-more:
		case <-c.Done():
			c.s.t.Fatalf("the connection was lost before the exit of %s came", id)
		case <-c.s.ctx.Done():
			c.s.t.Fatalf("no exit of %s came", id)
		}
	}
}

// count is how often a container's exit has come so far.
func (c *conn) count(id string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.exits {
		if e.ID == id {
			n++
		}
	}
	return n
}

func (s *suite) id(what string) string {
	s.last++
	return fmt.Sprintf("suite-%d-%s%d", os.Getpid(), what, s.last)
}

// request is a request for a new container, which is deleted with the test.
func (s *suite) request(args ...string) monitor.CreateRequest {
	s.t.Helper()
	id := s.id("c")
	r := s.env.Container(s.t, id, args...)
	r.ID = id
	s.t.Cleanup(func() {
		// By a connection of its own: the test may have lost its.
		m := s.env.Connect(s.t, nil)
		defer m.Close()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := m.Delete(ctx, deleteOf(r)); err != nil {
			s.t.Errorf("Delete(%s) at the end = %v, want nil", id, err)
		}
	})
	return r
}

// deleteOf is the request to delete what r created.
func deleteOf(r monitor.CreateRequest) monitor.DeleteRequest {
	var spec struct {
		Linux struct {
			CgroupsPath string `json:"cgroupsPath"`
		} `json:"linux"`
	}
	_ = json.Unmarshal(r.Spec, &spec)
	return monitor.DeleteRequest{ID: r.ID, CgroupsPath: spec.Linux.CgroupsPath, SystemdCgroup: r.SystemdCgroup}
}

// withTerminal is r with a terminal.
func (s *suite) withTerminal(r monitor.CreateRequest) monitor.CreateRequest {
	s.t.Helper()
	var spec map[string]any
	if err := json.Unmarshal(r.Spec, &spec); err != nil {
		s.t.Fatal(err)
	}
	if process, ok := spec["process"].(map[string]any); ok {
		process["terminal"] = true
	}
	var err error
	if r.Spec, err = json.Marshal(spec); err != nil {
		s.t.Fatal(err)
	}
	r.TTY = true
	return r
}

// create makes a container whose descriptors are closed with the test.
func (s *suite) create(c *conn, r monitor.CreateRequest) *monitor.Hold {
	s.t.Helper()
	reply, h, err := c.Create(s.ctx, r)
	if err != nil {
		s.t.Fatalf("Create(%s) = %v, want nil", r.ID, err)
	}
	s.t.Cleanup(h.Close)
	if reply.PID <= 0 {
		s.t.Errorf("Create(%s): PID %d, want one", r.ID, reply.PID)
	}
	return h
}

// run creates and starts a container.
func (s *suite) run(c *conn, args ...string) (id string, r monitor.CreateRequest) {
	s.t.Helper()
	r = s.request(args...)
	s.create(c, r)
	s.must("Start", c.Start(s.ctx, r.ID))
	return r.ID, r
}

// list is what the monitor lists, by ID. Its descriptors are closed with the test.
func (s *suite) list(c *conn) map[string]monitor.Listed {
	s.t.Helper()
	all, err := c.List(s.ctx)
	if err != nil {
		s.t.Fatalf("List = %v, want nil", err)
	}
	m := map[string]monitor.Listed{}
	for _, l := range all {
		s.t.Cleanup(l.Hold.Close)
		m[l.ID] = l
	}
	return m
}

func (s *suite) must(what string, err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatalf("%s = %v, want nil", what, err)
	}
}

// wantKind checks an error that must have come through with its kind.
func (s *suite) wantKind(what string, err error, want errkind.Kind) {
	s.t.Helper()
	if err == nil || errkind.Of(err) != want {
		s.t.Errorf("%s = %v (%v), want an error of kind %v", what, err, errkind.Of(err), want)
	}
}

// wantCode checks an exit that was seen.
func (s *suite) wantCode(e monitor.Exit, want int) {
	s.t.Helper()
	if e.Code != want || e.Lost {
		s.t.Errorf("exit of %s%s: code %d, lost %t, want %d, false", e.ID, e.ExecID, e.Code, e.Lost, want)
	}
	if e.At.IsZero() {
		s.t.Errorf("exit of %s%s without a time", e.ID, e.ExecID)
	}
}

// execEnd waits for the exit of an exec.
func (s *suite) execEnd(p *monitor.ExecProcess) monitor.Exit {
	s.t.Helper()
	select {
	case e := <-p.Done:
		return e
	case <-s.ctx.Done():
		s.t.Fatal("no exit of the exec came")
		return monitor.Exit{}
	}
}

// kill sends SIGKILL to all of a container and waits for its exit.
func (s *suite) kill(c *conn, id string) {
	s.t.Helper()
	s.must("Signal(KILL, all)", c.Signal(s.ctx, monitor.SignalRequest{ID: id, Signal: int(syscall.SIGKILL), All: true}))
	s.wantCode(c.exit(id), 128+9)
}

// isEnded says whether err is that of a context that was cancelled.
func isEnded(err error) bool { return errors.Is(err, context.Canceled) }
