package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// log_rate_limit: what is over it is dropped and counted in the log, and the
// container does not wait.
func TestLogRateLimit(t *testing.T) {
	n := NewNode(t, NodeOptions{Config: map[string]string{"log_rate_limit": "20000"}})
	n.PullBusybox()
	p := n.PodConfig("noisy")
	pod := n.RunPod(p)
	const lines = 20000
	noisy := n.ContainerConfig("noisy", "seq", "0", fmt.Sprint(lines-1))
	if s := n.WaitExit(n.Run(pod, p, noisy)); s.ExitCode != 0 {
		t.Errorf("exit code %d, want 0", s.ExitCode)
	}
	kept, dropped := 0, 0
	for l := range strings.Lines(n.ContainerLog(p, noisy)) {
		_, text, _ := strings.Cut(l, " ")
		var bytes, records int
		if _, err := fmt.Sscanf(text, "stdout F [crid: dropped %d bytes of this log, %d records, over the limit of 20000 bytes a second]\n", &bytes, &records); err == nil {
			dropped += records
			continue
		}
		if text != fmt.Sprintf("stdout F %d\n", kept+dropped) {
			t.Fatalf("log has %q, want line %d", l, kept+dropped)
		}
		kept++
	}
	if kept == 0 || dropped == 0 || kept+dropped != lines {
		t.Errorf("%d records are in the log and %d are said to be dropped, want some each, %d in all", kept, dropped, lines)
	}
	quiet := n.ContainerConfig("quiet", "echo", "hello")
	n.WaitExit(n.Run(pod, p, quiet))
	if got := n.ContainerLog(p, quiet); !strings.HasSuffix(got, " stdout F hello\n") {
		t.Errorf("log of a container that writes little = %q", got)
	}
}
