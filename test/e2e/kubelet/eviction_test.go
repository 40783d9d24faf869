package kubelet

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/test/e2e"
)

// In MiB: the room for pods, how much of it has to be free, and what two pods take.
// Either fits alone.
const (
	podMemory  = 400
	freeMemory = 200
	modestUse  = 120
	greedyUse  = 110
)

// kubelet ends a pod that uses more memory than it has asked for, as crid says. The
// room is that of all pods together, so that nothing else on the machine counts.
func TestEviction(t *testing.T) {
	k := newKubelet(t, options{api: true, kubelet: map[string]any{
		"kubeReserved":              map[string]string{"memory": fmt.Sprintf("%dKi", totalMemory(t)-podMemory<<10)},
		"evictionHard":              map[string]string{"memory.available": fmt.Sprintf("%dMi", freeMemory)},
		"nodeStatusUpdateFrequency": "1s",
	}})
	// It uses the most, but has asked for it.
	k.api.create("modest", memoryPod("150Mi", fmt.Sprintf("fill %d; touch /ready", modestUse)))
	k.api.create("greedy", memoryPod("10Mi", fmt.Sprintf("touch /ready; until test -e /go; do sleep 0.1; done; fill %d", greedyUse)))
	// It has asked for none, and is critical.
	k.run("static", `
		containers:
		- name: main
			image: IMAGE
			command: [sleep, "1000"]
	`)
	before := map[string]*corev1.Pod{}
	for _, name := range []string{"modest", "greedy", "static"} {
		before[name] = k.await(name, "is ready", ready)
		k.eventually("kubelet has figures of "+name, func() error {
			p, err := k.summary(name)
			if err == nil && (len(p.Containers) != 1 || p.Memory.WorkingSetBytes == 0) {
				err = fmt.Errorf("they are %+v", p)
			}
			return err
		})
	}
	if ids := k.running(before["greedy"]); len(ids) != 2 {
		t.Fatalf("crid runs %v of the greedy pod, want a container and a sandbox", ids)
	}
	if strings.Contains(k.kubeletLog(), "must evict pod") {
		t.Fatal("there is pressure before the greedy pod has begun")
	}

	k.exec("greedy", "main", "touch", "/go")
	k.eventually("the greedy pod is evicted", func() error { return k.evicted("greedy") })
	k.eventually("the node is short of memory", k.pressed)
	k.logged(0,
		`pods ranked for eviction" pods=\["default/greedy-node","default/static-node","default/modest-node"\]`,
		// kubelet has looked again and is content.
		`(?s)pods successfully cleaned up" pods=\["default/greedy-node"\].*no resources are starved`,
	)
	if n := strings.Count(k.kubeletLog(), "must evict pod"); n != 1 {
		t.Errorf("kubelet has evicted %d times, want once", n)
	}
	if left := k.running(before["greedy"]); left != nil {
		t.Errorf("of the evicted pod crid runs %v", left)
	}
	for _, name := range []string{"modest", "static"} {
		k.undisturbed(before[name], name)
	}
}

// totalMemory is the machine's, in KiB.
func totalMemory(t testing.TB) (n int) {
	t.Helper()
	b, err := os.ReadFile("/proc/meminfo")
	if _, scan := fmt.Sscanf(string(b), "MemTotal: %d kB", &n); err != nil || scan != nil {
		t.Fatal(err, scan)
	}
	return n
}

// memoryPod runs a script in which fill takes so many MiB of memory.
func memoryPod(request, script string) corev1.PodSpec {
	return corev1.PodSpec{
		Containers: []corev1.Container{{
			Name: "main", Image: e2e.BusyboxRef,
			Command:        []string{"sh", "-c", "fill() { dd if=/dev/zero of=/memory/f bs=1M count=$1; }; " + script + "; exec sleep 1000"},
			Resources:      corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(request)}},
			VolumeMounts:   []corev1.VolumeMount{{Name: "memory", MountPath: "/memory"}},
			ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"test", "-e", "/ready"}}}, PeriodSeconds: 1, TimeoutSeconds: 60, SuccessThreshold: 1, FailureThreshold: 3},
		}},
		Volumes: []corev1.Volume{{Name: "memory", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}}},
	}
}

// evictedFor has a container's use of memory and its request.
var evictedFor = regexp.MustCompile(`^The node was low on resource: memory\. .*Container main was using (\w+), request is (10Mi), `)

// evicted is an error until kubelet has told the API server that it has evicted a pod
// for what crid says that it uses.
func (k *kubelet) evicted(name string) error {
	p, err := k.api.pod(name)
	if err != nil {
		return err
	}
	s := p.Status
	if c := container(p, "main"); s.Phase != corev1.PodFailed || s.Reason != "Evicted" || c.State.Terminated == nil {
		return fmt.Errorf("its status is %+v", s)
	}
	m := evictedFor.FindStringSubmatch(s.Message)
	if m == nil {
		k.t.Errorf("the message is %q", s.Message)
	} else if used := resource.MustParse(m[1]); used.Cmp(resource.MustParse(m[2])) <= 0 {
		k.t.Errorf("it is evicted for %s, and has asked for %s", m[1], m[2])
	}
	if !slices.ContainsFunc(s.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue && c.Reason == corev1.PodReasonTerminationByKubelet
	}) {
		k.t.Errorf("the conditions are %+v", s.Conditions)
	}
	return nil
}

// undisturbed checks that a pod's container runs on and that kubelet says so, of a
// static pod by its mirror.
func (k *kubelet) undisturbed(before *corev1.Pod, name string) {
	k.t.Helper()
	k.eventually(name+" runs on", func() error {
		p, err := k.api.pod(name)
		if err != nil {
			return err
		}
		was, is := container(before, "main"), container(p, "main")
		if !ready(p) || is == nil || is.ContainerID != was.ContainerID || is.RestartCount != 0 {
			return fmt.Errorf("its status is %+v; was %+v", p.Status, was)
		}
		return nil
	})
	k.exec(name, "main", "true")
}

// pressed is an error until kubelet has told of the node that it is short of memory.
func (k *kubelet) pressed() error {
	var node corev1.Node
	if err := k.api.get("/api/v1/nodes/"+nodeName, &node); err != nil {
		return err
	}
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeMemoryPressure && c.Status == corev1.ConditionTrue {
			return nil
		}
	}
	return fmt.Errorf("the node's conditions are %+v", node.Status.Conditions)
}

// running are the containers of a pod that run in crid, and its sandbox if it is ready.
func (k *kubelet) running(p *corev1.Pod) (ids []string) {
	k.t.Helper()
	labels := map[string]string{"io.kubernetes.pod.uid": string(p.UID)}
	containers, err := k.Runtime.ListContainers(k.Ctx(), &cri.ListContainersRequest{Filter: &cri.ContainerFilter{
		LabelSelector: labels, State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING},
	}})
	if err != nil {
		k.t.Fatal(err)
	}
	for _, c := range containers.Containers {
		ids = append(ids, c.Id)
	}
	sandboxes, err := k.Runtime.ListPodSandbox(k.Ctx(), &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{
		LabelSelector: labels, State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY},
	}})
	if err != nil {
		k.t.Fatal(err)
	}
	for _, s := range sandboxes.Items {
		ids = append(ids, s.Id)
	}
	return ids
}
