package kubelet

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/remotecommand"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/test/e2e"
)

// client speaks to kubelet, whose certificate is its own.
var client = &http.Client{
	Timeout:   30 * time.Second,
	Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}, //nolint:gosec // a kubelet of this test
}

const server = "https://127.0.0.1:" + port

// get is the body of an answer of kubelet's or of a pod's.
func get(url string) (string, error) { return getBy(client, url) }

func getBy(c *http.Client, url string) (string, error) {
	r, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s: %s", url, r.Status, b)
	}
	return string(b), err
}

// getJSON decodes an answer of kubelet's.
func getJSON(path string, into any) error {
	body, err := get(server + path)
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(body), into)
}

// pods are those that kubelet knows, with their statuses.
func (k *kubelet) pods() ([]corev1.Pod, error) {
	// Subtests that wait at the same time share what one of them has asked for.
	list, err, _ := k.asked.Do("pods", func() (any, error) {
		var list corev1.PodList
		err := getJSON("/pods", &list)
		return list.Items, err
	})
	pods, _ := list.([]corev1.Pod)
	return pods, err
}

// pod is one of them, by the name in its manifest.
func (k *kubelet) pod(name string) (*corev1.Pod, error) {
	pods, err := k.pods()
	for i := range pods {
		if pods[i].Name == name+"-"+nodeName {
			return &pods[i], nil
		}
	}
	return nil, errors.Join(err, fmt.Errorf("kubelet knows no pod %s", name))
}

// run gives kubelet the manifest of a pod: spec is YAML, in which DIR stands for
// the node's folder and IMAGE for busybox's name. Its grace period is a second
// unless it says another: busybox's sleep is deaf to SIGTERM as the first process.
func (k *kubelet) run(name, spec string) {
	k.t.Helper()
	k.runWith(name, "", spec)
}

// runWith is run with YAML for the pod's metadata, beside its name and namespace.
func (k *kubelet) runWith(name, metadata, spec string) {
	k.t.Helper()
	if !strings.Contains(spec, "terminationGracePeriodSeconds:") {
		spec = strings.TrimRight(spec, "\n\t ") + "\nterminationGracePeriodSeconds: 1"
	}
	text := fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata:\n  name: %s\n  namespace: %s\n%sspec:\n%s",
		name, namespace, k.yaml(metadata), k.yaml(spec))
	// Renamed, so that kubelet never reads half of it. The pods of one kubelet are started at once.
	draft := k.path(name + ".yaml")
	k.WriteFile(draft, text)
	if err := os.Rename(draft, k.manifest(name)); err != nil {
		k.t.Fatal(err)
	}
}

// yaml is a block of a manifest from a test's text, which is indented by tabs like its code.
func (k *kubelet) yaml(spec string) string {
	if spec == "" {
		return ""
	}
	spec = strings.NewReplacer("DIR", k.Dir, "IMAGE", e2e.BusyboxRef).Replace(strings.TrimRight(strings.TrimLeft(spec, "\n"), "\n\t "))
	lines := strings.Split(strings.ReplaceAll(spec, "\t", "  "), "\n")
	// The indentation of the first line is the text's, not the manifest's.
	indent := lines[0][:len(lines[0])-len(strings.TrimLeft(lines[0], " "))]
	for i, l := range lines {
		lines[i] = "  " + strings.TrimPrefix(l, indent)
	}
	return strings.Join(lines, "\n") + "\n"
}

func (k *kubelet) manifest(name string) string { return k.path("manifests", name+".yaml") }

// remove takes a pod's manifest away and waits until kubelet has ended the pod.
func (k *kubelet) remove(name string) {
	k.t.Helper()
	if err := os.Remove(k.manifest(name)); err != nil {
		k.t.Fatal(err)
	}
	k.eventually("pod "+name+" is gone", func() error { return k.gone(name + "-" + nodeName) })
}

// gone is an error while a pod of that name runs, any pod if it is empty. What kubelet
// leaves of an ended pod for a minute, its stopped sandbox, is none.
func (k *kubelet) gone(name string) error {
	pods, err := k.pods()
	for _, p := range pods {
		if name == "" || p.Name == name {
			return fmt.Errorf("%s is %s", p.Name, p.Status.Phase)
		}
	}
	if err != nil {
		return err
	}
	r, err := k.Runtime.ListPodSandbox(k.Ctx(), &cri.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	for _, s := range r.Items {
		if s.State == cri.PodSandboxState_SANDBOX_READY && (name == "" || s.Metadata.Name == name) {
			return fmt.Errorf("the sandbox of %s is ready", s.Metadata.Name)
		}
	}
	return nil
}

// await waits until ok holds for the pod and returns it.
func (k *kubelet) await(name, what string, ok func(*corev1.Pod) bool) *corev1.Pod {
	k.t.Helper()
	var last *corev1.Pod
	k.eventually("pod "+name+" "+what, func() error {
		p, err := k.pod(name)
		if err != nil {
			return err
		}
		last = p
		if !ok(p) {
			b, _ := json.Marshal(p.Status)
			return fmt.Errorf("its status is %s", b)
		}
		return nil
	})
	return last
}

// ready reports whether the pod's condition Ready is true.
func ready(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// succeeded and failed are phases; a pod that is either has no running container.
func succeeded(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded }
func failed(p *corev1.Pod) bool    { return p.Status.Phase == corev1.PodFailed }

// container is the status of one container, of any kind; nil while there is none.
func container(p *corev1.Pod, name string) *corev1.ContainerStatus {
	for _, list := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

// logs is a container's log, from kubelet.
func (k *kubelet) logs(name, container string) string {
	k.t.Helper()
	body, err := get(logURL(name, container))
	if err != nil {
		k.t.Fatal(err)
	}
	return body
}

// logURL is that of a container's log, with pairs of parameters.
func logURL(pod, container string, params ...string) string {
	q := url.Values{}
	for i := 0; i < len(params); i += 2 {
		q.Set(params[i], params[i+1])
	}
	return podURL("containerLogs", pod, container, q)
}

// podURL is that of a log, exec, attachment or port-forward at kubelet.
func podURL(kind, name, container string, query url.Values) string {
	path := fmt.Sprintf("/%s/%s/%s-%s", kind, namespace, name, nodeName)
	if container != "" {
		path += "/" + container
	}
	return server + path + "?" + query.Encode()
}

// stream runs an exec or an attachment with the streams that o has.
func (k *kubelet) stream(transport, kind, pod, name string, o remotecommand.StreamOptions, args ...string) error {
	q := url.Values{"command": args}
	for param, wanted := range map[string]bool{"input": o.Stdin != nil, "output": o.Stdout != nil, "error": o.Stderr != nil, "tty": o.Tty} {
		if wanted {
			q.Set(param, "1")
		}
	}
	return e2e.Executor(k.t, transport, podURL(kind, pod, name, q)).StreamWithContext(k.Ctx(), o)
}

// exec runs a command by kubelet's port; anything but exit code 0 fails the test.
func (k *kubelet) exec(name, container string, args ...string) string {
	k.t.Helper()
	var stdout, stderr e2e.Buffer
	o := remotecommand.StreamOptions{Stdout: &stdout, Stderr: &stderr}
	if err := k.stream("WebSocket", "exec", name, container, o, args...); err != nil {
		k.t.Fatalf("exec of %q in %s: %v; stdout %q, stderr %q", args, name, err, stdout.String(), stderr.String())
	}
	return stdout.String()
}
