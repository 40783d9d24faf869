package server

import (
	"runtime"
	"sync"
	"time"
)

// collectAfter is how long nothing was started before what it left is collected.
const collectAfter = 2 * time.Second

// collector has Go's collector run once after something was started and quiet has
// come. libcontainer leaves descriptors to it: a pidfd of each process that it
// starts, since that is closed by a wait of who started it, and waiting is the
// reaper's here; a fifo of each container that could not be made. On a node
// where little happens, the runtime itself collects every two minutes.
type collector struct {
	once  sync.Once
	timer *time.Timer
}

// soon asks for a collection. It costs a lock.
func (c *collector) soon() {
	c.once.Do(func() { c.timer = time.AfterFunc(collectAfter, runtime.GC) })
	c.timer.Reset(collectAfter)
}
