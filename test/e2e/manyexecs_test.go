package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestManyExecSyncs leaves nothing of a hundred execs, or as many as
// CRID_TEST_EXECS says: no descriptor, goroutine, process or cgroup.
func TestManyExecSyncs(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("many-execs")
	id := n.Run(n.RunPod(p), p, n.ContainerConfig("main", "sleep", "100000"))
	execs := 100
	if v, err := strconv.Atoi(os.Getenv("CRID_TEST_EXECS")); err == nil {
		execs = v
	}
	run := func(i int) {
		script, want := fmt.Sprintf("echo %d; exit %d", i, i%100), int32(i%100)
		r, err := n.Runtime.ExecSync(n.Ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", script}})
		if err != nil || r.ExitCode != want || string(r.Stdout) != fmt.Sprintln(i) {
			t.Errorf("exec %d = %v, code %d, %q", i, err, r.GetExitCode(), r.GetStdout())
		}
	}
	run(0)
	before, rss := n.Figures(), [2]int{n.rss(n.PID()), n.rss(n.MonitorPID())}
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(20, execs) {
		wg.Go(func() {
			for i := range next {
				run(i)
			}
		})
	}
	for i := range execs {
		next <- i
	}
	close(next)
	wg.Wait()
	n.Eventually("crid and its monitor hold no more than before", func() bool { return !n.Figures().exceeds(before) })
	if left := n.inCgroup(id); len(left) != 1 {
		t.Errorf("processes in the container: %q, want its own", left)
	}
	t.Logf("%d execs: %+v, was %+v; KiB of crid and monitor %v, was %v", execs, n.Figures(), before,
		[2]int{n.rss(n.PID()), n.rss(n.MonitorPID())}, rss)
}

// rss is the memory of a process in KiB.
func (n *Node) rss(pid int) (kib int) {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	_, _ = fmt.Sscan(rest, &kib)
	return kib
}
