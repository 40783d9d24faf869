package kubelet

import corev1 "k8s.io/api/core/v1"

// testSidecars takes a pod from its first init container to its end. Each container
// writes its steps into a file of the node; some wait until the test lets them go.
func (k *kubelet) testSidecars() {
	k.run("sidecars", `
		restartPolicy: OnFailure
		volumes: [{name: out, hostPath: {path: DIR/sidecars, type: DirectoryOrCreate}}]
		initContainers:
		- name: first
			image: IMAGE
			command: [sh, -c, "echo first >>/out/steps"]
			volumeMounts: [{name: out, mountPath: /out}]
		- name: side
			image: IMAGE
			restartPolicy: Always
			startupProbe: {exec: {command: [test, -e, /tmp/up]}, periodSeconds: 1, timeoutSeconds: 30, failureThreshold: 1000}
			command:
			- sh
			- -c
			- |
				trap 'echo side-ends >>/out/steps; exit 0' TERM
				echo side >>/out/steps
				until [ -e /out/die ]; do sleep 0.1; done
				rm /out/die
				echo side-dies >>/out/steps
				exit 5
			volumeMounts: [{name: out, mountPath: /out}]
		- name: second
			image: IMAGE
			command:
			- sh
			- -c
			- |
				[ -e /out/tried ] && exec sh -c 'echo second >>/out/steps'
				touch /out/tried
				echo second-fails >>/out/steps
				exit 4
			volumeMounts: [{name: out, mountPath: /out}]
		- name: late
			image: IMAGE
			restartPolicy: Always
			command:
			- sh
			- -c
			- |
				trap 'echo late-ends >>/out/steps; exit 0' TERM
				echo late >>/out/steps
				touch /out/late-is-up
				sleep 1000 & wait
			volumeMounts: [{name: out, mountPath: /out}]
		containers:
		- name: main
			image: IMAGE
			command:
			- sh
			- -c
			- |
				until [ -e /out/late-is-up ]; do sleep 0.1; done
				echo main >>/out/steps
				until [ -e /out/go ]; do sleep 0.1; done
				echo main-ends >>/out/steps
			volumeMounts: [{name: out, mountPath: /out}]
	`)
	// Until its startup probe succeeds, a sidecar holds up what follows.
	side := k.awaitContainer("sidecars", "side", "runs", running)
	if started(side) {
		k.t.Errorf("the sidecar is started before its startup probe has succeeded: %v", side)
	}
	k.awaitStep("sidecars/steps", "side")
	p := k.await("sidecars", "is initializing", func(p *corev1.Pod) bool { return container(p, "second") != nil })
	for _, name := range []string{"second", "main"} {
		if c := container(p, name); c.State.Waiting == nil || c.State.Waiting.Reason != "PodInitializing" {
			k.t.Errorf("container %s does not wait for the sidecar: %v", name, c.State)
		}
	}
	k.wantSteps("sidecars/steps", "first", "side")

	k.exec("sidecars", "side", "touch", "/tmp/up")
	main := k.awaitContainer("sidecars", "main", "runs", running)
	k.awaitStep("sidecars/steps", "main")
	k.wantSteps("sidecars/steps", "first", "side", "second-fails", "second", "late", "main")
	p = k.await("sidecars", "runs", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
	if c := container(p, "second"); c.RestartCount != 1 || c.State.Terminated == nil || c.State.Terminated.ExitCode != 0 {
		k.t.Errorf("the second init container did not fail once and then succeed: %v", c)
	}

	// A sidecar that dies is restarted; nobody else is.
	k.WriteFile(k.path("sidecars", "die"), "")
	side = k.awaitContainer("sidecars", "side", "has been restarted", restarted(1))
	if last := side.LastTerminationState.Terminated; last == nil || last.ExitCode != 5 {
		k.t.Errorf("the sidecar's last state is %v, want exit code 5", side.LastTerminationState)
	}
	k.exec("sidecars", "side", "touch", "/tmp/up")

	k.WriteFile(k.path("sidecars", "go"), "")
	p = k.await("sidecars", "has succeeded", succeeded)
	if c := container(p, "main"); c.RestartCount != 0 || c.ContainerID != main.ContainerID {
		k.t.Errorf("main was restarted with the sidecar: %v", c)
	}
	for _, name := range []string{"side", "late"} {
		if c := container(p, name); c.State.Terminated == nil || c.State.Terminated.ExitCode != 0 {
			k.t.Errorf("sidecar %s has not ended on TERM: %v", name, c.State)
		}
	}
	k.wantSteps("sidecars/steps", "first", "side", "second-fails", "second", "late", "main", "side-dies", "side", "main-ends", "late-ends", "side-ends")
}

func (k *kubelet) testInitFails() {
	k.run("init-fails", `
		restartPolicy: Never
		initContainers:
		- name: fails
			image: IMAGE
			command: [sh, -c, "echo no database; exit 9"]
			terminationMessagePolicy: FallbackToLogsOnError
		containers:
		- name: main
			image: IMAGE
	`)
	p := k.await("init-fails", "has failed", failed)
	c := container(p, "fails")
	if end := c.State.Terminated; end == nil || end.ExitCode != 9 || end.Reason != "Error" || end.Message != "no database\n" || c.RestartCount != 0 {
		k.t.Errorf("the init container's status is %v", c)
	}
	if c := container(p, "main"); c.State.Waiting == nil || c.ContainerID != "" {
		k.t.Errorf("main was started after a failed init container: %v", c)
	}
	if got := k.logs("init-fails", "fails"); got != "no database\n" {
		k.t.Errorf("the init container's log is %q", got)
	}
}
