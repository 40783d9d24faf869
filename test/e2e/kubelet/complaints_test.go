package kubelet

import (
	"regexp"
	"strings"
)

// complaint is a line of kubelet's log that is an error or a warning.
var complaint = regexp.MustCompile(`^[EW]\d{4} `)

// expected are complaints that have nothing to do with crid, with the reason.
var expected = []struct {
	line *regexp.Regexp
	why  string
}{
	{regexp.MustCompile(`csi_plugin\.go.*standalone kubelet`), "there is no API server"},
	{regexp.MustCompile(`csi_plugin\.go.*running in standalone mode`), "there is no API server"},
	{regexp.MustCompile(`invalid capacity 0 on image filesystem`), "asked before kubelet's own cAdvisor has looked at the disks; at each start, with any runtime"},
	{regexp.MustCompile(`Skipping pod synchronization.*may not have completed yet`), "at each start, before kubelet has asked the runtime"},
	{regexp.MustCompile(`"Skipping pod synchronization" err="PLEG is not healthy: pleg has yet to be successful"`), "at a slow start, before kubelet has listed the pods for the first time"},
	{regexp.MustCompile(`checkpoint is not found`), "the first start of a device manager"},
	{regexp.MustCompile(`no imagefs label for configured runtime`), "kubelet knows such a label for CRI-O alone"},
	{regexp.MustCompile(`conn\.go.*Error on socket receive.*use of closed network connection`), "kubelet ends a WebSocket of its own"},
	{regexp.MustCompile(`kubelet_network_linux\.go.*Failed to ensure that iptables hint chain exists`), "a mark for kube-proxy, on a kernel without that table"},
	{regexp.MustCompile(`cgroup_manager_linux\.go.*kubepods\.slice/cpuset\.cpus: no such file`), "kubelet's own cgroup, before systemd gives it the controller"},
	{regexp.MustCompile(`code = Canceled desc = context canceled`), "a call that kubelet itself gives up: it ends, or the pod does, or who follows a log has gone"},
	{regexp.MustCompile(`kubelet\.go.*Housekeeping took longer than expected`), "on a machine that has other things to do"},
	{regexp.MustCompile(`Failed to ensure process in container with oom score.*pid namespace of init process`), "of itself; on machines that hide init"},
	{regexp.MustCompile(`upgradeaware\.go.*Error proxying data from .*: (unexpected EOF|(read|write) tcp 127\.0\.0\.1:10250->)`), "the test's client has hung up"},
	{regexp.MustCompile(`\b(container|fsHandler|handler|helpers|manager|oomparser|watcher)\.go:\d+\] [^"]`), "cAdvisor, whose lines alone have no quotes: it reads the machine's cgroups, of other tests too, and its log, and loses those that go meanwhile"},
	{regexp.MustCompile(`kubelet_nodecache\.go.*failed to check if node is newer.*parsing \\"\\"`), "without an API server a node has no resource version"},
	{regexp.MustCompile(`/crid\.sock: (connect: connection refused|connect: no such file or directory|read: connection reset by peer)`), "the test has ended crid"},
	{regexp.MustCompile(`failed to receive streaming container event.*code = Unavailable desc = crid is ending`), "the test has ended crid"},
	{regexp.MustCompile(`ExecSync cmd from runtime service failed.*code = Unavailable desc = exec in container \w+: exec: crid-monitor: the connection was lost`), "the test has killed the monitor during the call"},
	{regexp.MustCompile(`code = Unavailable desc = error reading from server: (EOF|read unix @->\S*/crid\.sock: )`), "the test has ended crid during the call"},
	{regexp.MustCompile(`unable to find data in memory cache|failed to get container info for \\"/[^"]*\\": unknown container`), "a test asks before kubelet's own cAdvisor has looked at the machine"},
	{regexp.MustCompile(`eviction_manager\.go.*thresholds have been met, but no pods are active to evict`), "at kubelet's start, before it has read the pods' files"},
	{regexp.MustCompile(`Image garbage collection failed once.*\(freed 0 bytes\)`), "of a start that is made again: see collectsAtStart"},
	{regexp.MustCompile(`eviction_manager\.go.*cannot evict a critical pod`), "pods of files are critical"},
	{regexp.MustCompile(`Evented PLEG: received ContainerEventResponse with nil PodSandboxStatus`), "a sandbox that is gone has no status, as with other runtimes"},
	{regexp.MustCompile(`err="((failed to get node info|error getting node \\"node\\"): )?node \\"node\\" not found"`), "until kubelet has registered its node with the API server and read it there"},
	{regexp.MustCompile(`nodelease\.go.*Failed to get node when trying to set owner ref to the node lease`), "until kubelet has registered its node with the API server"},
	{regexp.MustCompile(`ailed to initialize CSINode: .*\(get nodes node\)|CSINode is not yet initialized`), "until kubelet has registered its node with the API server, and tried again"},
	{regexp.MustCompile(`Failed creating a mirror pod" err="the server reported a conflict \(post pods\)"`), "kubelet makes it once more before it has read that it is there"},
	{regexp.MustCompile(`kubelet_pods\.go.*"failed to read memory cgroup (config|limits) for the pod".*no such file or directory`), "kubelet has removed the cgroup of a pod that has ended"},
	// Pods that a test has refused, by their names.
	{regexp.MustCompile(`kubelet_pods\.go.*Failed to prepare subPath for volumeMount of the container" containerName="refused"`), "the sub-path leads out of its volume"},
	{regexp.MustCompile(`(PullImage from image service failed|Failed to pull image)".* image="registry\.k8s\.io/e2e/absent:1"`), "an image that no registry has"},
	{regexp.MustCompile(`Failed to ensure image".* pod="default/refused-`), "an image that no registry has"},
	{regexp.MustCompile(`CreateContainer in sandbox from runtime service failed.* sub path \\"sub/absent\\" of the image`), "a sub-path that the image has not got"},
	{regexp.MustCompile(`kuberuntime_manager\.go.*Unhandled Error.* in pod refused-`), "so that people see the refusal"},
	{regexp.MustCompile(`pod_workers\.go.*Error syncing pod, skipping.* pod="default/refused-`), "so that people see the refusal"},
	{regexp.MustCompile(`Missing actuated pod level resource record" pod="refused-`), "kubelet has one when a container of the pod was made"},
	{regexp.MustCompile(`pod_workers\.go.*"Error syncing pod, skipping".*CrashLoopBackOff.*pod="default/(always|on-failure|sidecars|shared-pid|liveness|hooks|restarts)-node"`), "containers of these pods are made to end"},
	{regexp.MustCompile(`remote_runtime\.go.*"ExecSync cmd.*code = DeadlineExceeded desc = .*: it has not exited after \ds and was killed".*sleep 2000`), "this probe is made to take too long"},
	{regexp.MustCompile(`remote_runtime\.go.*"ExecSync cmd.*code = FailedPrecondition desc = exec in container \w+: .*(ended before the command was started|is exited, ).*cmd=\["test",`), "a probe comes as its container ends; kubelet stops it later"},
	{regexp.MustCompile(`(logging\.go.*grpc: addrConn\.createTransport|grpc\.go.*failed to connect grpc service due to timeout).*:8083"`), "a gRPC probe comes before the test's server listens, or after it has ended"},
	{regexp.MustCompile(`(remote_image|kuberuntime_image)\.go.*(here\.test/e2e/unknown|down\.test/e2e/any|refused\.test/e2e/busybox):1`), "there is no such image, and no such registry; the policy refuses the third"},
	{regexp.MustCompile(`remote_runtime\.go.*"StartContainer.*exec: \\"(none|/bin/none|/etc/passwd)\\"`), "there is no such program"},
	{regexp.MustCompile(`remote_runtime\.go.*"CreateContainer.*seccomp\.localhost_ref: no such file: \S*/none\.json`), "there is no such profile"},
	{regexp.MustCompile(`kuberuntime_container\.go.*"Failed to execute PostStartHook".*no luck`), "this hook is made to fail"},
}

// removed is a complaint that a container is not there.
var removed = regexp.MustCompile(`code = NotFound desc = no container \\?"([0-9a-f]{64})`)

// complaints are the errors and warnings of kubelet's log that are not expected.
func complaints(log string) []string {
	var found []string
lines:
	for line := range strings.Lines(log) {
		if !complaint.MatchString(line) {
			continue
		}
		for _, e := range expected {
			if e.line.MatchString(line) {
				continue lines
			}
		}
		// kubelet's collector of containers works beside that of images, and beside its
		// pods, which then ask for what it has just removed.
		if m := removed.FindStringSubmatch(line); m != nil && strings.Contains(log, `"Removing container" containerID="`+m[1]) {
			continue
		}
		found = append(found, strings.TrimSpace(line))
	}
	return found
}
