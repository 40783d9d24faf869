package e2e

import (
	"fmt"
	"strconv"
	"testing"
)

func itoa(i int) string { return strconv.Itoa(i) }

// Pods up and down: descriptors and goroutines of both processes stay as they
// were. The figures are compared after a first round has warmed everything up.
func TestNoLeakPerPod(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	round := func(i int) {
		p := n.PodConfig(fmt.Sprintf("leak-%d", i))
		pod := n.RunPod(p)
		id := n.Run(pod, p, n.ContainerConfig("main", "sleep", "1000"))
		for range 3 {
			n.Exec(id, "true")
		}
		n.RemovePod(pod)
	}
	round(0)
	before := n.Figures()
	const rounds = 10
	for i := range rounds {
		round(i + 1)
	}
	var after Figures
	n.settle(func() bool { after = n.Figures(); return !after.exceeds(before) })
	if after.exceeds(before) {
		t.Errorf("after %d pods: %+v, was %+v", rounds, after, before)
	}
}
