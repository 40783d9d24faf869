package kubelet

import (
	"fmt"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// The names of kubelet's metrics of its evented PLEG.
const (
	subscribed = "kubelet_evented_pleg_connection_success_count"
	broken     = "kubelet_evented_pleg_connection_error_count"
	heard      = "kubelet_evented_pleg_connection_latency_seconds"
	relists    = "kubelet_pleg_relist_duration_seconds"
	discarded  = "kubelet_pleg_discard_events"
)

// A kubelet that hears of changes by crid's events lists everything once, at its
// start, and sees all that happens to pods: also when crid ends and comes back, and
// what has happened while it was away. Its lists come as streams.
func TestEventedPLEG(t *testing.T) {
	k := newKubelet(t, options{gates: map[string]bool{"EventedPLEG": true, "CRIListStreaming": true}, service: true})
	r := &restarts{kubelet: k}
	r.runEndings(3)
	counts := func(ends int) {
		k.t.Helper()
		if n := k.metric(subscribed); n != 1+ends {
			k.t.Errorf("kubelet has subscribed %d times, want %d", n, 1+ends)
		}
		// When a subscription breaks it lists too.
		if n := k.metric(relists); n != 1+ends {
			k.t.Errorf("kubelet has listed everything %d times, want %d", n, 1+ends)
		}
		if n := k.metric(discarded); n != 0 {
			k.t.Errorf("%d events did not reach kubelet's pods", n)
		}
	}
	// kubelet takes half a minute to make another pod of a static one: its workers wait
	// for news that with events come every five seconds only.
	const changing = `
		terminationGracePeriodSeconds: 0
		initContainers:
		- name: init
			image: IMAGE
			command: ["true"]
		containers:
		- name: main
			image: IMAGE
			command: [sleep, "1000"]
			env: [{name: VERSION, value: "NUMBER"}]
	`
	k.run("changes", strings.Replace(changing, "NUMBER", "1", 1))
	first := k.await("changes", "is ready", ready)
	k.run("changes", strings.Replace(changing, "NUMBER", "2", 1))
	k.step("Death", func() {
		events := k.metric(heard)
		r.again = "again0"
		r.whileDown(func() {}, func() {})
		r.checkEnded()
		counts(0)
		if n := k.metric(heard); n <= events {
			k.t.Error("kubelet has heard no event")
		}
	})
	if err := os.Remove(k.manifest("again0")); err != nil {
		t.Fatal(err)
	}
	for i, step := range []struct {
		name string
		down func()
	}{{"CridKilled", k.Kill9}, {"CridUpgraded", k.Stop}} {
		k.step(step.name, func() {
			r.again, r.ended = fmt.Sprintf("again%d", i+1), 0
			r.whileDown(step.down, k.Start)
			r.checkEnded()
			events := k.metric(heard)
			after := fmt.Sprintf("after%d", i)
			r.runEnding(after, "Always")
			r.await(after, "is ready", ready)
			counts(i + 1)
			if n := k.metric(heard); n <= events {
				k.t.Error("kubelet has heard no event of a new pod")
			}
		})
	}
	k.step("Changed", func() {
		k.await("changes", "is another pod", func(p *corev1.Pod) bool { return ready(p) && p.UID != first.UID })
		if got := k.exec("changes", "main", "sh", "-c", "echo $VERSION"); got != "2\n" {
			k.t.Errorf("the changed pod has version %q", got)
		}
	})
	k.step("Removed", func() {
		k.eventually("the pod is gone", func() error { return k.gone("again0-" + nodeName) })
		counts(2)
	})
	if log := k.Log(); !strings.Contains(log, `rpc="StreamPodSandboxes"`) || strings.Contains(log, `rpc="ListContainers"`) {
		k.t.Error("kubelet's lists are not streams")
	}
}

// Where nothing keeps crid's socket, kubelet goes back to listing. It misses nothing.
func TestEventedPLEGFallsBack(t *testing.T) {
	k := newKubelet(t, options{gates: map[string]bool{"EventedPLEG": true}})
	r := &restarts{kubelet: k, again: "again0"}
	r.runEndings(2)
	r.whileDown(k.Kill9, func() {
		k.eventually("kubelet tries no more", func() error {
			if n := k.metric(broken); n < 5 {
				return fmt.Errorf("it has tried %d times", n)
			}
			return nil
		})
		k.Start()
	})
	r.checkEnded()
	r.again, r.ended = "again1", 0
	r.whileDown(func() {}, func() {})
	r.checkEnded()
	listed := k.metric(relists)
	k.eventually("kubelet goes on listing", func() error {
		if n := k.metric(relists); n < listed+2 {
			return fmt.Errorf("%d times, after %d", n, listed)
		}
		return nil
	})
}

// runEndings runs pods for n calls of whileDown. Those that are still being started when
// crid ends would be started again.
func (r *restarts) runEndings(n int) {
	r.t.Helper()
	policies := map[string]string{"again": "Always", "once": "Never"}
	for i := range n {
		for name, policy := range policies {
			r.runEnding(fmt.Sprint(name, i), policy)
		}
	}
	for i := range n {
		for name := range policies {
			r.await(fmt.Sprint(name, i), "is ready", ready)
		}
	}
}
