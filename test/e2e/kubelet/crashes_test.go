package kubelet

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A pod serves a page the whole time while kubelet, crid and its monitor end in all
// ways and come back: not one request fails, nothing is restarted or made twice, and
// what ended of itself meanwhile is reported as it was, and restarted once.
func TestRestarts(t *testing.T) {
	k := newKubelet(t, options{})
	r := &restarts{kubelet: k, again: "again"}
	r.run("web", `
		containers:
		- name: page
			image: IMAGE
			command: [httpd, -f, -p, "80", -h, /www]
			ports: [{containerPort: 80, hostPort: 8480}]
			readinessProbe: {httpGet: {port: 80}, periodSeconds: 1, timeoutSeconds: 60}
			livenessProbe: {exec: {command: ["true"]}, periodSeconds: 1, timeoutSeconds: 60}
		- name: counter
			image: IMAGE
			command: [sh, -c, "i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done"]
	`)
	r.runEnding("again", "Always")
	web := r.await("web", "is ready", ready)
	r.await("again", "is ready", ready)
	visitors := []*visitor{visit("http://" + web.Status.PodIP), visit("http://127.0.0.1:8480")}
	for _, v := range visitors {
		t.Cleanup(v.leave) // before the pod is removed
	}
	r.web = statuses(web)

	for _, step := range []struct {
		name string
		do   func()
	}{
		{"KubeletStopped", func() { k.stop(syscall.SIGTERM); k.start() }},
		{"KubeletKilled", func() { k.stop(syscall.SIGKILL); k.start() }},
		{"CridKilled", func() { r.whileDown(k.Kill9, k.Start) }},
		{"MonitorKilled", r.killMonitor},
		{"BothKilled", func() {
			r.whileDown(func() { k.stop(syscall.SIGKILL); k.Kill9() }, func() { r.kubeletAlone(); k.Start(); k.start() })
		}},
		{"CridUpgraded", func() { k.Stop(); k.Start() }},
	} {
		k.step(step.name, func() {
			step.do()
			r.check()
			for _, v := range visitors {
				v.check(k.t)
			}
		})
	}
	r.counted()
}

// restarts is the pods of TestRestarts and how they ought to be.
type restarts struct {
	*kubelet
	web   map[string]string // of the pod web, as statuses has them
	again string            // the pod that is told to end and is restarted
	ended int               // how often
	once  []string          // pods that have ended for good
}

const endCode = 42

// runEnding runs a pod that ends with endCode when the file of its name is in the
// folder end, which it takes away.
func (r *restarts) runEnding(name, policy string) {
	r.WriteFile(r.path("end", ".keep"), "")
	r.run(name, fmt.Sprintf(`
		restartPolicy: %s
		terminationGracePeriodSeconds: 0
		containers:
		- name: main
			image: IMAGE
			command: [sh, -c, "until rm /end/%s; do sleep 0.05; done 2>/dev/null; exit %d"]
			volumeMounts: [{name: end, mountPath: /end}]
		volumes: [{name: end, hostPath: {path: DIR/end}}]
	`, policy, name, endCode))
}

// end tells a pod's container to end and waits until the kernel has forgotten it.
func (r *restarts) end(name, pid string) {
	r.WriteFile(r.path("end", name), "")
	r.eventually("the container of "+name+" ends", func() error {
		if _, err := os.Stat(filepath.Join("/proc", pid)); err == nil {
			return errors.New("process " + pid + " is there")
		}
		return nil
	})
}

// whileDown takes crid down and brings it back up; between the two, one container
// ends that is to be restarted, and one that is not.
func (r *restarts) whileDown(down, up func()) {
	r.t.Helper()
	once := fmt.Sprintf("once%d", len(r.once))
	if _, err := r.pod(once); err != nil {
		r.runEnding(once, "Never")
	}
	r.await(once, "is ready", ready)
	r.await(r.again, "is ready", ready)
	pids := map[string]string{r.again: r.pid(r.again), once: r.pid(once)}
	down()
	for name, pid := range pids {
		r.end(name, pid)
	}
	r.once = append(r.once, once)
	r.ended++
	up()
}

// pid is that of the pod's container main on the node.
func (r *restarts) pid(name string) string {
	r.t.Helper()
	p, err := r.pod(name)
	if err != nil {
		r.t.Fatal(err)
	}
	_, id, _ := strings.Cut(container(p, "main").ContainerID, "://")
	s, err := r.Runtime.ContainerStatus(r.Ctx(), &cri.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		r.t.Fatal(err)
	}
	var info struct{ PID int }
	if err := json.Unmarshal([]byte(s.Info["info"]), &info); err != nil || info.PID == 0 {
		r.t.Fatalf("no pid of %s in %v: %v", id, s.Info, err)
	}
	return strconv.Itoa(info.PID)
}

func (r *restarts) killMonitor() {
	r.t.Helper()
	was := r.MonitorPID()
	if err := syscall.Kill(was, syscall.SIGKILL); err != nil {
		r.t.Fatal(err)
	}
	r.Eventually("there is a new monitor", func() bool { now := r.MonitorPID(); return now != 0 && now != was })
}

// kubeletAlone starts kubelet while there is no crid. It ends, as it does with any
// runtime, and says which socket it did not reach; systemd would start it again.
func (r *restarts) kubeletAlone() {
	r.t.Helper()
	r.launch()
	select {
	case <-r.exited:
		r.cmd = nil
	case <-time.After(patience):
		r.t.Fatal("kubelet goes on without a runtime")
	}
	if log := r.kubeletLog(); !strings.Contains(end(log), "validate service connection") {
		r.t.Errorf("kubelet has ended for another reason than that there is no crid:\n%s", end(log))
	}
}

// check holds what kubelet and crid say of all pods against what it ought to be.
func (r *restarts) check() {
	web := r.await("web", "is ready", ready)
	for what, is := range statuses(web) {
		if is != r.web[what] {
			r.t.Errorf("%s of the pod is %s, want %s as before", what, is, r.web[what])
		}
	}
	r.checkEnded()
	r.probesGoOn()
	if restarted := container(r.await(r.again, "is there", ready), "main").RestartCount; int(restarted) != r.ended {
		r.t.Errorf("what ended %d times was restarted %d times", r.ended, restarted)
	}
	r.nothingTwice()
}

// checkEnded is check of the pods that have ended by themselves.
func (r *restarts) checkEnded() {
	r.t.Helper()
	again := r.await(r.again, fmt.Sprintf("was restarted %d times and is ready", r.ended), func(p *corev1.Pod) bool {
		return ready(p) && int(container(p, "main").RestartCount) == r.ended
	})
	if last := container(again, "main").LastTerminationState.Terminated; r.ended > 0 && (last == nil || last.ExitCode != endCode || last.Reason != "Error") {
		r.t.Errorf("what has ended while crid was down has the last state %v, want exit code %d, Error", last, endCode)
	}
	for _, name := range r.once {
		p := r.await(name, "has failed", failed)
		if s := container(p, "main"); s.State.Terminated == nil || s.State.Terminated.ExitCode != endCode || s.RestartCount != 0 {
			r.t.Errorf("%s, which has ended while crid was down, is %v, want exit code %d, no restart", name, s, endCode)
		}
	}
}

// statuses are what a restart around a pod may not change.
func statuses(p *corev1.Pod) map[string]string {
	m := map[string]string{"address": p.Status.PodIP, "phase": string(p.Status.Phase)}
	for _, c := range p.Status.ContainerStatuses {
		m[c.Name+"'s container"] = c.ContainerID
		m[c.Name+"'s restart count"] = strconv.Itoa(int(c.RestartCount))
		m[c.Name+"'s state"] = c.State.String() // with the time of the start
		m[c.Name+"'s last state"] = c.LastTerminationState.String()
		m[c.Name+"'s image"] = c.ImageID
	}
	return m
}

// probesGoOn waits for another successful probe of each kind; none may have failed.
func (r *restarts) probesGoOn() {
	r.t.Helper()
	count := func(kind, result string) float64 {
		page, err := get(server + "/metrics/probes")
		if err != nil {
			r.t.Fatal(err)
		}
		n := 0.0
		for _, s := range series(r.t, page, "prober_probe_total") {
			if s.labels["pod"] == "web-"+nodeName && s.labels["probe_type"] == kind && s.labels["result"] == result {
				n += s.value
			}
		}
		return n
	}
	before := make(map[string]float64)
	for _, kind := range []string{"Readiness", "Liveness"} {
		before[kind] = count(kind, "successful")
	}
	for kind, n := range before {
		r.eventually(kind+" probes go on", func() error {
			if count(kind, "successful") <= n {
				return fmt.Errorf("%v have succeeded, none since then", n)
			}
			return nil
		})
		if n := count(kind, "failed"); n > 0 {
			r.t.Errorf("%v %s probes have failed", n, kind)
		}
	}
}

// nothingTwice asks crid itself for what kubelet may not see.
func (r *restarts) nothingTwice() {
	r.t.Helper()
	pods, err := r.Runtime.ListPodSandbox(r.Ctx(), &cri.ListPodSandboxRequest{})
	if err != nil {
		r.t.Fatal(err)
	}
	sandboxes := make(map[string]int)
	for _, p := range pods.Items {
		sandboxes[p.Metadata.Name]++
	}
	for name, n := range sandboxes {
		if n != 1 {
			r.t.Errorf("pod %s has %d sandboxes", name, n)
		}
	}
	if want := 2 + len(r.once); len(sandboxes) != want {
		r.t.Errorf("there are sandboxes of %v, want of %d pods", sandboxes, want)
	}
	list, err := r.Runtime.ListContainers(r.Ctx(), &cri.ListContainersRequest{})
	if err != nil {
		r.t.Fatal(err)
	}
	running := make(map[string]int)
	for _, c := range list.Containers {
		if c.State == cri.ContainerState_CONTAINER_RUNNING {
			running[c.Labels["io.kubernetes.pod.name"]+"/"+c.Metadata.Name]++
		}
	}
	for _, name := range []string{"web-node/page", "web-node/counter", "again-node/main"} {
		if running[name] != 1 {
			r.t.Errorf("%d containers %s run", running[name], name)
		}
	}
	if len(running) != 3 {
		r.t.Errorf("%v run, want three containers", running)
	}
}

// counted reads the log that was written all the time: no line is missing or doubled.
func (r *restarts) counted() {
	log := r.logs("web", "counter")
	n := 0
	for line := range strings.Lines(log) {
		if strings.TrimSuffix(line, "\n") != strconv.Itoa(n) {
			r.t.Fatalf("line %d of the log is %q", n, line)
		}
		n++
	}
	if n < 100 {
		r.t.Errorf("the log has %d lines", n)
	}
}

// visitor asks for a page every 10 ms, with a connection for each request.
type visitor struct {
	url  string
	stop chan struct{}
	done sync.WaitGroup

	mu       sync.Mutex
	served   int
	failures []error
}

func visit(url string) *visitor {
	v := &visitor{url: url, stop: make(chan struct{})}
	v.done.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-v.stop:
				return
			case <-tick.C:
				// Beside those under way, so that one that hangs does not keep others from failing.
				v.done.Go(v.ask)
			}
		}
	})
	return v
}

func (v *visitor) ask() {
	page, err := getBy(&http.Client{Timeout: time.Minute, Transport: client.Transport}, v.url)
	if err == nil && page != "hello from a pod\n" {
		err = fmt.Errorf("%s: %q", v.url, page)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if err != nil {
		v.failures = append(v.failures, err)
	} else {
		v.served++
	}
}

// check fails the test for requests that have failed since the last one.
func (v *visitor) check(t testing.TB) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.failures) > 0 {
		t.Errorf("%d requests of %s have failed, the first with %v", len(v.failures), v.url, v.failures[0])
	}
	if v.served == 0 {
		t.Errorf("nobody has asked %s for its page", v.url)
	}
	t.Logf("%s served %d times", v.url, v.served)
	v.failures, v.served = nil, 0
}

func (v *visitor) leave() {
	close(v.stop)
	v.done.Wait()
}
