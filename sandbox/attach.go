package sandbox

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/monitor"
)

// MayAttach says why Attach to the container could not be done now, nil if it
// could, and the whole ID.
func (m *Manager) MayAttach(id string) (string, error) {
	c, err := m.findContainer(id)
	if err != nil {
		return "", err
	}
	return string(c.id), c.mayAttach()
}

func (c *container) mayAttach() error {
	if st := *c.state.Load(); !st.lives() {
		return errkind.Errorf(errkind.BadState, "attach to container %s: it is %s, not running", c.id.Short(), st.public())
	}
	return nil
}

// Attach connects a client's streams to the standard files of a container that was
// created or runs, beside those that are attached already, and returns nil when
// the container has exited and all that it has written is with the client.
//
// ctx ends when the client has gone: that ends the attachment and not the
// container, and is to it what the end of Stdin is. That closes the container's
// stdin if it was created with StdinOnce, and else ends the attachment. Stdin to a
// container without one is thrown away, and a terminal has no Stderr, as with
// other runtimes.
func (m *Manager) Attach(ctx context.Context, id string, s Streams) error {
	c, err := m.findContainer(id)
	if err != nil {
		return err
	}
	if err := c.mayAttach(); err != nil {
		return err
	}
	if s.Stdin != nil && !c.config.Stdin {
		go func(in io.Reader) { _, _ = io.Copy(io.Discard, in) }(s.Stdin) // see Streams
		s.Stdin = nil
	}
	if s.TTY = c.config.TTY; s.TTY {
		s.Stderr = nil
	}
	if s.Stdin == nil && s.Stdout == nil && s.Stderr == nil {
		return errkind.Errorf(errkind.BadState, "attach to container %s: it has none of the streams that are asked for", c.id.Short())
	}
	mon, err := m.reach(ctx)
	if err != nil {
		return err
	}
	if err := m.attachStreams(containerContext(ctx, c), mon, c, s); err != nil {
		return fmt.Errorf("attach to container %s: %w", c.id.Short(), err)
	}
	return nil
}

func (m *Manager) attachStreams(ctx context.Context, mon Monitor, c *container, s Streams) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p, err := newPipes(s)
	if err != nil {
		return err
	}
	defer p.close()
	err = mon.Attach(ctx, monitor.AttachRequest{ID: string(c.id)}, p.theirs)
	p.closeTheirs()
	if s.Stdin != nil && (err == nil || ctx.Err() != nil) {
		c.forgetStdin() // also when the client has gone: it may be attached all the same
	}
	if err != nil {
		return err
	}
	// The end of stdin is passed on also for a terminal: the monitor, which has the
	// terminal, ends the attachment then.
	p.run(Streams{Stdin: s.Stdin})
	if s.TTY {
		go resize(ctx, mon, monitor.ResizeRequest{ID: string(c.id)}, s.Resize)
	}
	return m.waitAttached(ctx, mon, c, p)
}

// waitAttached waits for the end of an attachment.
func (m *Manager) waitAttached(ctx context.Context, mon Monitor, c *container, p *pipes) error {
	fed := p.fed
	if len(p.outs) > 0 {
		fed = nil // the end of the client's input is not the end of the output
	}
	select {
	case <-c.exited:
	case <-p.drained():
		if c.config.Stdin && p.ended() {
			return nil // the client's stdin has, and with it the attachment
		}
		// The container's end is told a little later, if it is the cause.
		if ended, err := c.waitExit(ctx, m.o.ExecDrain); !ended && err == nil {
			return errkind.Errorf(errkind.Unavailable,
				"the output has ended and the container runs on: it has closed it, crid-monitor was restarted, or this client did not read for too long")
		}
	case <-fed:
		return nil
	case <-mon.Done():
		return errkind.Errorf(errkind.Unavailable, "the connection to crid-monitor was lost; attach again")
	case <-ctx.Done():
		// What the client has sent before it went is for the container.
		t := time.NewTimer(m.o.ExecDrain)
		defer t.Stop()
		select {
		case <-p.fed:
		case <-t.C:
		}
		return context.Cause(ctx)
	}
	p.finish(ctx, m.o.ExecDrain)
	return nil
}
