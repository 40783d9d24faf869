package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
)

// socketPair is two ends of a connection. The second is closed with the test.
func socketPair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		c, err := net.FileConn(f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = c.(*net.UnixConn)
	}
	t.Cleanup(func() { _ = ends[1].Close() })
	return ends[0], ends[1]
}

// peer is the monitor's end, played by a test.
type peer struct {
	t *testing.T
	*Conn
}

// connected is a client and its peer. Neither descriptor nor goroutine may be
// left in the end.
func connected(t *testing.T, o ClientOptions) (*Client, *peer) {
	t.Helper()
	testutil.LeakCheck(t)
	a, b := socketPair(t)
	p := &peer{t, NewConn(b)}
	hello := make(chan error, 1)
	go func() { hello <- p.hello(Hello{Version: Version, Build: "test", PID: 1}) }()
	c, err := newClient(t.Context(), a, o)
	if err != nil {
		t.Fatalf("newClient = %v, want nil", err)
	}
	if err := <-hello; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		_ = p.Close()
	})
	return c, p
}

func openFDs(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range all {
		// The poller's own come with the first socket and stay.
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && !strings.HasPrefix(to, "anon_inode:[event") {
			n++
		}
	}
	return n
}

// hello answers the first frame.
func (p *peer) hello(h Hello) error {
	f, err := p.Conn.Read()
	if err != nil {
		return err
	}
	reply, err := NewFrame(f.ID, f.Op, h)
	if err != nil {
		return err
	}
	return p.Write(reply)
}

// next is the next request, which must be op.
func (p *peer) next(op string) Frame {
	p.t.Helper()
	f, err := p.Conn.Read()
	if err != nil || f.Op != op {
		p.t.Fatalf("the client sent %q, %v, want %q", f.Op, err, op)
	}
	f.CloseFiles()
	return f
}

func (p *peer) send(id uint64, op string, v any, files ...*os.File) {
	p.t.Helper()
	f, err := NewFrame(id, op, v, files...)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := p.Write(f); err != nil {
		p.t.Fatal(err)
	}
}

func nulls(t *testing.T, n int) []*os.File {
	t.Helper()
	files := make([]*os.File, n)
	for i := range files {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		files[i] = f
	}
	return files
}

// works checks that the connection is of use.
func works(t *testing.T, c *Client, p *peer) {
	t.Helper()
	got := make(chan error, 1)
	go func() { got <- c.Ack(t.Context(), "x") }()
	p.send(p.next(OpAck).ID, OpAck, nil)
	if err := <-got; err != nil {
		t.Errorf("Ack = %v, want nil: the connection should go on", err)
	}
}

func TestLateReplyIsDropped(t *testing.T) {
	c, p := connected(t, ClientOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan error, 1)
	go func() {
		_, _, err := c.Create(ctx, CreateRequest{ID: "a"})
		got <- err
	}()
	late := p.next(OpCreate)
	cancel()
	if err := <-got; !errors.Is(err, context.Canceled) {
		t.Errorf("Create = %v, want context.Canceled", err)
	}
	works(t, c, p)
	files := nulls(t, 3)
	p.send(late.ID, OpCreate, CreateReply{PID: 1}, files...)
	closeAll(files)
	works(t, c, p) // behind the late reply, whose descriptors are checked in the end
}

func TestDeleteWaitsForCreateThatWasGivenUp(t *testing.T) {
	c, p := connected(t, ClientOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	created, deleted := make(chan error, 1), make(chan error, 1)
	go func() {
		_, _, err := c.Create(ctx, CreateRequest{ID: "a"})
		created <- err
	}()
	late := p.next(OpCreate)
	cancel()
	<-created
	if err := c.Delete(ctx, DeleteRequest{ID: "a"}); !errors.Is(err, context.Canceled) {
		t.Errorf("Delete = %v, want context.Canceled", err)
	}
	go func() { deleted <- c.Delete(t.Context(), DeleteRequest{ID: "a"}) }()
	cut := p.next(OpSignal) // the container may hang while it is made
	works(t, c, p)          // others do not wait, and Delete has not been sent
	_ = p.Write(Frame{ID: late.ID, Op: OpCreate, Error: &WireError{"other", "no"}})
	p.send(cut.ID, OpSignal, nil)
	p.send(p.next(OpDelete).ID, OpDelete, nil)
	if err := <-deleted; err != nil {
		t.Errorf("Delete = %v, want nil", err)
	}
}

func TestLateExecIsKilled(t *testing.T) {
	c, p := connected(t, ClientOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan error, 1)
	go func() {
		_, err := c.Exec(ctx, ExecRequest{ID: "a", ExecID: "e", TTY: true}, [3]*os.File{})
		got <- err
	}()
	late := p.next(OpExec)
	cancel()
	if err := <-got; !errors.Is(err, context.Canceled) {
		t.Errorf("Exec = %v, want context.Canceled", err)
	}
	console := nulls(t, 1)
	p.send(late.ID, OpExec, ExecReply{PID: 1}, console...)
	closeAll(console)
	f := p.next(OpSignal)
	var r SignalRequest
	if err := f.Decode(&r); err != nil {
		t.Fatal(err)
	}
	if want := (SignalRequest{ID: "a", ExecID: "e", Signal: 9, All: true}); r != want {
		t.Errorf("after the late reply the client asked for %+v, want %+v", r, want)
	}
	p.send(f.ID, OpSignal, nil)
	p.send(0, OpExit, Exit{ID: "a", ExecID: "e", Code: 137}) // nobody waits for it
	works(t, c, p)
}

func TestExecTakesStdioAndLeavesItTheCallers(t *testing.T) {
	c, p := connected(t, ClientOptions{})
	stdio := nulls(t, 2)
	got := make(chan error, 1)
	var x *ExecProcess
	go func() {
		var err error
		x, err = c.Exec(t.Context(), ExecRequest{ID: "a", ExecID: "e"}, [3]*os.File{nil, stdio[0], stdio[1]})
		got <- err
	}()
	f, err := p.Conn.Read()
	if err != nil || len(f.Files) != 3 {
		t.Fatalf("the request came with %d descriptors, %v, want 3", len(f.Files), err)
	}
	f.CloseFiles()
	// The exit may come before the reply.
	p.send(0, OpExit, Exit{ID: "a", ExecID: "e", Code: 4})
	p.send(f.ID, OpExec, ExecReply{PID: 7})
	if err := <-got; err != nil || x.PID != 7 {
		t.Fatalf("Exec = %+v, %v, want pid 7", x, err)
	}
	if e := <-x.Done; e.Code != 4 || e.Lost {
		t.Errorf("Done = %+v, want code 4", e)
	}
	for _, f := range stdio {
		if err := f.Close(); err != nil {
			t.Errorf("Close of what Exec was given = %v, want nil", err)
		}
	}
}

func TestExecIDInUse(t *testing.T) {
	c, p := connected(t, ClientOptions{})
	got := make(chan error, 1)
	exec := func() error {
		_, err := c.Exec(t.Context(), ExecRequest{ID: "a", ExecID: "e"}, [3]*os.File{})
		return err
	}
	go func() { got <- exec() }()
	f := p.next(OpExec)
	if err := exec(); !errkind.Is(err, errkind.Exists) {
		t.Errorf("Exec with an ExecID in use = %v, want kind exists", err)
	}
	_ = p.Write(Frame{ID: f.ID, Op: OpExec, Error: &WireError{"bad state", "not running"}})
	if err := <-got; !errkind.Is(err, errkind.BadState) || err.Error() != "not running" {
		t.Errorf("Exec = %v (%v), want not running (bad state)", err, errkind.Of(err))
	}
}

func TestLostConnection(t *testing.T) {
	c, p := connected(t, ClientOptions{})
	execs := make(chan *ExecProcess, 1)
	go func() {
		x, _ := c.Exec(t.Context(), ExecRequest{ID: "a", ExecID: "e"}, [3]*os.File{})
		execs <- x
	}()
	p.send(p.next(OpExec).ID, OpExec, ExecReply{PID: 7})
	x := <-execs
	pending := make(chan error, 1)
	go func() { pending <- c.Start(t.Context(), "a") }()
	p.next(OpStart)
	_ = p.Close()

	<-c.Done()
	if err := <-pending; !errkind.Is(err, errkind.Unavailable) {
		t.Errorf("Start under way = %v, want kind unavailable", err)
	}
	if e := <-x.Done; !e.Lost || e.Code != -1 || e.ExecID != "e" {
		t.Errorf("Done = %+v, want lost and -1", e)
	}
	if err := c.Start(t.Context(), "a"); !errkind.Is(err, errkind.Unavailable) {
		t.Errorf("Start = %v, want kind unavailable", err)
	}
	if _, err := c.Exec(t.Context(), ExecRequest{}, [3]*os.File{}); !errkind.Is(err, errkind.Unavailable) {
		t.Errorf("Exec = %v, want kind unavailable", err)
	}
}

func TestExitsComeInOrder(t *testing.T) {
	const exits = 1000
	var got []int
	all := make(chan struct{})
	var c *Client
	ready := make(chan struct{})
	o := ClientOptions{OnExit: func(e Exit) {
		<-ready
		// The client is of use in OnExit, and the queue does not stop the reader.
		if err := c.Ack(context.Background(), e.ID); err != nil {
			t.Errorf("Ack in OnExit = %v, want nil", err)
		}
		if got = append(got, e.Code); len(got) == exits {
			close(all)
		}
	}}
	c, p := connected(t, o)
	for i := range exits {
		p.send(0, OpExit, Exit{ID: "a", Code: i})
	}
	close(ready)
	for range exits {
		p.send(p.next(OpAck).ID, OpAck, nil)
	}
	<-all
	for i, code := range got {
		if code != i {
			t.Fatalf("exit %d has code %d, want %d", i, code, i)
		}
	}
}

func TestCloseStopsOnExit(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	calls := 0
	c, p := connected(t, ClientOptions{OnExit: func(Exit) {
		calls++
		close(entered)
		<-leave
	}})
	p.send(0, OpExit, Exit{ID: "a"})
	p.send(0, OpExit, Exit{ID: "b"})
	<-entered
	works(t, c, p) // both are there, one queued
	closed := make(chan struct{})
	go func() { c.Close(); close(closed) }()
	<-c.Done()
	close(leave)
	<-closed
	c.Close()
	if calls != 1 {
		t.Errorf("OnExit was called %d times, want 1: not after Close", calls)
	}
	if err := c.Ack(t.Context(), "a"); !errkind.Is(err, errkind.Unavailable) {
		t.Errorf("Ack after Close = %v, want kind unavailable", err)
	}
}

func TestPeerThatBreaksTheProtocol(t *testing.T) {
	for _, tt := range []struct {
		name string
		send func(p *peer, id uint64)
	}{
		{"reply to nothing", func(p *peer, id uint64) { p.send(id+7, OpStart, nil) }},
		{"reply to another op", func(p *peer, id uint64) { p.send(id, OpAck, nil) }},
		{"exit that is none", func(p *peer, _ uint64) { p.send(0, OpExit, "x") }},
		{"garbage", func(p *peer, _ uint64) { _, _ = p.c.Write([]byte("GET / HTTP/1.1\r\n")) }},
		{"half a frame", func(p *peer, _ uint64) { _, _ = p.c.Write([]byte{0, 0, 0, 9, '{'}); _ = p.Close() }},
		{"missing descriptors", func(p *peer, _ uint64) {
			_, _ = p.c.Write(append([]byte{0, 0, 0, 21}, `{"op":"exit","fds":1}`...))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, p := connected(t, ClientOptions{})
			got := make(chan error, 1)
			go func() { got <- c.Start(t.Context(), "a") }()
			tt.send(p, p.next(OpStart).ID)
			if err := <-got; !errkind.Is(err, errkind.Unavailable) {
				t.Errorf("Start = %v, want kind unavailable", err)
			}
			<-c.Done()
		})
	}
}

func TestWrongNumberOfDescriptors(t *testing.T) {
	c, p := connected(t, ClientOptions{})
	for n := range 5 {
		files := nulls(t, n)
		got := make(chan error, 1)
		go func() {
			_, h, err := c.Create(t.Context(), CreateRequest{ID: "a"})
			h.Close()
			got <- err
		}()
		p.send(p.next(OpCreate).ID, OpCreate, CreateReply{PID: 1}, files...)
		if err := <-got; (err == nil) != (n == 3) {
			t.Errorf("Create with %d descriptors in the reply = %v, want an error unless 3", n, err)
		}
		go func() {
			_, err := c.Exec(t.Context(), ExecRequest{ID: "a", ExecID: fmt.Sprint(n)}, [3]*os.File{})
			got <- err
		}()
		p.send(p.next(OpExec).ID, OpExec, ExecReply{PID: 1}, files...)
		if n > 0 { // it runs, and nobody can use it
			p.send(p.next(OpSignal).ID, OpSignal, nil)
		}
		if err := <-got; (err == nil) != (n == 0) {
			t.Errorf("Exec with %d descriptors in the reply = %v, want an error unless 0", n, err)
		}
		go func() {
			all, err := c.List(t.Context())
			for _, l := range all {
				l.Hold.Close()
			}
			got <- err
		}()
		items := []ListItem{{ID: "a", FDs: []string{FDPid, "of a newer monitor"}}, {ID: "b", FDs: []string{FDPid}}}
		p.send(p.next(OpList).ID, OpList, ListReply{items}, files...)
		if err := <-got; (err == nil) != (n == 3) {
			t.Errorf("List with %d descriptors in the reply = %v, want an error unless 3", n, err)
		}
		closeAll(files)
	}
}

func TestFrameTooLargeLeavesConnection(t *testing.T) {
	c, p := connected(t, ClientOptions{})
	spec, err := json.Marshal(strings.Repeat("x", MaxFrame))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Create(t.Context(), CreateRequest{Spec: spec}); !errkind.Is(err, errkind.Invalid) {
		t.Errorf("Create with a spec of 4 MiB = %v, want kind invalid", err)
	}
	if _, _, err := c.Create(t.Context(), CreateRequest{Spec: []byte("{")}); !errkind.Is(err, errkind.Invalid) {
		t.Errorf("Create with a spec that is no JSON = %v, want kind invalid", err)
	}
	works(t, c, p)
}

func TestVersions(t *testing.T) {
	for _, tt := range []struct {
		version int
		want    string // in the error; "" means none
	}{
		{Version, ""},
		{Version - 1, ""},
		{Version - 2, "drain the node and restart the monitor"},
		{Version + 1, "install the crid that belongs to that monitor"},
	} {
		t.Run(fmt.Sprint(tt.version), func(t *testing.T) {
			a, b := socketPair(t)
			p := &peer{t, NewConn(b)}
			done := make(chan error, 1)
			go func() { done <- p.hello(Hello{Version: tt.version, Build: "b", PID: 42}) }()
			c, err := newClient(t.Context(), a, ClientOptions{})
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if tt.want == "" {
				if err != nil {
					t.Fatalf("monitor of version %d: %v, want nil", tt.version, err)
				}
				if got := c.Peer().Version; got != tt.version {
					t.Errorf("Peer().Version = %d, want %d", got, tt.version)
				}
				c.Close()
				return
			}
			if !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "pid 42") {
				t.Errorf("monitor of version %d: %v, want ErrVersion that says %q and the pid", tt.version, err, tt.want)
			}
		})
	}
}

func TestConnectToSilentMonitor(t *testing.T) {
	before := openFDs(t)
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		c, err := l.Accept()
		if err == nil {
			f := make([]byte, 1)
			_, _ = c.Read(f) // Hello is on its way: now it waits
			cancel()
			_ = c.Close()
		}
	}()
	if _, err := Connect(ctx, socket, ClientOptions{}); !errkind.Is(err, errkind.Unavailable) {
		t.Errorf("Connect = %v, want kind unavailable", err)
	}
	_ = l.Close()
	if _, err := Connect(t.Context(), socket, ClientOptions{}); !errors.Is(err, syscall.ENOENT) || !errkind.Is(err, errkind.Unavailable) {
		t.Errorf("Connect to nobody = %v, want ENOENT of kind unavailable", err)
	}
	if got := openFDs(t); got > before {
		t.Errorf("%d descriptors open in the end, %d before", got, before)
	}
}
