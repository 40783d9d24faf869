package quiet

import (
	"runtime"
	"runtime/metrics"
	"sync"
	"testing"

	"github.com/cridproject/crid/internal/testutil"
)

// What was in use, and what a pool keeps, is the kernel's again.
func TestGivesBack(t *testing.T) {
	const size = 64 << 20
	var pool sync.Pool
	kept := touched(size / 2)
	pool.Put(&kept)
	runtime.KeepAlive(touched(size / 2))
	before := released()
	var c Collector
	c.Worked()
	c.Worked()
	testutil.WaitFor(t, "64 MiB to be given back", func() bool { return released()-before > size*9/10 })
	runtime.KeepAlive(&pool)
}

func touched(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = 1
	}
	return b
}

// released is how many bytes of the heap the kernel has got back.
func released() int64 {
	s := []metrics.Sample{{Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(s)
	return int64(s[0].Value.Uint64())
}
