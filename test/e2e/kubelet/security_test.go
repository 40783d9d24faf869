package kubelet

import (
	"regexp"
	"strings"
)

// noMkdir is a seccomp profile, in kubelet's folder for them, that forbids one thing.
const noMkdir = `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]}`

func (k *kubelet) testSecurity() {
	k.WriteFile(k.path("kubelet", "seccomp", "no-mkdir.json"), noMkdir)
	k.run("security", `
		securityContext:
			fsGroup: 2000
			supplementalGroups: [3000]
			supplementalGroupsPolicy: Strict
			seccompProfile: {type: RuntimeDefault}
			sysctls:
			- {name: net.ipv4.ip_unprivileged_port_start, value: "79"}
			- {name: net.ipv4.ip_local_port_range, value: "20000 30000"}
			- {name: kernel.shm_rmid_forced, value: "1"}
		volumes:
		- {name: data, emptyDir: {}}
		containers:
		- name: user
			image: IMAGE
			command: [sleep, "1000"]
			securityContext: {runAsUser: 33, runAsGroup: 44, runAsNonRoot: true}
			volumeMounts: [{name: data, mountPath: /data}]
		- name: dropped
			image: IMAGE
			command: [sleep, "1000"]
			securityContext: {capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}, allowPrivilegeEscalation: false}
		- name: added
			image: IMAGE
			command: [sleep, "1000"]
			securityContext: {capabilities: {drop: [CHOWN], add: [NET_ADMIN]}}
		- name: privileged
			image: IMAGE
			command: [sleep, "1000"]
			securityContext: {privileged: true}
		- name: read-only
			image: IMAGE
			command: [sleep, "1000"]
			securityContext: {readOnlyRootFilesystem: true}
			volumeMounts: [{name: data, mountPath: /data}]
		- name: local
			image: IMAGE
			command: [sleep, "1000"]
			securityContext: {seccompProfile: {type: Localhost, localhostProfile: no-mkdir.json}}
		- name: unconfined
			image: IMAGE
			command: [sleep, "1000"]
			securityContext: {seccompProfile: {type: Unconfined}}
	`)
	k.run("merged-groups", `
		securityContext: {runAsUser: 33, supplementalGroups: [3000]}
		containers:
		- name: main
			image: IMAGE
			command: [sleep, "1000"]
	`)
	p := k.await("security", "is ready", ready)
	k.says("security", "user", "33 44 44 2000 3000\n", "sh", "-c", "echo $(id -u) $(id -g) $(id -G)")
	if u := container(p, "user").User; u == nil || u.Linux == nil || u.Linux.UID != 33 || u.Linux.GID != 44 || len(u.Linux.SupplementalGroups) != 3 {
		k.t.Errorf("the status says of the user: %v", u)
	}
	k.says("security", "user", "33:2000\n", "sh", "-c", "touch /data/file && stat -c %u:%g /data/file")
	k.says("security", "user", "79|20000\t30000|1|", "sh", "-c",
		"cd /proc/sys; for f in net/ipv4/ip_unprivileged_port_start net/ipv4/ip_local_port_range kernel/shm_rmid_forced; do echo -n \"$(cat $f)|\"; done")
	k.exec("security", "user", "sh", "-c", "httpd -p 79 -h /www && wget -qO- http://127.0.0.1:79/index.html")

	k.await("merged-groups", "is ready", ready)
	k.says("merged-groups", "main", "33 33 500 3000\n", "sh", "-c", "echo $(id -u) $(id -G)")
	k.checkProcesses()

	k.says("security", "read-only", "refused\n", "sh", "-c", "touch /file 2>/dev/null || { touch /data/other && echo refused; }")
	k.says("security", "local", "refused\n", "sh", "-c", "touch /tmp/file && { mkdir /tmp/dir 2>/dev/null || echo refused; }")
	k.exec("security", "unconfined", "mkdir", "/tmp/dir")
	k.exec("security", "privileged", "sh", "-c", "mount -t tmpfs tmpfs /tmp && [ -e /dev/kmsg ]")
	k.says("security", "added", "refused\n", "sh", "-c", "ip link add dummy type bridge && ip link delete dummy && touch /tmp/file && { chown 33 /tmp/file 2>/dev/null || echo refused; }")
}

// checkProcesses looks at what the kernel says of process 1 of the containers of pod security.
func (k *kubelet) checkProcesses() {
	k.t.Helper()
	status := func(text, key string) string {
		if m := regexp.MustCompile(`(?m)^` + key + `:\s*(\S+)$`).FindStringSubmatch(text); m != nil {
			return m[1]
		}
		return "nothing"
	}
	// Privileged is all that a process of this machine can have.
	own := k.read("/proc/self/status")
	const filter, none = "2", "0"
	for _, want := range []struct{ name, capabilities, seccomp, noNewPrivileges string }{
		{"user", "0000000000000000", filter, "0"},
		{"dropped", "0000000000000400", filter, "1"},
		{"privileged", status(own, "CapBnd"), none, "0"},
		{"read-only", "00000000a80425fb", filter, "0"},
		{"added", "00000000a80435fa", filter, "0"},
		{"local", "00000000a80425fb", filter, "0"},
		{"unconfined", "00000000a80425fb", none, "0"},
	} {
		text := k.exec("security", want.name, "cat", "/proc/1/status")
		for key, value := range map[string]string{"CapEff": want.capabilities, "Seccomp": want.seccomp, "NoNewPrivs": want.noNewPrivileges} {
			if got := status(text, key); got != value {
				k.t.Errorf("container %s: %s is %s, want %s", want.name, key, got, value)
			}
		}
	}
}

// testUnmasked: what is hidden below /proc by default is there for root of a user namespace that asks.
func (k *kubelet) testUnmasked() {
	k.run("unmasked", `
		hostUsers: false
		containers:
		- name: unmasked
			image: IMAGE
			command: [sleep, "1000"]
			securityContext: {procMount: Unmasked}
		- name: masked
			image: IMAGE
			command: [sleep, "1000"]
	`)
	k.await("unmasked", "is ready", ready)
	for name, masked := range map[string]bool{"unmasked": false, "masked": true} {
		if got := k.exec("unmasked", name, "cat", "/proc/self/mountinfo"); strings.Contains(got, " /proc/") != masked {
			k.t.Errorf("container %s: masked is %v, want %v: %s", name, !masked, masked, got)
		}
		if f := strings.Fields(k.exec("unmasked", name, "cat", "/proc/self/uid_map")); len(f) != 3 || f[0] != "0" || f[1] == "0" || f[2] != "65536" {
			k.t.Errorf("container %s: users are mapped by %v", name, f)
		}
	}
	k.exec("unmasked", "unmasked", "sh", "-c", "mkdir /tmp/proc && unshare -U -r -m -p -f mount -t proc proc /tmp/proc")
}
