package kubelet

import (
	"os"

	corev1 "k8s.io/api/core/v1"
)

// testHooks lets a liveness probe end each container, so that its last state tells
// how it ended. Each writes its steps into a file of the node.
func (k *kubelet) testHooks() {
	k.run("hooks", `
		os: {name: linux}
		terminationGracePeriodSeconds: 60
		volumes: [{name: out, hostPath: {path: DIR/hooks, type: DirectoryOrCreate}}]
		containers:
		- name: exec
			image: IMAGE
			command: [sh, -c, "trap 'echo term >>/out/exec; exit 15' TERM; sleep 1000 & wait"]
			lifecycle:
				postStart: {exec: {command: [sh, -c, "echo postStart >>/out/exec"]}}
				preStop: {exec: {command: [sh, -c, "echo preStop >>/out/exec"]}}
			livenessProbe: &bad {exec: {command: [test, "!", -e, /tmp/bad]}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 30}
			volumeMounts: &out [{name: out, mountPath: /out}]
		- name: http
			image: IMAGE
			command:
			- sh
			- -c
			- |
				trap 'echo term >>/out/http; exit 15' TERM
				mkdir -p /www/cgi-bin
				printf '#!/bin/sh\necho $REQUEST_METHOD $HTTP_WHY >>/out/http\nprintf "Content-Type: text/plain\\r\\n\\r\\nbye"\n' >/www/cgi-bin/stop
				chmod 755 /www/cgi-bin/stop
				httpd -f -p 8081 -h /www & wait
			lifecycle:
				preStop: {httpGet: {path: /cgi-bin/stop, port: 8081, httpHeaders: [{name: Why, value: leaving}]}}
			startupProbe: {httpGet: {path: /index.html, port: 8081}, periodSeconds: 1, failureThreshold: 1000}
			livenessProbe: *bad
			volumeMounts: *out
		- name: sleep
			image: IMAGE
			command: [sh, -c, "trap 'echo term >>/out/sleep; echo sleep >>/out/order; exit 15' TERM; sleep 1000 & wait"]
			lifecycle:
				preStop: {sleep: {seconds: 3}}
			livenessProbe: *bad
			volumeMounts: *out
		- name: stubborn
			image: IMAGE
			command:
			- sh
			- -c
			- |
				trap 'echo term >>/out/stubborn; echo stubborn >>/out/order' TERM
				until [ -e /out/quit ]; do sleep 0.1; done
			livenessProbe: {<<: *bad, terminationGracePeriodSeconds: 2}
			volumeMounts: *out
		- name: signal
			image: IMAGE
			command: [sh, -c, "trap 'exit 7' USR1; trap 'exit 15' TERM; sleep 1000 & wait"]
			lifecycle: {stopSignal: SIGUSR1}
			livenessProbe: *bad
	`)
	p := k.await("hooks", "is ready", ready)
	if c := container(p, "signal"); c.StopSignal == nil || *c.StopSignal != corev1.SIGUSR1 {
		k.t.Errorf("the stop signal of container signal is %v", c.StopSignal)
	}
	for _, c := range p.Spec.Containers {
		k.exec("hooks", c.Name, "touch", "/tmp/bad")
	}
	for name, code := range map[string]int32{"exec": 15, "http": 15, "sleep": 15, "stubborn": 137, "signal": 7} {
		c := k.awaitContainer("hooks", name, "has been restarted", func(c *corev1.ContainerStatus) bool { return c.RestartCount > 0 && running(c) })
		k.checkEnd(name, c.LastTerminationState.Terminated, code)
	}
	k.awaitStep("hooks/exec", "postStart")
	k.wantSteps("hooks/exec", "postStart", "preStop", "term", "postStart")
	k.wantSteps("hooks/http", "GET", "leaving", "term")
	k.wantSteps("hooks/sleep", "term")
	k.wantSteps("hooks/stubborn", "term")

	// All containers of a removed pod are ended at once, but for what their hooks do.
	k.WriteFile(k.path("hooks", "order"), "")
	if err := os.Remove(k.manifest("hooks")); err != nil {
		k.t.Fatal(err)
	}
	k.awaitStep("hooks/order", "sleep")
	k.wantSteps("hooks/order", "stubborn", "sleep")
	k.WriteFile(k.path("hooks", "quit"), "")
}
