package monitor

import (
	"context"
	"syscall"
	"time"
)

// cutAgain is when cutShort tries again.
const cutAgain = time.Second

// cutShort kills a container that is still being made, for a caller that has
// gone, and returns when no Create of it is under way. It may hang at the
// source of a mount, and Delete waits for it.
func (c *Client) cutShort(ctx context.Context, id string) {
	for {
		answered := c.making("container " + id)
		if answered == nil {
			return
		}
		// An error says that it is made, or not yet begun: the next round tells.
		_ = c.Signal(ctx, SignalRequest{ID: id, Signal: int(syscall.SIGKILL), All: true})
		t := time.NewTimer(cutAgain)
		select {
		case <-answered:
		case <-t.C:
		case <-c.done:
		case <-ctx.Done():
		}
		t.Stop()
		if c.unusable() || ctx.Err() != nil {
			return // Delete says so
		}
	}
}

// making is closed when the request that makes what has been answered; nil when
// there is none.
func (c *Client) making(what string) (answered chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.pending {
		if p.makes == what {
			answered = p.answered
		}
	}
	return answered
}

func (c *Client) unusable() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}
