package kubelet

import (
	"fmt"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
)

// serveHealth answers gRPC probes at a port of a pod's network namespace, for the service "web".
func (k *kubelet) serveHealth(pod, port string) *health.Server {
	k.t.Helper()
	p := k.await(pod, "has an address", func(p *corev1.Pod) bool { return p.Status.PodIP != "" })
	ids := k.sandboxes(string(p.UID))
	if len(ids) != 1 {
		k.t.Fatalf("pod %s has the sandboxes %v", pod, ids)
	}
	l := k.ListenInPod(ids[0], ":"+port)
	h, s := health.NewServer(), grpc.NewServer()
	h.SetServingStatus("web", notServing)
	grpc_health_v1.RegisterHealthServer(s, h)
	go func() { _ = s.Serve(l) }()
	k.t.Cleanup(s.Stop)
	return h
}

const (
	serving    = grpc_health_v1.HealthCheckResponse_SERVING
	notServing = grpc_health_v1.HealthCheckResponse_NOT_SERVING
)

// testReadiness turns containers ready, not ready, and ready again; no probe restarts one.
func (k *kubelet) testReadiness() {
	k.run("readiness", `
		containers:
		- name: exec
			image: IMAGE
			command: [sleep, "1000"]
			readinessProbe: {exec: {command: [test, -e, /tmp/ready]}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 30}
		- name: slow
			image: IMAGE
			command: [sleep, "1000"]
			readinessProbe: {exec: {command: [sh, -c, "[ -e /tmp/ready ] || sleep 2000"]}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 1}
		- name: http
			image: IMAGE
			command: [httpd, -f, -p, "8081", -h, /tmp]
			ports: [{name: page, containerPort: 8081}]
			readinessProbe: {httpGet: {path: /ready, port: page, httpHeaders: [{name: Host, value: example.org}]}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 30}
		- name: tcp
			image: IMAGE
			command:
			- sh
			- -c
			- |
				while sleep 0.1; do
					[ ! -e /tmp/ready ] || httpd -f -p 8082
				done
			readinessProbe: {tcpSocket: {port: 8082}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 30}
		- name: grpc
			image: IMAGE
			command: [sleep, "1000"]
			readinessProbe: {grpc: {port: 8083, service: web}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 30}
	`)
	k.await("readiness", "runs, not ready", func(p *corev1.Pod) bool { return allRunning(p) && !ready(p) })
	h := k.serveHealth("readiness", "8083")
	files := []string{"exec", "slow", "http", "tcp"}
	on := func() {
		for _, c := range files {
			k.exec("readiness", c, "touch", "/tmp/ready")
		}
		h.SetServingStatus("web", serving)
		k.await("readiness", "is ready", ready)
	}
	on()
	for _, c := range files {
		k.exec("readiness", c, "rm", "/tmp/ready")
	}
	// A child that has just served a probe is gone before it can be killed.
	k.exec("readiness", "tcp", "sh", "-c", "killall httpd || true")
	h.SetServingStatus("web", notServing)
	k.await("readiness", "has no ready container", func(p *corev1.Pod) bool {
		for _, c := range p.Status.ContainerStatuses {
			if c.Ready {
				return false
			}
		}
		return !ready(p)
	})
	on()
	// The command of a probe that took too long has been killed.
	k.eventually("no probe's command is left", func() error {
		if ps := k.exec("readiness", "slow", "ps"); strings.Contains(ps, "2000") {
			return fmt.Errorf("ps says %s", ps)
		}
		return nil
	})
	p := k.await("readiness", "is ready", ready)
	for _, c := range p.Status.ContainerStatuses {
		if c.RestartCount != 0 {
			k.t.Errorf("container %s was restarted: %v", c.Name, c.LastTerminationState)
		}
	}
	k.wantEvent(`Readiness probe failed: command timed out: \"sh -c [ -e /tmp/ready ] || sleep 2000\" timed out after 1s`)
	k.remove("readiness")
}

// testLiveness lets liveness probes fail; what a container says at TERM is its exit code.
func (k *kubelet) testLiveness() {
	k.run("liveness", `
		terminationGracePeriodSeconds: 30
		containers:
		- name: exec
			image: IMAGE
			command: [sh, -c, "trap 'exit 15' TERM; sleep 1000 & wait"]
			livenessProbe: {exec: {command: [test, "!", -e, /tmp/bad]}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 30}
		- name: slow
			image: IMAGE
			command: [sh, -c, "trap 'exit 15' TERM; sleep 1000 & wait"]
			livenessProbe: {exec: {command: [sh, -c, "[ ! -e /tmp/bad ] || sleep 2000"]}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 5}
		- name: http
			image: IMAGE
			command: [sh, -c, "trap 'exit 15' TERM; httpd -f -p 8081 -h /www & wait"]
			startupProbe: {httpGet: {path: /index.html, port: 8081}, periodSeconds: 1, failureThreshold: 1000}
			livenessProbe: {httpGet: {path: /index.html, port: 8081}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 30}
		- name: tcp
			image: IMAGE
			command: [sh, -c, "trap 'exit 15' TERM; httpd -f -p 8082 & sleep 1000 & wait"]
			startupProbe: {tcpSocket: {port: 8082}, periodSeconds: 1, failureThreshold: 1000}
			livenessProbe: {tcpSocket: {port: 8082}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 30}
		- name: grpc
			image: IMAGE
			command: [sh, -c, "trap 'exit 15' TERM; sleep 1000 & wait"]
			startupProbe: {grpc: {port: 8083, service: web}, periodSeconds: 1, failureThreshold: 1000}
			livenessProbe: {grpc: {port: 8083, service: web}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 30}
		- name: starting
			image: IMAGE
			command: [sh, -c, "trap 'exit 15' TERM; sleep 1000 & wait"]
			startupProbe: {exec: {command: [test, -e, /tmp/up]}, periodSeconds: 1, failureThreshold: 1000, timeoutSeconds: 30}
			livenessProbe: {exec: {command: ["false"]}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 30}
		- name: stuck
			image: IMAGE
			command: [sh, -c, "trap 'exit 15' TERM; sleep 1000 & wait"]
			startupProbe: {exec: {command: ["false"]}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 30}
	`)
	h := k.serveHealth("liveness", "8083")
	h.SetServingStatus("web", serving)
	// A startup probe that fails ends its container; one that has not succeeded yet holds back liveness.
	p := k.await("liveness", "has a container that was restarted twice", func(p *corev1.Pod) bool {
		c := container(p, "stuck")
		return allRunning(p) && c.RestartCount >= 2 && started(container(p, "grpc")) && started(container(p, "http")) && started(container(p, "tcp"))
	})
	for _, c := range p.Status.ContainerStatuses {
		if c.Name != "stuck" && c.RestartCount != 0 {
			k.t.Errorf("container %s was restarted, though its probes succeed: %v", c.Name, c.LastTerminationState)
		}
	}
	if started(container(p, "starting")) {
		k.t.Error("a container is started before its startup probe has succeeded")
	}

	k.exec("liveness", "starting", "touch", "/tmp/up")
	k.exec("liveness", "exec", "touch", "/tmp/bad")
	k.exec("liveness", "slow", "touch", "/tmp/bad")
	k.exec("liveness", "http", "rm", "/www/index.html")
	k.exec("liveness", "tcp", "sh", "-c", "killall httpd || true")
	h.SetServingStatus("web", notServing)
	k.awaitContainer("liveness", "grpc", "has been restarted", func(c *corev1.ContainerStatus) bool { return c.RestartCount > 0 })
	h.SetServingStatus("web", serving)
	p = k.await("liveness", "has been restarted in each container", func(p *corev1.Pod) bool {
		for _, c := range p.Status.ContainerStatuses {
			if c.RestartCount == 0 || c.LastTerminationState.Terminated == nil {
				return false
			}
		}
		return true
	})
	for _, c := range p.Status.ContainerStatuses {
		if last := c.LastTerminationState.Terminated; last.ExitCode != 15 {
			k.t.Errorf("container %s has not ended by TERM: %v", c.Name, last)
		}
	}
	k.wantEvent(`Liveness probe failed: command timed out: \"sh -c [ ! -e /tmp/bad ] || sleep 2000\" timed out after 5s`)
	k.remove("liveness")
}
