package monitortest

import (
	"context"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/monitor"
)

// clientStall is how long a client that is attached may leave its pipe full.
const clientStall = 10 * time.Second

// stdio is the standard files of a container and the clients attached to them.
type stdio struct {
	req  *monitor.CreateRequest
	inR  *os.File // what the program reads; nil without stdin
	inW  *os.File
	done chan struct{} // closed with the program, see Process.Killed

	mu      sync.Mutex // never held across I/O
	clients []*attached
	sealed  bool
}

// attached is one client; nil where it wants no stream.
type attached struct {
	in   *os.File
	outs [2]*os.File
}

func newStdio(r *monitor.CreateRequest) (*stdio, error) {
	o := &stdio{req: r, done: make(chan struct{})}
	if !r.Stdin {
		return o, nil
	}
	var err error
	o.inR, o.inW, err = os.Pipe()
	return o, err
}

// process is the program's view of it.
func (o *stdio) process() *Process {
	p := &Process{Stdin: new(eof), Stdout: output{o, 0}, Stderr: output{o, 1}, Killed: o.done}
	if o.inR != nil {
		p.Stdin = o.inR
	}
	return p
}

// seal ends all of it. Safe twice.
func (o *stdio) seal() {
	o.mu.Lock()
	clients, sealed := o.clients, o.sealed
	o.clients, o.sealed = nil, true
	o.mu.Unlock()
	if sealed {
		return
	}
	close(o.done)
	closeFiles(o.inR, o.inW)
	for _, c := range clients {
		c.close()
	}
}

func (c *attached) close() { closeFiles(c.in, c.outs[0], c.outs[1]) }

// detach ends one client.
func (o *stdio) detach(c *attached) {
	o.mu.Lock()
	o.clients = slices.DeleteFunc(o.clients, func(other *attached) bool { return other == c })
	o.mu.Unlock()
	c.close()
}

// feed copies what a client writes, until it ends.
func (o *stdio) feed(c *attached) {
	_, err := io.Copy(o.inW, c.in)
	_ = c.in.Close()
	switch {
	case err != nil: // it reads no more
	case o.req.StdinOnce && !o.req.TTY:
		_ = o.inW.Close()
	default:
		o.detach(c)
	}
}

// output is the stream to which a program writes.
type output struct {
	o *stdio
	i int
}

func (w output) Write(p []byte) (int, error) {
	w.o.mu.Lock()
	clients := slices.Clone(w.o.clients)
	w.o.mu.Unlock()
	for _, c := range clients {
		f := c.outs[w.i]
		if f == nil {
			continue
		}
		_ = f.SetWriteDeadline(time.Now().Add(clientStall))
		if _, err := f.Write(p); err != nil {
			_ = f.Close()
		}
	}
	return len(p), nil
}

// eof is an empty file.
type eof struct{}

func (*eof) Read([]byte) (int, error) { return 0, io.EOF }

// Attach is *monitor.Client's.
func (fr *Front) Attach(ctx context.Context, r monitor.AttachRequest, stdio [3]*os.File) error {
	f := fr.f
	return fr.do(ctx, monitor.OpAttach, r.ID, func() error {
		c, err := f.findLocked(r.ID)
		switch {
		case err != nil:
			return err
		case c.state == exited:
			return errkind.Errorf(errkind.BadState, "container %s has exited, cannot attach to it", r.ID)
		case stdio == [3]*os.File{}:
			return errkind.Errorf(errkind.Invalid, "attach to container %s: no stream is wanted", r.ID)
		case stdio[2] != nil && c.req.TTY:
			return errkind.Errorf(errkind.Invalid, "attach to container %s: a terminal has no stderr", r.ID)
		}
		return f.attachLocked(c, stdio)
	})
}

func (f *Fake) attachLocked(c *container, stdio [3]*os.File) error {
	a := new(attached)
	for i, to := range []**os.File{&a.in, &a.outs[0], &a.outs[1]} {
		if stdio[i] == nil {
			continue
		}
		var err error
		if *to, err = dup(stdio[i]); err != nil {
			a.close()
			return err
		}
	}
	c.io.mu.Lock()
	c.io.clients = append(c.io.clients, a)
	c.io.mu.Unlock()
	switch {
	case a.in == nil:
	case c.io.inW == nil:
		closeFiles(a.in) // nobody reads it
	default:
		c.inTaken = true
		f.running.Go(func() { c.io.feed(a) })
	}
	return nil
}

// fdsLocked names the descriptors that a list has of a container: a stdin that is
// to be closed has one holder only, once a client has come for it.
func (c *container) fdsLocked() []string {
	fds := c.req.FDs()
	if c.req.StdinOnce && c.inTaken {
		fds = slices.DeleteFunc(fds, func(name string) bool { return name == monitor.FDStdin })
	}
	return fds
}

// runProgram runs the program of a container that was started.
func (f *Fake) runProgram(c *container) {
	code := c.program.Run(c.io.process())
	f.mu.Lock()
	defer f.mu.Unlock()
	switch id := c.req.ID; {
	case f.containers[id] == c && c.state != exited:
		f.endLocked(c, monitor.Exit{ID: id, Code: code, At: f.o.Now()})
	case f.orphans[id] == c:
		f.endUnseenLocked(c)
	}
}
