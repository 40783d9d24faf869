package kubelet

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/cridproject/crid/test/e2e"
)

// kubelet changes the limits of containers that run, as the pod's spec changes: of one
// in place, of another, whose policy says so, by a restart.
func TestResize(t *testing.T) {
	k := newKubelet(t, options{api: true})
	sleeper := func(name string, memory corev1.ResourceResizeRestartPolicy) corev1.Container {
		return corev1.Container{
			Name: name, Image: e2e.BusyboxRef, Command: []string{"sleep", "1000"},
			Resources: resources("100m", "32Mi", "200m", "64Mi"),
			ResizePolicy: []corev1.ContainerResizePolicy{
				{ResourceName: corev1.ResourceCPU, RestartPolicy: corev1.NotRequired},
				{ResourceName: corev1.ResourceMemory, RestartPolicy: memory},
			},
		}
	}
	k.api.create("resized", corev1.PodSpec{Containers: []corev1.Container{
		sleeper("in-place", corev1.NotRequired), sleeper("by-restart", corev1.RestartContainer),
	}})
	p := k.await("resized", "is ready", ready)
	for _, s := range []struct {
		resources corev1.ResourceRequirements
		limits    string // see wantLimits
		shares    int
		restarts  int32 // of the second container so far
	}{
		{resources("100m", "32Mi", "200m", "64Mi"), "67108864 20000 100000", 102, 0}, // as it is
		{resources("300m", "64Mi", "500m", "128Mi"), "134217728 50000 100000", 307, 1},
		{resources("50m", "64Mi", "100m", "128Mi"), "134217728 10000 100000", 51, 1}, // memory as before
		{resources("50m", "32Mi", "100m", "96Mi"), "100663296 10000 100000", 51, 2},
	} {
		before := p
		p = k.resize(s.resources, s.restarts)
		for _, name := range []string{"in-place", "by-restart"} {
			k.wantLimits("resized", name, s.limits, s.shares)
			was, is := container(before, name), container(p, name)
			if same := is.ContainerID == was.ContainerID; same != (is.RestartCount == was.RestartCount) {
				t.Errorf("%s is %+v, was %+v", name, is, was)
			}
		}
	}
}

func resources(cpu, memory, cpuLimit, memoryLimit string) corev1.ResourceRequirements {
	list := func(cpu, memory string) corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
	}
	return corev1.ResourceRequirements{Requests: list(cpu, memory), Limits: list(cpuLimit, memoryLimit)}
}

// resize changes both containers and waits until kubelet has told the API server, by
// what crid says, that this is in force, and how often by-restart was started again.
func (k *kubelet) resize(r corev1.ResourceRequirements, restarts int32) (p *corev1.Pod) {
	k.t.Helper()
	k.api.change("resized", func(spec *corev1.PodSpec) {
		for i := range spec.Containers {
			spec.Containers[i].Resources = r
		}
	})
	k.eventually("the new limits are in force", func() error {
		var err error
		if p, err = k.api.pod("resized"); err != nil {
			return err
		}
		for name, times := range map[string]int32{"in-place": 0, "by-restart": restarts} {
			c := container(p, name)
			if c == nil || !restarted(times)(c) || c.Resources == nil || !equal(c.Resources.Limits, r.Limits) || !equal(c.Resources.Requests, r.Requests) {
				return fmt.Errorf("%s is %+v, in force is %+v", name, c, c.Resources)
			}
		}
		for _, c := range p.Status.Conditions {
			if strings.HasPrefix(string(c.Type), "PodResize") {
				return fmt.Errorf("its condition is %+v", c)
			}
		}
		return nil
	})
	return p
}

// equal compares CPU and memory.
func equal(a, b corev1.ResourceList) bool {
	return a.Cpu().Equal(*b.Cpu()) && a.Memory().Equal(*b.Memory())
}
