package kubelet

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestPods runs pods of every kind on one kubelet, at the same time: a subtest
// writes its manifests, and asks kubelet and the containers what has become of them.
func TestPods(t *testing.T) {
	policy := filepath.Join(t.TempDir(), "policy.json")
	if err := os.WriteFile(policy, []byte(signaturePolicy), 0o600); err != nil {
		t.Fatal(err)
	}
	k := newKubelet(t, options{
		crid:    map[string]string{"images.signature_policy": strconv.Quote(policy)},
		gates:   map[string]bool{"ContainerStopSignals": true},
		kubelet: map[string]any{"registryPullQPS": 0}, // all of these pods come in one second
	})
	for _, tt := range []struct {
		name string
		test func(*kubelet)
	}{
		{"init containers and sidecars", (*kubelet).testSidecars},
		{"init container fails", (*kubelet).testInitFails},
		{"readiness", (*kubelet).testReadiness},
		{"liveness", (*kubelet).testLiveness},
		{"restart Always", (*kubelet).testAlways},
		{"restart OnFailure", (*kubelet).testOnFailure},
		{"restart Never", (*kubelet).testNever},
		{"long termination messages", (*kubelet).testLongMessages},
		{"hooks", (*kubelet).testHooks},
		{"shared process namespace", (*kubelet).testSharedPID},
		{"namespaces of the node", (*kubelet).testNodeNamespaces},
		{"host ports", (*kubelet).testHostPorts},
		{"names", (*kubelet).testNames},
		{"security contexts", (*kubelet).testSecurity},
		{"unmasked proc", (*kubelet).testUnmasked},
		{"refused", (*kubelet).testRefused},
		{"update and removal", (*kubelet).testUpdate},
	} {
		k.parallel(tt.name, tt.test)
	}
}

// says fails the test when a command in a container prints anything but want.
func (k *kubelet) says(pod, container, want string, args ...string) {
	k.t.Helper()
	if got := k.exec(pod, container, args...); got != want {
		k.t.Errorf("%q in container %s of pod %s says %q, want %q", args, container, pod, got, want)
	}
}

func (k *kubelet) read(path string) string {
	k.t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		k.t.Fatal(err)
	}
	return string(b)
}

// wantEvent waits until kubelet has told an event with this text, as its log quotes it.
func (k *kubelet) wantEvent(text string) {
	k.t.Helper()
	k.logged(0, `"Event occurred".*`+regexp.QuoteMeta(text))
}

// logged waits for lines of kubelet's log, after a part of it.
func (k *kubelet) logged(after int, lines ...string) {
	k.t.Helper()
	k.eventually("kubelet has logged what it does", func() error {
		log := k.kubeletLog()[after:]
		for _, l := range lines {
			if !regexp.MustCompile(l).MatchString(log) {
				return fmt.Errorf("no line has %q", l)
			}
		}
		return nil
	})
}

// wantSteps compares the lines that a pod's containers have written to a file of the
// node with what they must be, in this order.
func (k *kubelet) wantSteps(file string, want ...string) {
	k.t.Helper()
	if got := strings.Fields(k.read(k.path(file))); !slices.Equal(got, want) {
		k.t.Errorf("%s holds the steps %q, want %q", file, got, want)
	}
}

// awaitStep waits until a step has been made as the last one.
func (k *kubelet) awaitStep(file, step string) {
	k.t.Helper()
	k.eventually(step+" in "+file, func() error {
		b, err := os.ReadFile(k.path(file))
		if !strings.HasSuffix(string(b), step+"\n") {
			return fmt.Errorf("%q, %v", b, err)
		}
		return nil
	})
}

// awaitContainer waits until ok holds for the status of one container and returns it.
func (k *kubelet) awaitContainer(pod, name, what string, ok func(*corev1.ContainerStatus) bool) *corev1.ContainerStatus {
	k.t.Helper()
	p := k.await(pod, fmt.Sprintf("has a container %s that %s", name, what), func(p *corev1.Pod) bool {
		c := container(p, name)
		return c != nil && ok(c)
	})
	return container(p, name)
}

func running(c *corev1.ContainerStatus) bool { return c.State.Running != nil }

// restarted holds for a container that runs and was restarted so often.
func restarted(times int32) func(*corev1.ContainerStatus) bool {
	return func(c *corev1.ContainerStatus) bool { return running(c) && c.RestartCount == times }
}

// untouched checks that a pod's container runs, and how often it was restarted.
func (k *kubelet) untouched(pod, name string, restarts int32) {
	k.t.Helper()
	p := k.await(pod, "is ready", ready)
	if c := container(p, name); p.Status.Phase != corev1.PodRunning || !restarted(restarts)(c) {
		k.t.Fatalf("%s is %s with %d restarts, want Running with %d: %v", pod, p.Status.Phase, c.RestartCount, restarts, c)
	}
}

// started reports whether a container's startup probe, if it has one, has succeeded.
func started(c *corev1.ContainerStatus) bool { return c.Started != nil && *c.Started }

// allRunning reports whether all containers of a pod run, init containers aside.
func allRunning(p *corev1.Pod) bool {
	return len(p.Status.ContainerStatuses) == len(p.Spec.Containers) &&
		!slices.ContainsFunc(p.Status.ContainerStatuses, func(c corev1.ContainerStatus) bool { return !running(&c) })
}

// sandboxes are the IDs of the sandboxes that crid has for a pod.
func (k *kubelet) sandboxes(uid string) []string {
	k.t.Helper()
	r, err := k.Runtime.ListPodSandbox(k.Ctx(), &cri.ListPodSandboxRequest{
		Filter: &cri.PodSandboxFilter{LabelSelector: map[string]string{"io.kubernetes.pod.uid": uid}},
	})
	if err != nil {
		k.t.Fatal(err)
	}
	var ids []string
	for _, s := range r.Items {
		ids = append(ids, s.Id)
	}
	return ids
}
