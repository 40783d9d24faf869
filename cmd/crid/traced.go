package main

import (
	"context"
	"os"

	"github.com/cridproject/crid/internal/trace"
	"github.com/cridproject/crid/monitor"
	"github.com/cridproject/crid/sandbox"
)

// tracedMonitor makes the calls that a pod's life consists of steps of the request
// that they are made for. Without tracing there is none.
type tracedMonitor struct{ sandbox.Monitor }

// step calls do as a step.
func step(ctx context.Context, name string, do func(context.Context) error) error {
	ctx, end := trace.Start(ctx, name)
	err := do(ctx)
	end(err)
	return err
}

func (t *tracedMonitor) Create(ctx context.Context, r monitor.CreateRequest) (reply monitor.CreateReply, hold *monitor.Hold, err error) {
	err = step(ctx, "monitor.create", func(ctx context.Context) (err error) {
		reply, hold, err = t.Monitor.Create(ctx, r)
		return err
	})
	return reply, hold, err
}

func (t *tracedMonitor) Start(ctx context.Context, id string) error {
	return step(ctx, "monitor.start", func(ctx context.Context) error { return t.Monitor.Start(ctx, id) })
}

func (t *tracedMonitor) Exec(ctx context.Context, r monitor.ExecRequest, stdio [3]*os.File) (p *monitor.ExecProcess, err error) {
	err = step(ctx, "monitor.exec", func(ctx context.Context) (err error) {
		p, err = t.Monitor.Exec(ctx, r, stdio)
		return err
	})
	return p, err
}

func (t *tracedMonitor) Signal(ctx context.Context, r monitor.SignalRequest) error {
	return step(ctx, "monitor.signal", func(ctx context.Context) error { return t.Monitor.Signal(ctx, r) })
}

func (t *tracedMonitor) ReopenLog(ctx context.Context, id string) error {
	return step(ctx, "monitor.reopenLog", func(ctx context.Context) error { return t.Monitor.ReopenLog(ctx, id) })
}

func (t *tracedMonitor) Update(ctx context.Context, r monitor.UpdateRequest) (reply monitor.UpdateReply, err error) {
	err = step(ctx, "monitor.update", func(ctx context.Context) (err error) {
		reply, err = t.Monitor.Update(ctx, r)
		return err
	})
	return reply, err
}

func (t *tracedMonitor) Delete(ctx context.Context, r monitor.DeleteRequest) error {
	return step(ctx, "monitor.delete", func(ctx context.Context) error { return t.Monitor.Delete(ctx, r) })
}

func (t *tracedMonitor) Hold(ctx context.Context, r monitor.HoldRequest) (reply monitor.HoldReply, pidfd *os.File, err error) {
	err = step(ctx, "monitor.hold", func(ctx context.Context) (err error) {
		reply, pidfd, err = t.Monitor.Hold(ctx, r)
		return err
	})
	return reply, pidfd, err
}

func (t *tracedMonitor) Release(ctx context.Context, r monitor.ReleaseRequest) error {
	return step(ctx, "monitor.release", func(ctx context.Context) error { return t.Monitor.Release(ctx, r) })
}
