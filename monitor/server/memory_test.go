package server

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/cridproject/crid/monitor"
)

// TestMemory is a budget: what an idle container costs the monitor.
func TestMemory(t *testing.T) {
	n, _ := crashNode(t)
	run := func(i int) {
		id := fmt.Sprint("m", i)
		_, h, err := n.client.Create(t.Context(), n.request(id, n.specSeccomp("sleep", "1000")))
		if err != nil {
			t.Fatal(err)
		}
		n.start(id)
		h.Close()
	}
	pid := n.client.Peer().PID
	const warm, containers = 10, 100
	for i := range warm {
		run(i)
	}
	time.Sleep(3 * time.Second) //nolint:forbidigo // the collector takes its time, and a figure is all there is to get
	before := rollup(t, pid, "Private_")
	for i := range containers {
		run(warm + i)
	}
	atOnce := rollup(t, pid, "Private_")
	time.Sleep(4 * time.Second) //nolint:forbidigo // likewise
	after := rollup(t, pid, "Private_")
	d, _ := n.client.Dump(t.Context())
	t.Logf("private memory: %d KiB with %d containers, %d with %d (%d right after): %d KiB for each; %+v",
		before, warm, after, warm+containers, atOnce, (after-before)/containers, d)
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	t.Logf("%s", b)
	for i := range warm + containers {
		id := fmt.Sprint("m", i)
		if err := n.client.Delete(t.Context(), monitor.DeleteRequest{ID: id}); err != nil {
			t.Error(err)
		}
	}
	n.residue()
}
