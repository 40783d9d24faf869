package kubelet

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// kubelet with evented PLEG hears of all that happens by crid's events: it lists all pods
// at its start, when the stream of events ends, and once in five minutes, which is longer than
// the test waits. What ends while crid is away it still learns. Its lists come as streams.
func TestEventedPLEG(t *testing.T) {
	k := newKubelet(t, options{service: true, gates: map[string]bool{"EventedPLEG": true, "CRIListStreaming": true}})
	r := &restarts{kubelet: k}
	r.runEnding("once", "Never")
	r.runEnding("again", "Always")
	r.runEnding("later", "Always")
	for _, name := range []string{"once", "again", "later"} {
		r.await(name, "is ready", ready)
	}
	r.end("once", r.pid("once"))
	r.end("again", r.pid("again"))
	if s := container(r.await("once", "has failed", failed), "main").State.Terminated; s == nil || s.ExitCode != endCode {
		t.Errorf("what has ended is %v, want exit code %d", s, endCode)
	}
	r.await("again", "was restarted", restarted)
	if got := k.own("kubelet_evented_pleg_connection_success_count"); got != 1 {
		t.Errorf("kubelet has subscribed %v times, want once", got)
	}
	if got := k.own("kubelet_evented_pleg_connection_error_count"); got != 0 {
		t.Errorf("%v streams of events have ended", got)
	}
	if got := k.own("kubelet_evented_pleg_connection_latency_seconds"); got < 16 {
		t.Errorf("kubelet has heard of %v events; three pods and four containers were made and started, and two have ended", got)
	}
	if got := k.own("kubelet_pleg_relist_duration_seconds"); got != 1 {
		t.Errorf("kubelet has listed all pods %v times, want at its start alone", got)
	}

	pid := r.pid("later")
	k.Kill9()
	r.end("later", pid)
	k.Start()
	r.await("later", "was restarted", restarted)
	// Its socket was kept, as by systemd, so that one failure was all.
	if got := k.own("kubelet_evented_pleg_connection_success_count"); got != 2 {
		t.Errorf("kubelet has subscribed %v times, want twice", got)
	}
	if got := k.own("kubelet_evented_pleg_connection_error_count"); got != 1 {
		t.Errorf("%v streams of events have ended, want one", got)
	}
	if log := k.Log(); !strings.Contains(log, `rpc="StreamPodSandboxes"`) || strings.Contains(log, `rpc="ListContainers"`) {
		t.Error("kubelet's lists are not streams")
	}
}

// restarted is true for a pod whose container main runs after one restart.
func restarted(p *corev1.Pod) bool { return ready(p) && container(p, "main").RestartCount == 1 }

// own is a figure of kubelet's about itself, over all labels; of a histogram the count.
func (k *kubelet) own(name string) float64 {
	k.t.Helper()
	page, err := k.get("/metrics")
	if err != nil {
		k.t.Fatal(err)
	}
	if !strings.Contains(page, name) {
		k.t.Fatalf("kubelet has no metric %s", name)
	}
	sum := 0.0
	for _, s := range series(k.t, page, name) {
		sum += s.value
	}
	return sum
}
