package sandbox_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
	"github.com/cridproject/crid/monitor"
	"github.com/cridproject/crid/monitor/monitortest"
	"github.com/cridproject/crid/sandbox"
	"github.com/cridproject/crid/sandbox/config"
	"github.com/cridproject/crid/sandbox/sandboxtest"
)

// streamPrograms are what execs with streams run.
func streamPrograms(e *monitortest.Exec) int {
	switch e.Request.Args[0] {
	case "cat":
		_, _ = io.Copy(e.Stdout, e.Stdin)
		_, _ = io.WriteString(e.Stderr, "done")
		return 3
	case "size":
		if e.Request.Rows != 24 || e.Request.Columns != 80 {
			return 1
		}
		return 0
	}
	return programs(e)
}

func TestExec(t *testing.T) {
	testutil.LeakCheck(t)
	n := sandboxtest.NewWith(t, monitortest.Options{Exec: streamPrograms})
	_, id := mustLive(t, n, sandboxtest.Pod("web"), sandboxtest.Container("main"))
	var out, errOut bytes.Buffer
	s := sandbox.Streams{Stdin: strings.NewReader("hello"), Stdout: &out, Stderr: &errOut}
	if code, err := n.Manager.Exec(t.Context(), string(id), []string{"cat"}, s); err != nil || code != 3 || out.String() != "hello" || errOut.String() != "done" {
		t.Errorf("cat = %d, %v, %q, %q, want 3 and both outputs", code, err, &out, &errOut)
	}
	sizes := make(chan sandbox.Size, 1)
	sizes <- sandbox.Size{Rows: 24, Columns: 80}
	s = sandbox.Streams{Stdout: &out, TTY: true, Resize: sizes}
	if code, err := n.Manager.Exec(t.Context(), string(id), []string{"size"}, s); err != nil || code != 0 {
		t.Errorf("exec with a terminal = %d, %v, want it to have the client's size", code, err)
	}
	if _, err := n.Manager.Exec(t.Context(), string(id), nil, s); !errkind.Is(err, errkind.Invalid) {
		t.Errorf("no command = %v, want kind invalid", err)
	}
	for name, tty := range map[string]bool{"pipes": false, "terminal": true} {
		gone := errors.New("gone fishing")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel2 := cancelled(n, "exec", func() { cancel(gone) })
		_, err := n.Manager.Exec(ctx, string(id), []string{"hang"}, sandbox.Streams{Stdout: io.Discard, TTY: tty})
		cancel2()
		if err == nil || !errors.Is(err, gone) {
			t.Errorf("%s: an exec whose client goes = %v, want the cause", name, err)
		}
	}
	if err := n.Manager.Stop(t.Context(), string(id), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Manager.MayExec(string(id)); !errkind.Is(err, errkind.BadState) {
		t.Errorf("MayExec in what has exited = %v, want kind bad state", err)
	}
	if _, err := n.Manager.MayAttach(string(id)); !errkind.Is(err, errkind.BadState) {
		t.Errorf("MayAttach to what has exited = %v, want kind bad state", err)
	}
}

// cancelled calls cancel when an exec has begun.
func cancelled(n *sandboxtest.Node, op string, cancel func()) (wait func()) {
	before, done, stop := len(n.Monitor.Calls()), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			for _, c := range n.Monitor.Calls()[before:] {
				if strings.HasPrefix(c, op) {
					cancel()
					return
				}
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	return func() {
		close(stop)
		<-done
	}
}

// slow takes its time: nothing of what was written before the exit may be lost.
type slow struct {
	bytes.Buffer
	gate chan struct{}
}

func (s *slow) Write(p []byte) (int, error) {
	<-s.gate
	return s.Buffer.Write(p)
}

func TestExecSlowClientGetsAll(t *testing.T) {
	testutil.LeakCheck(t)
	var held []*os.File
	n := sandboxtest.NewWith(t, monitortest.Options{Exec: func(e *monitortest.Exec) int {
		_, _ = e.Stdout.Write(bytes.Repeat([]byte("x"), 60<<10))
		return 0
	}}, func(o *sandbox.Options) {
		connect := o.ConnectMonitor
		o.ConnectMonitor = func(ctx context.Context, onExit func(monitor.Exit)) (sandbox.Monitor, error) {
			m, err := connect(ctx, onExit)
			return grandchild{m, &held}, err
		}
	})
	_, id := mustLive(t, n, sandboxtest.Pod("web"), sandboxtest.Container("main"))
	out := &slow{gate: make(chan struct{})}
	cancel := cancelled(n, "exec", func() { close(out.gate) })
	defer cancel()
	code, err := n.Manager.Exec(t.Context(), string(id), []string{"x"}, sandbox.Streams{Stdout: out})
	if err != nil || code != 0 || out.Len() != 60<<10 {
		t.Errorf("Exec = %d, %v with %d bytes, want all of 60 KiB although somebody holds the pipe", code, err, out.Len())
	}
	for _, f := range held {
		_ = f.Close()
	}
}

// echoing is a node whose containers say what they hear.
func echoing(t *testing.T) (n *sandboxtest.Node, id config.ContainerID) {
	t.Helper()
	n = sandboxtest.NewWith(t, monitortest.Options{Container: func([]string) monitortest.Outcome {
		return monitortest.Outcome{Run: func(p *monitortest.Process) int {
			_, _ = io.Copy(p.Stdout, p.Stdin)
			<-p.Killed
			return 0
		}}
	}})
	c := sandboxtest.Container("main")
	c.Stdin = true
	_, id = mustLive(t, n, sandboxtest.Pod("web"), c)
	return n, id
}

// seen calls f at the first write.
type seen struct {
	once sync.Once
	f    func()
}

func (s *seen) Write(p []byte) (int, error) {
	s.once.Do(s.f)
	return len(p), nil
}

func TestAttach(t *testing.T) {
	testutil.LeakCheck(t)
	n, id := echoing(t)
	attach := func(s sandbox.Streams) error { return n.Manager.Attach(t.Context(), string(id), s) }
	in, typed := io.Pipe()
	go func() { _, _ = typed.Write([]byte("hello")) }()
	defer typed.Close()
	if err := attach(sandbox.Streams{Stdin: strings.NewReader("bye"), Stdout: io.Discard}); err != nil {
		t.Errorf("Attach until the end of stdin = %v, want nil", err)
	}
	// On a goroutine: Exit waits for what the clients have not read.
	exit := &seen{f: func() { go n.Monitor.Exit(string(id), 0) }}
	if err := attach(sandbox.Streams{Stdin: in, Stdout: exit}); err != nil {
		t.Errorf("Attach until the exit = %v, want nil", err)
	}
	if err := attach(sandbox.Streams{Stdout: io.Discard}); !errkind.Is(err, errkind.BadState) {
		t.Errorf("Attach to what has exited = %v, want kind bad state", err)
	}
	if err := n.Manager.Attach(t.Context(), "xyz", sandbox.Streams{Stdout: io.Discard}); !errkind.Is(err, errkind.NotFound) {
		t.Errorf("Attach to nothing = %v, want kind not found", err)
	}
}

func TestAttachToNoStdin(t *testing.T) {
	n := sandboxtest.New(t)
	_, id := mustLive(t, n, sandboxtest.Pod("web"), sandboxtest.Container("main"))
	err := n.Manager.Attach(t.Context(), string(id), sandbox.Streams{Stdin: strings.NewReader("")})
	if !errkind.Is(err, errkind.BadState) {
		t.Errorf("Attach to a stdin that is not there = %v, want kind bad state", err)
	}
}

func TestAttachLosesItsMonitor(t *testing.T) {
	n, id := echoing(t)
	in, typed := io.Pipe()
	go func() { _, _ = typed.Write([]byte("hello")) }()
	defer typed.Close()
	lose := &seen{f: func() { go n.Monitor.Disconnect() }}
	if err := n.Manager.Attach(t.Context(), string(id), sandbox.Streams{Stdin: in, Stdout: lose}); !errkind.Is(err, errkind.Unavailable) {
		t.Errorf("Attach = %v, want kind unavailable", err)
	}
}

// A client that goes while it is being attached may have been attached: crid must
// not be the one that keeps the container's stdin open.
func TestAttachGivenUpEndsStdinOnce(t *testing.T) {
	n := sandboxtest.New(t)
	c := sandboxtest.Container("main")
	c.Stdin, c.StdinOnce = true, true
	_, id := mustLive(t, n, sandboxtest.Pod("web"), c)
	stdin := "open stdin of " + string(id)
	if !slices.Contains(n.Monitor.Residue(), stdin) {
		t.Fatalf("crid holds %q, want the stdin too", n.Monitor.Residue())
	}
	reached, release := n.Monitor.Block(monitor.OpAttach)
	defer release()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-reached
		cancel()
	}()
	err := n.Manager.Attach(ctx, string(id), sandbox.Streams{Stdin: strings.NewReader(""), Stdout: io.Discard})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Attach that is given up = %v, want context.Canceled", err)
	}
	if slices.Contains(n.Monitor.Residue(), stdin) {
		t.Error("crid still holds the container's stdin")
	}
}

// pipe is a client's stream whose Close ends one way only.
type pipe struct {
	io.Reader
	io.Writer
	closed chan struct{}
}

func (p pipe) Close() error {
	close(p.closed)
	return nil
}

func TestPortForward(t *testing.T) {
	testutil.LeakCheck(t)
	n := sandboxtest.New(t)
	wish := sandboxtest.Pod("web")
	wish.Namespaces.Network = config.NamespaceNode // the one that this test has
	pod, err := n.Manager.Run(t.Context(), wish)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.Copy(c, c)
	}()
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	var out bytes.Buffer
	stream := pipe{strings.NewReader("hello"), &out, make(chan struct{})}
	if err := n.Manager.PortForward(t.Context(), string(pod), port, stream); err != nil || out.String() != "hello" {
		t.Errorf("PortForward = %q, %v, want hello", &out, err)
	}
	<-stream.closed
	_ = l.Close()
	err = n.Manager.PortForward(t.Context(), string(pod), port, stream)
	if !errkind.Is(err, errkind.Unavailable) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("PortForward to nothing = %v, want kind unavailable and the cause", err)
	}
	if err := n.Manager.StopSandbox(t.Context(), string(pod)); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Manager.MayForward(string(pod)); !errkind.Is(err, errkind.BadState) {
		t.Errorf("MayForward to what is stopped = %v, want kind bad state", err)
	}
}

// A server that takes nothing ends its own connection, and knows that it has not
// got all.
func TestPortForwardToWhoDoesNotRead(t *testing.T) {
	testutil.LeakCheck(t)
	n := sandboxtest.New(t)
	wish := sandboxtest.Pod("slow")
	wish.Namespaces.Network = config.NamespaceNode
	pod, err := n.Manager.Run(t.Context(), wish)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	in, client := io.Pipe()
	stream := pipe{in, io.Discard, make(chan struct{})}
	sent := make(chan error, 1)
	go func() {
		// More than the kernel keeps for a connection. All of it is taken.
		_, err := io.CopyN(client, endless{}, 64<<20)
		_ = client.Close()
		sent <- err
	}()
	if err := n.Manager.PortForward(t.Context(), string(pod), uint16(l.Addr().(*net.TCPAddr).Port), stream); err != nil {
		t.Errorf("PortForward = %v, want its end", err)
	}
	<-stream.closed
	if err := <-sent; err != nil {
		t.Errorf("the client's stream was in the way: %v", err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the server reads to %v, want a reset", err)
	}
}

// A server on 127.0.0.1 that takes no connection leaves the one on ::1 its time.
func TestPortForwardPastFullBacklog(t *testing.T) {
	testutil.LeakCheck(t)
	n := sandboxtest.New(t)
	wish := sandboxtest.Pod("busy")
	wish.Namespaces.Network = config.NamespaceNode
	pod, err := n.Manager.Run(t.Context(), wish)
	if err != nil {
		t.Fatal(err)
	}
	full, free := listenOnBoth(t)
	defer full.Close()
	defer free.Close()
	raw, err := full.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var listenErr error
	err = raw.Control(func(fd uintptr) { listenErr = syscall.Listen(int(fd), 0) }) // room for one
	if err = errors.Join(err, listenErr); err != nil {
		t.Fatal(err)
	}
	one, err := net.Dial("tcp4", full.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	go func() {
		if c, err := free.Accept(); err == nil {
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}
	}()
	var out bytes.Buffer
	stream := pipe{strings.NewReader("hello"), &out, make(chan struct{})}
	if err := n.Manager.PortForward(t.Context(), string(pod), uint16(free.Addr().(*net.TCPAddr).Port), stream); err != nil || out.String() != "hello" {
		t.Errorf("PortForward = %q, %v, want hello of the server on ::1", &out, err)
	}
}

// listenOnBoth opens a port on 127.0.0.1 and on ::1.
func listenOnBoth(t *testing.T) (v4 *net.TCPListener, v6 net.Listener) {
	t.Helper()
	for {
		v6, err := net.Listen("tcp6", "[::1]:0")
		if errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL) {
			t.Skipf("this machine has no IPv6: %v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		v4, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: v6.Addr().(*net.TCPAddr).Port})
		if err == nil {
			return v4, v6
		}
		_ = v6.Close()
		if !errors.Is(err, syscall.EADDRINUSE) { // else somebody has it: another one
			t.Fatal(err)
		}
	}
}

// endless is zeros.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }
