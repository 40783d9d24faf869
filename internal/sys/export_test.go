package sys

import (
	"os"
	"time"
)

// For tests of package sys_test.
var (
	NewUserNS    = newUserNS
	SharedFolder = sharedFolder
)

// WithIDMappedBy is WithIDMapped by one of its two ways.
func WithIDMappedBy(attach bool, folders []string, userns *os.File, use func([]string) error) error {
	return onOwnThread(func() error { return withIDMapped(folders, userns, attach, use) })
}

// MovesTo are CgroupMoves that write to the file that find names.
// for as long as own says the same, and look it up anew then.
func MovesTo(find, own func() (string, error)) *CgroupMoves {
	return &CgroupMoves{file: find, own: own}
}

// Idle reports whether nothing is expected, and Off whether nothing will be.
func (c *CgroupMoves) Idle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.until.IsZero()
}

// Forget makes what is expected be over.
func (c *CgroupMoves) Forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.until = time.Now()
}

func (c *CgroupMoves) Off() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.off
}

// OwnProcs is ownProcs.
var OwnProcs = ownProcs
