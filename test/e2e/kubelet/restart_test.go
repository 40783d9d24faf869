package kubelet

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// crashLooping reports whether kubelet lets a container wait before the next restart.
func crashLooping(c *corev1.ContainerStatus) bool {
	return c.State.Waiting != nil && c.State.Waiting.Reason == "CrashLoopBackOff"
}

func (k *kubelet) testAlways() {
	k.run("always", `
		volumes: [{name: out, hostPath: {path: DIR/always, type: DirectoryOrCreate}}]
		containers:
		- name: ends
			image: IMAGE
			command: ["true"]
		- name: dies
			image: IMAGE
			command: [sh, -c, "exit 3"]
		- name: crashes
			image: IMAGE
			command: [sh, -c, "sh -c 'kill -SEGV $$$$'; exit $?"]
		- name: stays
			image: IMAGE
			command: [sleep, "1000"]
		- name: once
			image: IMAGE
			restartPolicy: Never
			command: [sh, -c, "exit 42"]
		- name: by-rule
			image: IMAGE
			restartPolicy: Never
			restartPolicyRules:
			- action: Restart
				exitCodes: {operator: In, values: [42]}
			command: [sh, -c, "[ -e /out/tried ] && exit 6; touch /out/tried; exit 42"]
			volumeMounts: [{name: out, mountPath: /out}]
	`)
	for name, code := range map[string]int32{"ends": 0, "dies": 3, "crashes": 139} {
		c := k.awaitContainer("always", name, "waits after two restarts", func(c *corev1.ContainerStatus) bool {
			return c.RestartCount >= 2 && crashLooping(c)
		})
		if m := c.State.Waiting.Message; !strings.HasPrefix(m, "back-off 1s restarting failed container="+name) {
			k.t.Errorf("container %s waits with the message %q", name, m)
		}
		k.checkEnd(name, c.LastTerminationState.Terminated, code)
	}
	p := k.await("always", "has run the rule", func(p *corev1.Pod) bool {
		c := container(p, "by-rule")
		return c.RestartCount == 1 && c.State.Terminated != nil
	})
	k.checkEnd("by-rule", container(p, "by-rule").State.Terminated, 6)
	once := container(p, "once")
	k.checkEnd("once", once.State.Terminated, 42)
	if stays := container(p, "stays"); once.RestartCount != 0 || stays.RestartCount != 0 || !running(stays) {
		k.t.Errorf("containers have been restarted with another: %v, %v", once, stays)
	}
	// kubelet keeps one dead instance of each, beside the last.
	k.eventually("older instances are gone", func() error {
		r, err := k.Runtime.ListContainers(k.Ctx(), &cri.ListContainersRequest{Filter: &cri.ContainerFilter{
			LabelSelector: map[string]string{"io.kubernetes.pod.uid": string(p.UID), "io.kubernetes.container.name": "dies"},
		}})
		if err == nil && len(r.Containers) > 2 {
			err = fmt.Errorf("%d instances", len(r.Containers))
		}
		return err
	})
	k.remove("always")
}

// checkEnd looks at all that is said of an end.
func (k *kubelet) checkEnd(name string, e *corev1.ContainerStateTerminated, code int32) {
	k.t.Helper()
	reason := "Error"
	if code == 0 {
		reason = "Completed"
	}
	if e == nil || e.ExitCode != code || e.Reason != reason || !strings.HasPrefix(e.ContainerID, "crid://") ||
		e.StartedAt.IsZero() || e.FinishedAt.Before(&e.StartedAt) {
		k.t.Errorf("container %s ended with %v, want exit code %d, reason %s, times and an ID", name, e, code, reason)
	}
}

func (k *kubelet) testOnFailure() {
	k.run("on-failure", `
		restartPolicy: OnFailure
		volumes: [{name: out, hostPath: {path: DIR/on-failure, type: DirectoryOrCreate}}]
		containers:
		- name: good
			image: IMAGE
			command: ["true"]
		- name: flaky
			image: IMAGE
			command: [sh, -c, "echo tried >>/out/steps; [ $(wc -l </out/steps) -ge 3 ] || exit 3"]
			volumeMounts: [{name: out, mountPath: /out}]
	`)
	p := k.await("on-failure", "has succeeded", succeeded)
	good, flaky := container(p, "good"), container(p, "flaky")
	if good.RestartCount != 0 || flaky.RestartCount != 2 {
		k.t.Errorf("restarts: good %d, flaky %d; want 0 and 2", good.RestartCount, flaky.RestartCount)
	}
	k.checkEnd("good", good.State.Terminated, 0)
	k.checkEnd("flaky", flaky.State.Terminated, 0)
	k.checkEnd("flaky before", flaky.LastTerminationState.Terminated, 3)
	k.wantSteps("on-failure/steps", "tried", "tried", "tried")
}

// testNever also shows the termination messages that are short: kubelet gives each
// container of a pod a share of 12 KiB.
func (k *kubelet) testNever() {
	k.run("never", `
		restartPolicy: Never
		containers:
		- name: bad
			image: IMAGE
			command: [sh, -c, "echo -n told >/dev/termination-log; exit 3"]
		- name: good
			image: IMAGE
			command: [sh, -c, "echo -n done >/tmp/why; echo not a message"]
			terminationMessagePath: /tmp/why
			terminationMessagePolicy: FallbackToLogsOnError
		- name: quiet
			image: IMAGE
			command: [echo, not a message]
			terminationMessagePolicy: FallbackToLogsOnError
		- name: logs
			image: IMAGE
			command: [sh, -c, "echo from the log; exit 1"]
			terminationMessagePolicy: FallbackToLogsOnError
		- name: confined
			image: IMAGE
			command: [sh, -c, "echo -n allowed >/dev/termination-log"]
			securityContext: {runAsUser: 33, runAsGroup: 33, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
	`)
	p := k.await("never", "has failed", failed)
	for _, want := range []struct {
		name    string
		code    int32
		message string
	}{{"bad", 3, "told"}, {"good", 0, "done"}, {"quiet", 0, ""}, {"logs", 1, "from the log\n"}, {"confined", 0, "allowed"}} {
		c := container(p, want.name)
		k.checkEnd(want.name, c.State.Terminated, want.code)
		if c.RestartCount != 0 || c.State.Terminated.Message != want.message {
			k.t.Errorf("container %s: %d restarts, message %q; want none and %q", want.name, c.RestartCount, c.State.Terminated.Message, want.message)
		}
	}
}

func (k *kubelet) testLongMessages() {
	k.run("long-messages", `
		restartPolicy: Never
		containers:
		- name: file
			image: IMAGE
			command: [sh, -c, "seq 10000 >/dev/termination-log; exit 1"]
		- name: line
			image: IMAGE
			command: [sh, -c, "seq 10000 | tr '\\n' ' '; exit 1"]
			terminationMessagePolicy: FallbackToLogsOnError
		- name: lines
			image: IMAGE
			command: [sh, -c, "seq 200; exit 1"]
			terminationMessagePolicy: FallbackToLogsOnError
	`)
	var lines, all strings.Builder
	for i := range 10000 {
		fmt.Fprintln(&all, i+1)
		if i >= 120 && i < 200 {
			fmt.Fprintln(&lines, i+1)
		}
	}
	file, line := all.String(), strings.ReplaceAll(all.String(), "\n", " ")
	p := k.await("long-messages", "has failed", failed)
	for name, want := range map[string]string{"file": file[len(file)-4096:], "line": line[len(line)-2048:], "lines": lines.String()} {
		if got := container(p, name).State.Terminated.Message; got != want {
			k.t.Errorf("container %s: message of %d bytes %.40q…, want %d bytes %.40q…", name, len(got), got, len(want), want)
		}
	}
}
