package kubelet

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/test/e2e"
)

func (k *kubelet) testSharedPID() {
	k.run("shared-pid", `
		shareProcessNamespace: true
		containers:
		- name: one
			image: IMAGE
			command: [sleep, "1111"]
			securityContext: {capabilities: {add: [SYS_PTRACE]}}
		- name: two
			image: IMAGE
			command: [sh, -c, "echo two >/tmp/name; sleep 2222"]
	`)
	k.await("shared-pid", "is ready", ready)
	for _, c := range []string{"one", "two"} {
		k.eventually("container "+c+" sees both", func() error {
			ps := k.exec("shared-pid", c, "ps", "-o", "pid,args")
			if !strings.Contains(ps, "sleep 1111") || !strings.Contains(ps, "sleep 2222") {
				return errors.New(ps)
			}
			return nil
		})
		if k.exec("shared-pid", c, "sh", "-c", "tr '\\0' ' ' </proc/1/cmdline") == "sleep 1111 " {
			k.t.Errorf("a container's process is process 1 of the pod")
		}
	}
	// One container reaches the other's files and processes.
	k.says("shared-pid", "one", "two\n", "sh", "-c", "cat /proc/$(ps -o pid,args | awk '/sleep 2222/ && !/awk/ {print $1; exit}')/root/tmp/name")
	k.exec("shared-pid", "one", "killall", "sleep")
	k.await("shared-pid", "has both containers restarted", func(p *corev1.Pod) bool {
		return allRunning(p) && container(p, "one").RestartCount > 0 && container(p, "two").RestartCount > 0
	})
}

func (k *kubelet) testNodeNamespaces() {
	k.run("node-namespaces", `
		hostNetwork: true
		hostPID: true
		hostIPC: true
		containers:
		- name: main
			image: IMAGE
			command: [httpd, -f, -p, "18080", -h, /www]
			ports: [{containerPort: 18080}]
			env:
			- {name: NODE_IP, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
			readinessProbe: {httpGet: {path: /index.html, port: 18080}, periodSeconds: 1, timeoutSeconds: 30}
	`)
	k.await("node-namespaces", "is ready", ready)
	// The status of a kubelet without an API server leaves the node's addresses out.
	k.says("node-namespaces", "main", e2e.NodeAddress+"\n", "sh", "-c", "echo $NODE_IP")
	for _, ns := range []string{"net", "pid", "ipc"} {
		want, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			k.t.Fatal(err)
		}
		k.says("node-namespaces", "main", want+"\n", "readlink", "/proc/self/ns/"+ns)
	}
	if got, err := get("http://" + e2e.NodeAddress + ":18080/index.html"); got != "hello from a pod\n" {
		k.t.Errorf("the pod's page is %q, %v", got, err)
	}
	name, err := os.Hostname()
	if err != nil {
		k.t.Fatal(err)
	}
	k.says("node-namespaces", "main", name+"\n", "hostname")
	// Without a cluster's DNS in the node's network, kubelet gives the node's own.
	if got, want := servers(k.exec("node-namespaces", "main", "cat", "/etc/resolv.conf")), servers(k.read("/etc/resolv.conf")); !slices.Equal(got, want) {
		k.t.Errorf("name servers are %v, want %v", got, want)
	}
	if got := k.exec("node-namespaces", "main", "cat", "/etc/hosts"); !strings.HasPrefix(got, "# Kubernetes-managed hosts file (host network).\n") {
		k.t.Errorf("/etc/hosts is %q", got)
	}
}

// servers are the name servers of a resolv.conf.
func servers(text string) []string {
	var found []string
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" {
			found = append(found, f[1])
		}
	}
	return found
}

// testHostPorts asks for a page and sends a datagram to the node's own address.
func (k *kubelet) testHostPorts() {
	k.run("host-ports", `
		containers:
		- name: main
			image: IMAGE
			command: [httpd, -f, -p, "80", -h, /www]
			ports:
			- {containerPort: 80, hostPort: 18081}
			- {containerPort: 53, hostPort: 18053, protocol: UDP}
			readinessProbe: {httpGet: {path: /index.html, port: 80}, periodSeconds: 1, timeoutSeconds: 30}
	`)
	p := k.await("host-ports", "is ready", ready)
	for _, address := range []string{e2e.NodeAddress + ":18081", p.Status.PodIP + ":80"} {
		if got, err := get("http://" + address + "/index.html"); got != "hello from a pod\n" {
			k.t.Errorf("the page at %s is %q, %v", address, got, err)
		}
	}
	k.echo(k.sandboxes(string(p.UID))[0])
	c, err := net.Dial("udp", e2e.NodeAddress+":18053")
	if err != nil {
		k.t.Fatal(err)
	}
	defer c.Close()
	answer := make([]byte, 100)
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		k.t.Fatal(err)
	}
	if _, err := c.Write([]byte("query")); err != nil {
		k.t.Fatal(err)
	}
	if n, err := c.Read(answer); string(answer[:n]) != "query" {
		k.t.Errorf("the answer is %q, %v", answer[:n], err)
	}
	k.remove("host-ports")
	k.eventually("the port is closed", func() error {
		if c, err := net.Dial("tcp", e2e.NodeAddress+":18081"); err == nil {
			_ = c.Close()
			return fmt.Errorf("it takes connections")
		}
		return nil
	})
}

// echo answers datagrams at port 53 of a pod with themselves.
func (k *kubelet) echo(sandbox string) {
	k.t.Helper()
	var conn net.PacketConn
	if err := sys.DoInNetNS(k.path("netns", "crid-"+sandbox), func() (err error) {
		conn, err = net.ListenPacket("udp", ":53")
		return err
	}); err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() { _ = conn.Close() })
	go func() {
		b := make([]byte, 100)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(b[:n], from)
		}
	}()
}
