package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"sync"

	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/monitor"
)

// reply is what a handler answers. files belong to it. after, if set, is called
// once the reply is on its way or cannot be sent, also beside an error.
type reply struct {
	body  any
	files []*os.File
	after func()
}

// handler carries one request out. It takes from f.Files what it keeps.
type handler func(s *Server, ctx context.Context, c *conn, f *monitor.Frame) (reply, error)

// handlers is all requests.
var handlers = map[string]handler{
	monitor.OpCreate:    handle((*Server).create),
	monitor.OpStart:     handle((*Server).start),
	monitor.OpExec:      (*Server).handleExec,
	monitor.OpAttach:    (*Server).handleAttach,
	monitor.OpSignal:    handle((*Server).signal),
	monitor.OpResize:    handle((*Server).resize),
	monitor.OpReopenLog: handle((*Server).reopenLog),
	monitor.OpUpdate:    handle((*Server).update),
	monitor.OpDelete:    handle((*Server).delete),
	monitor.OpHold:      handle((*Server).hold),
	monitor.OpRelease:   handle((*Server).release),
	monitor.OpAdopt:     (*Server).handleAdopt,
	monitor.OpList:      handle((*Server).list),
	monitor.OpAck:       handle((*Server).ack),
	monitor.OpDump:      handle((*Server).dump),
	monitor.OpShutdown:  handle((*Server).shutdown),
}

// handle makes a handler of a method that takes the decoded request.
func handle[R any](do func(*Server, context.Context, R) (reply, error)) handler {
	return func(s *Server, ctx context.Context, _ *conn, f *monitor.Frame) (reply, error) {
		var r R
		if err := f.Decode(&r); err != nil {
			return reply{}, err
		}
		return do(s, ctx, r)
	}
}

// conn is one connection of crid's, or of somebody who debugs.
type conn struct {
	s *Server
	c *monitor.Conn

	mu    sync.Mutex
	exits []monitor.Exit // +checklocks:mu; to be sent, in order
	ready bool           // +checklocks:mu; hello has been said
	wake  chan struct{}  // exits is not empty, or the connection ends
}

func newConn(s *Server, nc *net.UnixConn) *conn {
	return &conn{s: s, c: monitor.NewConn(nc), wake: make(chan struct{}, 1)}
}

func (c *conn) close() { _ = c.c.Close() }

// serve answers requests until the connection ends. A panic costs the connection
// and nothing else.
func (c *conn) serve(ctx context.Context) {
	log := klog.FromContext(ctx)
	ctx, cancel := context.WithCancel(ctx)
	var requests sync.WaitGroup
	endExecs := func() { c.s.endExecs(context.WithoutCancel(ctx), c) }
	defer endExecs() // those that were being started
	defer requests.Wait()
	defer endExecs()
	defer cancel()
	defer c.close()
	defer c.recover(ctx, "")
	if err := c.hello(); err != nil {
		if !errors.Is(err, io.EOF) {
			log.Info("Refused a connection", "err", err)
		}
		return
	}
	requests.Go(func() { c.writeExits(ctx) })
	for {
		f, err := c.c.Read()
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				log.Info("Lost a connection", "err", err)
			}
			return
		}
		requests.Go(func() {
			defer c.recover(ctx, f.Op)
			// What is under way goes on when the connection ends: crid may
			// have crashed, and half a container helps nobody.
			c.answer(context.WithoutCancel(ctx), f)
		})
	}
}

func (c *conn) recover(ctx context.Context, op string) {
	if p := recover(); p != nil {
		klog.FromContext(ctx).Error(fmt.Errorf("panic: %v", p), "Closing a connection after a bug",
			"op", op, "stack", string(debug.Stack()))
		c.close()
	}
}

// hello is the first exchange. Which versions go together is crid's to say,
// because the monitor is the older one of the two.
func (c *conn) hello() error {
	f, err := c.c.Read()
	if err != nil {
		return err
	}
	defer f.CloseFiles()
	var theirs monitor.Hello
	err = f.Decode(&theirs)
	if f.Op != monitor.OpHello {
		err = errkind.Errorf(errkind.Invalid, "monitor protocol: first request is %q, want %q", f.Op, monitor.OpHello)
	}
	if err != nil {
		_ = c.c.Write(monitor.Frame{ID: f.ID, Op: f.Op, Error: monitor.ErrorToWire(err)})
		return err
	}
	ours := monitor.Hello{Version: monitor.Version, Build: c.s.o.Build, PID: os.Getpid()}
	out, err := monitor.NewFrame(f.ID, f.Op, ours)
	if err != nil {
		return err
	}
	if err := c.c.Write(out); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ready = true
	// Those that were published since the connection was accepted are among them.
	c.exits = c.s.journal.all()
	c.signalLocked()
	return nil
}

// answer carries one request out.
func (c *conn) answer(ctx context.Context, f monitor.Frame) {
	defer f.CloseFiles()
	log := klog.FromContext(ctx)
	var r reply
	var err error
	if h := handlers[f.Op]; h == nil {
		err = errkind.Errorf(errkind.Invalid, "monitor protocol: unknown request %q; crid is newer than the monitor that runs", f.Op)
	} else {
		r, err = h(c.s, ctx, c, &f)
	}
	defer func() {
		for _, file := range r.files {
			_ = file.Close()
		}
		if r.after != nil {
			r.after()
		}
	}()
	if f.ID == 0 {
		return
	}
	out, frameErr := monitor.NewFrame(f.ID, f.Op, r.body, r.files...)
	if err = errors.Join(err, frameErr); err != nil {
		log.V(2).Info("Refused request", "op", f.Op, "err", err)
		out = monitor.Frame{ID: f.ID, Op: f.Op, Error: monitor.ErrorToWire(err)}
	}
	err = c.c.Write(out)
	if errors.Is(err, monitor.ErrFrame) {
		err = c.c.Write(monitor.Frame{ID: f.ID, Op: f.Op, Error: monitor.ErrorToWire(err)})
	}
	if err != nil {
		log.V(2).Info("Could not send a reply", "op", f.Op, "err", err)
	}
}

// sendExit queues an exit and never waits.
func (c *conn) sendExit(e monitor.Exit) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ready {
		return // hello takes it from the journal
	}
	c.exits = append(c.exits, e)
	c.signalLocked()
}

// signalLocked wakes writeExits. Preconditions: c.mu is held.
func (c *conn) signalLocked() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// writeExits sends queued exits until the connection ends.
func (c *conn) writeExits(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		}
		c.mu.Lock()
		exits := c.exits
		c.exits = nil
		c.mu.Unlock()
		for _, e := range exits {
			f, err := monitor.NewFrame(0, monitor.OpExit, e)
			if err == nil {
				err = c.c.Write(f)
			}
			if err != nil {
				return // the journal has it for the next connection
			}
		}
	}
}
