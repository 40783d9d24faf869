package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/monitor"
)

// execOutputMax is how much of each stream ExecSync keeps, as CRI says. The
// process is not hindered from writing more.
const execOutputMax = 16 << 20

// ExecResult is what a program run by ExecSync has said.
type ExecResult struct {
	Stdout, Stderr []byte // the first 16 MiB of each
	Code           int    // exit code, or 128 + signal
}

// ExecSync runs a program in a container that is created or runs, and waits for it
// to exit. That it exits with a code other than 0 is no error.
//
// After timeout (0 means none), or when ctx ends, it is killed with all its
// descendants; the first has kind Timeout. What holds its output open after it
// has exited is waited for a moment only.
func (m *Manager) ExecSync(ctx context.Context, id string, args []string, timeout time.Duration) (ExecResult, error) {
	c, err := m.findContainer(id)
	if err != nil {
		return ExecResult{}, err
	}
	if len(args) == 0 {
		return ExecResult{}, errkind.Errorf(errkind.Invalid, "cmd: no command is given")
	}
	if err := c.mayExec(); err != nil {
		return ExecResult{}, err
	}
	mon, err := m.reach(ctx)
	if err != nil {
		return ExecResult{}, err
	}
	out, err := newCollectors()
	if err != nil {
		return ExecResult{}, err
	}
	ctx = containerContext(ctx, c)
	execID := newID()[:16]
	p, err := mon.Exec(ctx, monitor.ExecRequest{ID: string(c.id), ExecID: execID, Args: args}, [3]*os.File{nil, out[0].w, out[1].w})
	out.closeWriters()
	if err != nil {
		out.finish(0)
		return ExecResult{}, fmt.Errorf("exec in container %s: %w", c.id.Short(), err)
	}
	e, err := m.waitExec(ctx, mon, c, execID, p.Done, timeout)
	out.finish(m.o.ExecDrain)
	if err != nil {
		return ExecResult{}, fmt.Errorf("exec in container %s: %w", c.id.Short(), err)
	}
	return ExecResult{Stdout: out[0].data, Stderr: out[1].data, Code: e.Code}, nil
}

// mayExec refuses an exec in a container that has no process, or is being killed:
// the new process could escape the kill. In one that has been created the first
// process waits for its start in what has been made for it, all of which an exec joins.
func (c *container) mayExec() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.rec.State.lives() {
		return errkind.Errorf(errkind.BadState, "exec in container %s: it is %s, not running", c.id.Short(), c.rec.State.public())
	}
	if c.killed {
		return errkind.Errorf(errkind.BadState, "exec in container %s: it is being killed", c.id.Short())
	}
	return nil
}

// waitExec waits for an exec's exit, and kills it when it takes too long.
func (m *Manager) waitExec(ctx context.Context, mon Monitor, c *container, execID string, done <-chan monitor.Exit, timeout time.Duration) (monitor.Exit, error) {
	var expired <-chan time.Time
	if timeout > 0 {
		t := time.NewTimer(timeout)
		defer t.Stop()
		expired = t.C
	}
	select {
	case e := <-done:
		return ended(e)
	case <-expired:
		m.killExec(ctx, mon, c, execID, done)
		return monitor.Exit{}, errkind.Errorf(errkind.Timeout, "it has not exited after %v and was killed", timeout)
	case <-ctx.Done():
		m.killExec(ctx, mon, c, execID, done)
		return monitor.Exit{}, fmt.Errorf("it was killed, because its caller has gone: %w", context.Cause(ctx))
	}
}

// ended is what an exec's exit means to who waits for it.
func ended(e monitor.Exit) (monitor.Exit, error) {
	if e.Lost {
		return e, errkind.Errorf(errkind.Unavailable, "the connection to crid-monitor was lost, how it ended is not known")
	}
	return e, nil
}

// killExec kills an exec with all its descendants and waits until it has exited.
// ctx may have ended.
func (m *Manager) killExec(ctx context.Context, mon Monitor, c *container, execID string, done <-chan monitor.Exit) {
	ctx, cancel := detach(ctx, m.o.KillTimeout)
	defer cancel()
	err := mon.Signal(ctx, monitor.SignalRequest{ID: string(c.id), ExecID: execID, Signal: sigKill, All: true})
	if err == nil {
		select {
		case <-done:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	if err != nil {
		klog.FromContext(ctx).Error(err, "Could not kill an exec", "exec", execID)
	}
}

// collector reads one stream of an exec.
type collector struct {
	r, w *os.File
	done chan struct{}
	data []byte // read after done
}

// collectors are stdout and stderr.
type collectors [2]*collector

func newCollectors() (collectors, error) {
	var cs collectors
	for i := range cs {
		r, w, err := os.Pipe()
		if err != nil {
			cs.closeWriters()
			cs.finish(0)
			return cs, fmt.Errorf("make pipe for an exec: %w", err)
		}
		cs[i] = &collector{r: r, w: w, done: make(chan struct{})}
		go cs[i].read() // finish waits for it
	}
	return cs, nil
}

// read keeps the first 16 MiB and throws away the rest, until all writers are
// gone or finish stops it.
func (c *collector) read() {
	defer close(c.done)
	data, err := io.ReadAll(io.LimitReader(c.r, execOutputMax))
	c.data = data
	if err == nil {
		_, _ = io.Copy(io.Discard, c.r)
	}
}

// closeWriters closes crid's copies of the ends that the exec writes to.
func (cs collectors) closeWriters() {
	for _, c := range cs {
		if c != nil {
			_ = c.w.Close()
		}
	}
}

// finish waits until all has been read, but not longer than drain, and closes the
// pipes. What a process that outlived the exec writes then gets EPIPE.
func (cs collectors) finish(drain time.Duration) {
	deadline := time.Now().Add(drain)
	var wg sync.WaitGroup
	for _, c := range cs {
		if c == nil {
			continue
		}
		wg.Go(func() {
			if err := c.r.SetReadDeadline(deadline); err != nil && !errors.Is(err, os.ErrClosed) {
				_ = c.r.Close() // not a pipe that can be polled: ends the read as well
			}
			<-c.done
			_ = c.r.Close()
		})
	}
	wg.Wait()
}
