package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/internal/sys"
)

// A full disk stops the log and not the container: the loss is counted, said once in
// the monitor's log, and said in the container's log once there is room.
func TestLogOnFullDisk(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("full")
	if err := os.MkdirAll(p.LogDirectory, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("small", p.LogDirectory, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sys.Unmount(p.LogDirectory, sys.Detach) })
	pod := n.RunPod(p)
	const lines = 100000
	c := n.ContainerConfig("main", "sh", "-c", fmt.Sprintf("seq %d; until [ -e /tmp/go ]; do usleep 10000; done; echo again; exit 3", lines))
	id := n.Run(pod, p, c)
	path := filepath.Join(p.LogDirectory, c.LogPath)
	records := 0
	for i := range lines {
		records += len("2016-10-06T00:17:09.669794202Z stdout F ") + len(strconv.Itoa(i+1)) + len("\n")
	}
	n.Eventually("all is in the log or counted as lost", func() bool {
		st, err := os.Stat(path)
		return err == nil && int(st.Size())+int(n.statusInfo().Monitor.LogDropped) == records
	})
	// As kubelet makes room.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Runtime.ReopenContainerLog(n.Ctx(), &cri.ReopenContainerLogRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	n.Exec(id, "touch", "/tmp/go")
	if s := n.WaitExit(id); s.ExitCode != 3 {
		t.Errorf("exit code %d, want 3", s.ExitCode)
	}
	want := fmt.Sprintf(" stdout F [crid: lost %d bytes of this log: no space left on device]\n", n.statusInfo().Monitor.LogDropped)
	if log := n.ContainerLog(p, c); !strings.Contains(log, want) || !strings.HasSuffix(log, " stdout F again\n") {
		t.Errorf("log with room again = %q, want %q and what came later", log, want)
	}
	if said := strings.Count(n.monitorLog(), "Lost log of a container"); said != 1 {
		t.Errorf("the loss was said %d times, want once", said)
	}
}

// The last words of many containers, which end at once, are in their logs when the
// exit is reported.
func TestLastWords(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("last-words")
	pod := n.RunPod(p)
	const lines = 3000
	for i := range 20 {
		c := n.ContainerConfig(fmt.Sprintf("c%d", i), "sh", "-c", fmt.Sprintf("seq %d; echo last; kill -9 $$", lines))
		n.WaitExit(n.Run(pod, p, c))
		if log := n.ContainerLog(p, c); strings.Count(log, "\n") != lines+1 || !strings.HasSuffix(log, " stdout F last\n") {
			t.Errorf("container %d: %d lines when its exit is reported, want %d", i, strings.Count(log, "\n"), lines+1)
		}
	}
}
