package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/internal/testutil"
)

// get fetches a page, new connection each time.
func get(url string) (string, error) {
	c := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return string(b), err
}

// webServer serves /www on port 8080 of the pod.
func (n *Node) webServer(pod string, p *cri.PodSandboxConfig) string {
	n.T.Helper()
	return n.Run(pod, p, n.ContainerConfig("web", "httpd", "-f", "-p", "[::]:8080", "-h", "/www"))
}

func TestPodNetwork(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	a, b := n.PodConfig("web"), n.PodConfig("client")
	podA, podB := n.RunPod(a), n.RunPod(b)
	n.webServer(podA, a)
	client := n.Run(podB, b, n.ContainerConfig("main", "sleep", "1000"))
	status := n.PodStatus(podA).Network
	const want = "hello from a pod\n"
	var got string
	n.Eventually("the node reaches the pod", func() bool {
		var err error
		got, err = get("http://" + net.JoinHostPort(status.Ip, "8080") + "/")
		return err == nil
	})
	if got != want {
		t.Errorf("page from the node = %q, want %q", got, want)
	}
	if got := n.Exec(client, "wget", "-q", "-O", "-", "http://"+status.Ip+":8080/"); got != want {
		t.Errorf("page from another pod = %q, want %q", got, want)
	}
	if got := n.Exec(client, "ip", "-o", "link", "show", "lo"); !strings.Contains(got, "UP") {
		t.Errorf("loopback = %q, want it up", got)
	}
	if got := n.Sh(client, "ip -6 -o addr show eth0 scope global"); !strings.Contains(got, n.PodStatus(podB).Network.AdditionalIps[0].Ip) {
		t.Errorf("eth0 has %q, want the reported IPv6 address", got)
	}
}

// noNAT is the kernel's answer to address translation, as the portmap plugin needs
// it, "" when it has it. It is asked for in a network namespace of its own.
func noNAT(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("unshare", "--net", "iptables", "--table", "nat", "--append", "PREROUTING",
		"--protocol", "tcp", "--jump", "DNAT", "--to-destination", "127.0.0.1:1").CombinedOutput()
	if err == nil {
		return ""
	}
	if len(out) == 0 {
		t.Fatalf("iptables: %v", err)
	}
	return strings.TrimSpace(string(out))
}

func TestHostPorts(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("ports")
	port := testutil.FreePort(t)
	p.PortMappings = []*cri.PortMapping{
		{Protocol: cri.Protocol_TCP, ContainerPort: 8080, HostPort: int32(port)},
		{Protocol: cri.Protocol_TCP, ContainerPort: 9090}, // not mapped
	}
	if why := noNAT(t); why != "" {
		// Debian's kernel for User-Mode Linux, for one. The pod is then refused,
		// with the plugin's reason, and leaves nothing; without the port it runs.
		t.Logf("this kernel has no NAT: %s", why)
		_, err := n.Runtime.RunPodSandbox(n.Ctx(), &cri.RunPodSandboxRequest{Config: p})
		if err == nil || !strings.Contains(err.Error(), "portmap") {
			t.Errorf("RunPodSandbox with a host port on a kernel without NAT = %v, want an error of portmap", err)
		}
		p.PortMappings = p.PortMappings[1:]
		n.RemovePod(n.RunPod(p))
		return
	}
	pod := n.RunPod(p)
	n.webServer(pod, p)
	url := fmt.Sprintf("http://127.0.0.1:%d/", port)
	n.Eventually("the mapped port answers on loopback", func() bool {
		got, err := get(url)
		return err == nil && got == "hello from a pod\n"
	})
	n.RemovePod(pod)
	if got, err := get(url); err == nil {
		t.Errorf("the port still answers after removal: %q", got)
	}
}

// The addresses of removed pods are free again.
func TestAddressesAreReturned(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	for range 3 {
		pod := n.RunPod(n.PodConfig("addr"))
		n.RemovePod(pod)
	}
	if left := n.left(machine{links: n.snapshot().links}); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
