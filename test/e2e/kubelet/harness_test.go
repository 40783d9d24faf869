package kubelet

import (
	"encoding/json"
	"errors"
	"flag"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/cridproject/crid/test/e2e"
)

var kubeletFlag = flag.String("kubelet", "../../../bin/kubernetes/kubelet", "kubelet program")

const (
	nodeName  = "node"
	port      = "10250"
	namespace = "default"
)

// kubelet is a kubelet on a node of its own, without an API server but for options.api.
type kubelet struct {
	*e2e.Node
	t      testing.TB
	config map[string]any
	flags  []string   // over the configuration, for what it cannot say
	api    *apiServer // nil without

	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has been waited for
	asked  *singleflight.Group
}

// options changes what newKubelet makes.
type options struct {
	kubelet map[string]any    // fields of KubeletConfiguration, over the tests' own
	gates   map[string]bool   // feature gates, over the tests' own
	crid    map[string]string // section.key → TOML value
	service bool              // crid is run as systemd runs it
	api     bool              // kubelet has an API server: see apiServer
}

// newKubelet makes a node with the image e2e.BusyboxRef in its registry and starts
// a kubelet on it. When t ends its pods are removed and its log is read: see close.
func newKubelet(t testing.TB, o options) *kubelet {
	t.Helper()
	if _, err := os.Stat(*kubeletFlag); err != nil {
		t.Fatalf("no kubelet (%v): run hack/kubernetes/build.sh, or name the program with -kubelet", err)
	}
	n := e2e.NewNode(t, e2e.NodeOptions{Config: o.crid, Service: o.service})
	n.Registry.Push("e2e/busybox:1", e2e.Busybox(t))
	k := &kubelet{Node: n, t: t, asked: new(singleflight.Group)}
	k.configure(o)
	if o.api {
		k.connect()
	}
	k.makeCgroup()
	t.Cleanup(k.close)
	k.start()
	return k
}

// within is k in a subtest, which fails by itself.
func (k *kubelet) within(t testing.TB) *kubelet {
	sub, node := *k, *k.Node
	node.T, sub.Node, sub.t = t, &node, t
	return &sub
}

// parallel is a subtest beside others. It begins when those of k's test are all there.
func (k *kubelet) parallel(name string, test func(*kubelet)) {
	k.t.(*testing.T).Run(name, func(t *testing.T) {
		t.Parallel()
		test(k.within(t))
	})
}

// step is a subtest that changes the kubelet for those after it.
func (k *kubelet) step(name string, f func()) {
	outer := k.t.(*testing.T)
	outer.Run(name, func(t *testing.T) {
		k.t, k.T = t, t
		defer func() { k.t, k.T = outer, outer }()
		f()
	})
}

func (k *kubelet) path(parts ...string) string {
	return filepath.Join(append([]string{k.Dir}, parts...)...)
}

// configure sets what kubelet is told, with short intervals where people wait.
func (k *kubelet) configure(o options) {
	gates := map[string]bool{
		"PodAndContainerStatsFromCRI": true,
		"KubeletCrashLoopBackOffMax":  true,
	}
	maps.Copy(gates, o.gates)
	k.config = map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"containerRuntimeEndpoint": "unix://" + k.Socket,
		"staticPodPath":            k.path("manifests"),
		"podLogsDir":               k.path("pod-logs"),
		"volumePluginDir":          k.path("volume-plugins"),
		"address":                  "127.0.0.1",
		"authentication":           map[string]any{"anonymous": map[string]any{"enabled": true}, "webhook": map[string]any{"enabled": false}},
		"authorization":            map[string]any{"mode": "AlwaysAllow"},
		"failCgroupV1":             false,
		"failSwapOn":               false,
		"cgroupRoot":               k.cgroupRoot(),
		"oomScoreAdj":              0, // a lower one needs CAP_SYS_RESOURCE
		"maxOpenFiles":             openFiles(k.t),
		// What the machine's disk has room for is not for the tests: kubelet would remove
		// images of pods that are about to run.
		"imageGCHighThresholdPercent": 100,
		"evictionHard":                map[string]string{"memory.available": "1Mi"},
		"clusterDNS":                  []string{"10.96.0.10"},
		"clusterDomain":               "cluster.local",
		"crashLoopBackOff":            map[string]any{"maxContainerRestartPeriod": "1s"},
		"featureGates":                gates,
	}
	maps.Copy(k.config, o.kubelet)
	k.config["featureGates"] = gates
	for _, dir := range []string{"manifests", "volume-plugins"} {
		k.WriteFile(k.path(dir, ".keep"), "")
	}
	k.saveConfig()
}

// openFiles is the limit that there is: to have another needs CAP_SYS_RESOURCE.
func openFiles(t testing.TB) uint64 {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		t.Fatal(err)
	}
	return l.Max
}

func (k *kubelet) saveConfig() {
	k.t.Helper()
	b, err := json.MarshalIndent(k.config, "", "  ")
	if err != nil {
		k.t.Fatal(err)
	}
	k.WriteFile(k.path("kubelet.json"), string(b))
}

// cgroupRoot is what all of kubelet's pods are below. With systemd kubelet takes it
// over as it is, controllers and all, which only the root's is.
func (k *kubelet) cgroupRoot() string {
	if k.Programs.CgroupDriver == "systemd" {
		return "/"
	}
	return k.Cgroup
}

// makeCgroup makes the cgroup that kubelet is told to live below: it does not itself.
func (k *kubelet) makeCgroup() {
	k.t.Helper()
	if k.cgroupRoot() == "/" {
		k.t.Cleanup(func() {
			if out, err := exec.Command("systemctl", "stop", "kubepods.slice").CombinedOutput(); err != nil {
				k.t.Errorf("systemctl stop kubepods.slice: %v: %s", err, out)
			}
		})
		return
	}
	roots, _ := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs") // version 1: one in each hierarchy
	roots = append(roots, "/sys/fs/cgroup/cgroup.procs")
	for _, r := range roots {
		if _, err := os.Stat(r); err != nil {
			continue
		}
		if err := os.MkdirAll(filepath.Join(filepath.Dir(r), k.Cgroup), 0o755); err != nil {
			k.t.Fatal(err)
		}
	}
}

// launch starts kubelet.
func (k *kubelet) launch() {
	k.t.Helper()
	log, err := os.OpenFile(k.path("kubelet.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		k.t.Fatal(err)
	}
	defer log.Close()
	k.cmd = exec.Command(*kubeletFlag, append([]string{
		"--config", k.path("kubelet.json"), "--root-dir", k.path("kubelet"),
		"--hostname-override", nodeName, "--node-ip", e2e.NodeAddress, "--v", "4",
	}, k.flags...)...)
	k.cmd.Stdout, k.cmd.Stderr = log, log
	k.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := k.cmd.Start(); err != nil {
		k.t.Fatal(err)
	}
	cmd, exited := k.cmd, make(chan struct{})
	k.exited = exited
	go func() {
		_ = cmd.Wait()
		close(exited)
	}()
}

// start starts kubelet and waits until it says that it is well.
func (k *kubelet) start() {
	k.t.Helper()
	k.launch()
	k.eventually("kubelet serves", func() error {
		select {
		case <-k.exited:
			k.t.Fatalf("kubelet ended before it served:\n%s", end(k.kubeletLog()))
		default:
		}
		_, err := get(server + "/healthz")
		return err
	})
}

// stop ends kubelet with a signal; its pods run on.
func (k *kubelet) stop(sig syscall.Signal) {
	if k.cmd == nil {
		return
	}
	_ = k.cmd.Process.Signal(sig)
	select {
	case <-k.exited:
	case <-time.After(time.Minute):
		k.t.Errorf("kubelet does not end on %v", sig)
		_ = k.cmd.Process.Kill()
		<-k.exited
	}
	k.cmd = nil
}

// close removes the pods by their manifests, as an operator would, ends kubelet,
// and fails the test for what kubelet has complained of.
func (k *kubelet) close() {
	if k.cmd == nil {
		k.start()
	}
	manifests, _ := filepath.Glob(k.path("manifests", "*.yaml"))
	for _, m := range manifests {
		if err := os.Remove(m); err != nil {
			k.t.Error(err)
		}
	}
	if k.api != nil {
		k.api.deletePods()
	}
	if err := k.poll(func() error {
		if err := k.gone(""); err != nil {
			return err
		}
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if strings.Contains(string(mounts), k.path("kubelet")+"/") {
			return errors.Join(err, errors.New("volumes are still mounted"))
		}
		return err
	}); err != nil {
		k.t.Errorf("kubelet does not end its pods: %v", err)
	}
	k.stop(syscall.SIGTERM)
	// The next kubelet would ask its own runtime for the containers that links here name.
	if err := os.RemoveAll("/var/log/containers"); err != nil {
		k.t.Error(err)
	}
	for _, line := range complaints(k.kubeletLog()) {
		k.t.Errorf("kubelet complains: %s", line)
	}
	if k.t.Failed() {
		k.t.Logf("kubelet's log ends:\n%s", end(k.kubeletLog()))
	}
}

func (k *kubelet) kubeletLog() string {
	b, _ := os.ReadFile(k.path("kubelet.log"))
	return string(b)
}

// patience is how long a test waits for what must come. Nothing is timed by it.
const patience = 90 * time.Second

// poll asks until ok returns nil or patience is at its end, and returns the last answer.
func (k *kubelet) poll(ok func() error) error {
	for end := time.Now().Add(patience); ; {
		err := ok()
		if err == nil || time.Now().After(end) {
			return err
		}
		time.Sleep(50 * time.Millisecond) //nolint:forbidigo // polls another process
	}
}

// eventually is poll that fails the test.
func (k *kubelet) eventually(what string, ok func() error) {
	k.t.Helper()
	if err := k.poll(ok); err != nil {
		k.t.Fatalf("not within %v: %s: %v\nkubelet's log ends:\n%s", patience, what, err, end(k.kubeletLog()))
	}
}

// end is the end of a long text, for failure messages.
func end(s string) string {
	const most = 8000
	return s[max(0, len(s)-most):]
}
