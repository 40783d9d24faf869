// Package quiet gives memory back to the kernel once a burst of work is over. It knows
// nothing of what the work was.
package quiet

import (
	"runtime"
	"runtime/debug"
	"sync"
	"time"
)

// after is how long there was no work before memory is given back.
const after = 2 * time.Second

// Collector runs Go's collector after work, when quiet has come. The zero value is ready
// for use, by several goroutines.
//
// Starting 60 pods at a time leaves each of crid's processes with some MiB that it will not
// need again before the next such burst. Go's runtime would give back part of it, minutes
// later, and keep the rest.
type Collector struct {
	once  sync.Once
	timer *time.Timer
}

// Worked says that work was done which has left something to collect. It costs a lock.
func (c *Collector) Worked() {
	c.once.Do(func() { c.timer = time.AfterFunc(after, giveBack) })
	c.timer.Reset(after)
}

// giveBack collects twice, since what is in a sync.Pool, as buffers of logs are, survives
// one collection.
func giveBack() {
	runtime.GC()
	debug.FreeOSMemory()
}
