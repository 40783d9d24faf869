package kubelet

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/cridproject/crid/test/e2e"
)

// signaturePolicy refuses the images of one registry.
const signaturePolicy = `{"default": [{"type": "insecureAcceptAnything"}], "transports": {"docker": {"refused.test": [{"type": "reject"}]}}}`

// testRefused runs containers that cannot run, and reads what a user does: the
// reason and the message of each one's state.
func (k *kubelet) testRefused() {
	// Registries that are known to nobody else: of the machine itself, and at a port where nobody listens.
	for host, address := range map[string]string{"here.test": k.Registry.Addr, "refused.test": k.Registry.Addr, "down.test": "127.0.0.1:1"} {
		k.WriteFile(k.path("certs.d", host, "hosts.toml"), fmt.Sprintf("server = %q\n", "http://"+address))
	}
	k.Registry.Push("e2e/named-user:1", e2e.Image(k.t, v1.Config{User: "www", Cmd: []string{"sleep", "1000"}}, e2e.BusyboxLayer(k.t)))
	k.run("refused", `
		containers:
		- name: unknown
			image: here.test/e2e/unknown:1
		- name: registry-down
			image: down.test/e2e/any:1
		- name: not-signed
			image: refused.test/e2e/busybox:1
		- name: never
			image: registry.k8s.io/e2e/never:1
			imagePullPolicy: Never
		- name: bad-name
			image: "registry.k8s.io/UPPER/case:1"
		- name: root
			image: IMAGE
			securityContext: {runAsNonRoot: true}
		- name: named-user
			image: registry.k8s.io/e2e/named-user:1
			securityContext: {runAsNonRoot: true}
		- name: no-command
			image: IMAGE
			command: [/bin/none, --serve]
		- name: not-in-path
			image: IMAGE
			command: [none]
		- name: not-executable
			image: IMAGE
			command: [/etc/passwd]
		- name: no-profile
			image: IMAGE
			securityContext: {seccompProfile: {type: Localhost, localhostProfile: none.json}}
		- name: hook
			image: IMAGE
			command: [sleep, "1000"]
			lifecycle: {postStart: {exec: {command: [sh, -c, "echo no luck; exit 8"]}}}
	`)
	k.refused("refused",
		waits{"unknown", "ErrImagePull", []string{"image here.test/e2e/unknown:1", "404"}},
		waits{"unknown", "ImagePullBackOff", []string{"here.test/e2e/unknown:1", "404"}},
		waits{"registry-down", "RegistryUnavailable", []string{"down.test/e2e/any:1", "the registry is unavailable: ", "127.0.0.1:1"}},
		waits{"not-signed", "SignatureValidationFailed", []string{"refused.test/e2e/busybox:1", "signature policy", "reject"}},
		waits{"never", "ErrImageNeverPull", []string{"registry.k8s.io/e2e/never:1"}},
		waits{"bad-name", "InvalidImageName", []string{"registry.k8s.io/UPPER/case:1"}},
		waits{"root", "CreateContainerConfigError", []string{"image will run as root"}},
		waits{"named-user", "CreateContainerConfigError", []string{"non-numeric user (www)"}},
		waits{"no-command", "RunContainerError", []string{`exec: "/bin/none": stat /bin/none: no such file or directory; the image has no such program`}},
		waits{"not-in-path", "RunContainerError", []string{`exec: "none": executable file not found in $PATH; the image has no such program`}},
		waits{"not-executable", "RunContainerError", []string{`exec: "/etc/passwd": permission denied; the container's user may not execute it`}},
		waits{"no-profile", "CreateContainerError", []string{"seccomp.localhost_ref: no such file", k.path("kubelet", "seccomp", "none.json")}},
		waits{"hook", "PostStartHookError", []string{"exited with 8", "no luck"}},
	)
	// What crid has said stays in the status when kubelet tries again.
	c := k.awaitContainer("refused", "no-command", "has a last state", func(c *corev1.ContainerStatus) bool { return c.LastTerminationState.Terminated != nil })
	if last := c.LastTerminationState.Terminated; last == nil || last.Reason != "StartError" || last.ExitCode != 128 || !strings.Contains(last.Message, "/bin/none") {
		k.t.Errorf("the last state of a container without a program is %v", last)
	}
	k.wantEvent(`Error: start container ` + strings.TrimPrefix(c.LastTerminationState.Terminated.ContainerID, "crid://")[:13] + `: exec: \"/bin/none\": stat`)
	k.remove("refused")
}

// waits is the state of a container that cannot run.
type waits struct {
	container, reason string   // with | between several reasons, one of which it has
	message           []string // parts of it
}

// refused awaits that containers of a pod wait so. Some reasons come and go with each
// of kubelet's tries.
func (k *kubelet) refused(pod string, missing ...waits) {
	k.t.Helper()
	k.await(pod, "has shown all reasons", func(p *corev1.Pod) bool {
		missing = slices.DeleteFunc(missing, func(w waits) bool { return w.seen(k.t, container(p, w.container)) })
		return len(missing) == 0
	})
}

// seen reports whether c waits for the reason, and checks the message that comes with it.
func (w waits) seen(t testing.TB, c *corev1.ContainerStatus) bool {
	if c == nil || c.State.Waiting == nil || !slices.Contains(strings.Split(w.reason, "|"), c.State.Waiting.Reason) {
		return false
	}
	for _, part := range w.message {
		if !strings.Contains(c.State.Waiting.Message, part) {
			t.Errorf("container %s waits for %s with %q, which does not say %q", w.container, w.reason, c.State.Waiting.Message, part)
		}
	}
	return true
}
