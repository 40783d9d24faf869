package monitor_test

import (
	"context"
	"net"
	"os"
	"sync"
	"testing"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/monitor"
	"github.com/cridproject/crid/monitor/monitortest"
)

// bridge serves a Fake on a real socket, so that the Client and the wire are
// held to the Suite too.
type bridge struct {
	fake   *monitortest.Fake
	socket string
	wg     sync.WaitGroup
}

func newBridge(t *testing.T, fake *monitortest.Fake) *bridge {
	t.Helper()
	// Not t.TempDir, whose path may be too long for a socket.
	dir, err := os.MkdirTemp("", "crid")
	if err != nil {
		t.Fatal(err)
	}
	b := &bridge{fake: fake, socket: dir + "/s"}
	l, err := net.Listen("unix", b.socket)
	if err != nil {
		t.Fatal(err)
	}
	b.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b.wg.Go(func() { b.serve(monitor.NewConn(c.(*net.UnixConn))) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		fake.Disconnect()
		b.wg.Wait()
		_ = os.RemoveAll(dir)
	})
	return b
}

// serve is one connection. It ends when either side does.
func (b *bridge) serve(c *monitor.Conn) {
	defer c.Close()
	hello, err := c.Read()
	if err != nil {
		return
	}
	reply, _ := monitor.NewFrame(hello.ID, hello.Op, monitor.Hello{Version: monitor.Version, Build: "bridge", PID: os.Getpid()})
	if c.Write(reply) != nil {
		return
	}
	send := func(e monitor.Exit) {
		f, _ := monitor.NewFrame(0, monitor.OpExit, e)
		_ = c.Write(f)
	}
	front := b.fake.Connect(monitor.ClientOptions{OnExit: send})
	defer front.Close()
	b.wg.Go(func() {
		<-front.Done()
		_ = c.Close()
	})
	for {
		f, err := c.Read()
		if err != nil {
			return
		}
		b.wg.Go(func() {
			defer f.CloseFiles()
			body, files, after, err := b.carryOut(front, f)
			r, ferr := monitor.NewFrame(f.ID, f.Op, body, files...)
			if err == nil {
				err = ferr
			}
			if r.Error = monitor.ErrorToWire(err); err != nil {
				r = monitor.Frame{ID: f.ID, Op: f.Op, Error: r.Error}
			}
			_ = c.Write(r)
			for _, file := range files {
				_ = file.Close()
			}
			if after != nil {
				send(<-after)
			}
		})
	}
}

func decode[T any](f monitor.Frame) T {
	var v T
	if err := f.Decode(&v); err != nil {
		panic(err)
	}
	return v
}

// holdFiles is what h holds, in the order of names.
func holdFiles(h *monitor.Hold, names []string) (files []*os.File) {
	for _, name := range names {
		files = append(files, map[string]*os.File{
			"pidfd": h.PIDFD, "stdout": h.Stdout, "stderr": h.Stderr, "stdin": h.Stdin, "console": h.Console,
		}[name])
	}
	return files
}

// carryOut asks the fake. after, if any, delivers the exit of an exec.
func (b *bridge) carryOut(m *monitortest.Front, f monitor.Frame) (body any, files []*os.File, after <-chan monitor.Exit, err error) {
	ctx := context.Background()
	switch f.Op {
	case monitor.OpCreate:
		r := decode[monitor.CreateRequest](f)
		reply, h, err := m.Create(ctx, r)
		if err != nil {
			return nil, nil, nil, err
		}
		return reply, holdFiles(h, r.FDs()), nil, nil
	case monitor.OpStart:
		return nil, nil, nil, m.Start(ctx, decode[monitor.StartRequest](f).ID)
	case monitor.OpExec:
		var stdio [3]*os.File
		copy(stdio[:], f.Files)
		p, err := m.Exec(ctx, decode[monitor.ExecRequest](f), stdio)
		if err != nil {
			return nil, nil, nil, err
		}
		if p.Console != nil {
			files = []*os.File{p.Console}
		}
		return monitor.ExecReply{PID: p.PID}, files, p.Done, nil
	case monitor.OpAttach:
		r := decode[monitor.AttachRequest](f)
		var stdio [3]*os.File
		for i, name := range r.Streams {
			stdio[map[string]int{"stdin": 0, "stdout": 1, "stderr": 2}[name]] = f.Files[i]
		}
		return nil, nil, nil, m.Attach(ctx, r, stdio)
	case monitor.OpSignal:
		return nil, nil, nil, m.Signal(ctx, decode[monitor.SignalRequest](f))
	case monitor.OpResize:
		return nil, nil, nil, m.Resize(ctx, decode[monitor.ResizeRequest](f))
	case monitor.OpReopenLog:
		return nil, nil, nil, m.ReopenLog(ctx, decode[monitor.ReopenLogRequest](f).ID)
	case monitor.OpUpdate:
		reply, err := m.Update(ctx, decode[monitor.UpdateRequest](f))
		return reply, nil, nil, err
	case monitor.OpDelete:
		return nil, nil, nil, m.Delete(ctx, decode[monitor.DeleteRequest](f))
	case monitor.OpHold:
		reply, pidfd, err := m.Hold(ctx, decode[monitor.HoldRequest](f))
		return reply, []*os.File{pidfd}, nil, err
	case monitor.OpRelease:
		return nil, nil, nil, m.Release(ctx, decode[monitor.ReleaseRequest](f))
	case monitor.OpAdopt:
		r := decode[monitor.AdoptRequest](f)
		h := new(monitor.Hold)
		if len(f.Files) > 0 && r.FDs[0] == monitor.FDPid && len(r.FDs) == len(f.Files) {
			h.PIDFD = f.Files[0]
		}
		return nil, nil, nil, m.Adopt(ctx, r, h)
	case monitor.OpList:
		all, err := m.List(ctx)
		var reply monitor.ListReply
		for _, l := range all {
			reply.Items = append(reply.Items, l.ListItem)
			files = append(files, holdFiles(l.Hold, l.FDs)...)
		}
		return reply, files, nil, err
	case monitor.OpAck:
		return nil, nil, nil, m.Ack(ctx, decode[monitor.AckRequest](f).ID)
	case monitor.OpDump:
		d, err := m.Dump(ctx)
		return d, nil, nil, err
	case monitor.OpShutdown:
		return nil, nil, nil, m.Shutdown(ctx)
	}
	return nil, nil, nil, errkind.Errorf(errkind.Invalid, "unknown op %q", f.Op)
}

func openFDs(t *testing.T) int {
	t.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(e)
}

func TestClient(t *testing.T) {
	before := openFDs(t)
	t.Run("Suite", func(t *testing.T) {
		monitortest.Suite(t, func(t *testing.T) monitortest.Env {
			fake := monitortest.New(t, monitortest.Options{Container: monitortest.Busybox, Exec: monitortest.BusyboxExec})
			b := newBridge(t, fake)
			return monitortest.Env{
				Connect: func(t *testing.T, onExit func(monitor.Exit)) monitortest.Monitor {
					// Also from a cleanup, when the test's own context has ended.
					c, err := monitor.Connect(context.Background(), b.socket, monitor.ClientOptions{OnExit: onExit})
					if err != nil {
						t.Fatal(err)
					}
					return c
				},
				Container: monitortest.Container,
				Hold:      func(_ *testing.T, id string) monitor.HoldRequest { return monitor.HoldRequest{ID: id} },
				Crash:     func(*testing.T) { fake.Crash() },
			}
		})
	})
	if got := openFDs(t); got > before+1 { // the poller's own comes with the first socket
		t.Errorf("%d descriptors open afterwards, %d before", got, before)
	}
}

func TestListOfManyContainers(t *testing.T) {
	const containers = 500
	fake := monitortest.New(t, monitortest.Options{})
	b := newBridge(t, fake)
	c, err := monitor.Connect(t.Context(), b.socket, monitor.ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range containers {
		r := monitortest.Container(t, "", "sleep", "1")
		r.ID, r.Stdin = string(rune('a'+i%26))+string(rune(0x100+i)), true
		_, h, err := c.Create(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		h.Close()
	}
	all, err := c.List(t.Context())
	if err != nil || len(all) != containers {
		t.Fatalf("List = %d items, %v, want %d, nil", len(all), err, containers)
	}
	for _, l := range all {
		if l.Hold.PIDFD == nil || l.Hold.Stdout == nil || l.Hold.Stderr == nil || l.Hold.Stdin == nil {
			t.Errorf("List: %s came without all of its 4 descriptors", l.ID)
		}
		l.Hold.Close()
	}
}
