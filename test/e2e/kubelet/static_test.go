package kubelet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/test/e2e"
)

// page is a pod that serves its version; its old self must have gone before the next one begins.
const page = `
	terminationGracePeriodSeconds: 30
	volumes: [{name: out, hostPath: {path: DIR/page, type: DirectoryOrCreate}}]
	containers:
	- name: main
		image: IMAGE
		command:
		- sh
		- -c
		- |
			trap 'echo term-VERSION >>/out/steps; exit 0' TERM
			echo VERSION >>/out/steps
			echo VERSION >/www/version
			httpd -f -p 80 -h /www & wait
		lifecycle: {preStop: {exec: {command: [sh, -c, "echo stop-VERSION >>/out/steps"]}}}
		ports: [{containerPort: 80, hostPort: 18082}]
		readinessProbe: {httpGet: {path: /version, port: 80}, periodSeconds: 1, timeoutSeconds: 30}
		volumeMounts: [{name: out, mountPath: /out}]
`

// testUpdate changes a static pod's manifest twice, then removes it.
func (k *kubelet) testUpdate() {
	var olds []*corev1.Pod
	for _, version := range []string{"one", "two", "three"} {
		k.run("page", strings.ReplaceAll(page, "VERSION", version))
		p := k.await("page", "is ready in version "+version, func(p *corev1.Pod) bool {
			return ready(p) && strings.Contains(p.Spec.Containers[0].Command[2], version)
		})
		for _, address := range []string{p.Status.PodIP, e2e.NodeAddress + ":18082"} {
			if got, err := get("http://" + address + "/version"); got != version+"\n" {
				k.t.Errorf("the page at %s is %q, %v; want %s", address, got, err, version)
			}
		}
		olds = append(olds, p)
	}
	k.wantSteps("page/steps", "one", "stop-one", "term-one", "two", "stop-two", "term-two", "three")
	if len(k.sandboxes(string(olds[2].UID))) != 1 {
		k.t.Errorf("the pod has the sandboxes %v", k.sandboxes(string(olds[2].UID)))
	}
	k.remove("page")
	k.awaitStep("page/steps", "term-three")
	for _, p := range olds {
		k.eventually("nothing is left of pod "+string(p.UID), func() error { return k.nothingOf(p) })
	}
}

// nothingOf returns what there still is of a pod: for crid, in the cgroups, in kubelet's
// folders, and its address.
func (k *kubelet) nothingOf(p *corev1.Pod) error {
	var left []error
	uid := string(p.UID)
	if s := k.sandboxes(uid); len(s) > 0 {
		left = append(left, fmt.Errorf("sandboxes %v", s))
	}
	r, err := k.Runtime.ListContainers(k.Ctx(), &cri.ListContainersRequest{Filter: &cri.ContainerFilter{LabelSelector: map[string]string{"io.kubernetes.pod.uid": uid}}})
	if err != nil || len(r.Containers) > 0 {
		left = append(left, fmt.Errorf("containers %v, %w", r, err))
	}
	for _, root := range []string{"/sys/fs/cgroup", k.path("pod-logs"), k.path("kubelet", "pods")} {
		if err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && strings.Contains(d.Name(), uid) {
				left = append(left, fmt.Errorf("folder %s", path))
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}); err != nil {
			left = append(left, err)
		}
	}
	for _, ip := range p.Status.PodIPs {
		if _, err := os.Stat(k.path("ipam", k.Bridge, ip.IP)); err == nil {
			left = append(left, fmt.Errorf("address %s", ip.IP))
		}
	}
	return errors.Join(left...)
}
