package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/internal/testutil"
)

func TestSysctlsFromInside(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("sysctls")
	p.Linux.Sysctls = map[string]string{
		"net/ipv4/tcp_syncookies":    "0",   // slashes are as good as dots
		"net.ipv4.ip_forward":        "1",   // not one of kubelet's safe ones
		"net.ipv4.conf.lo.rp_filter": "2",   // of one interface
		"kernel.msgmax":              "777", // of the IPC namespace
		"fs.mqueue.msg_max":          "7",
	}
	pod := n.RunPod(p)
	c := n.ContainerConfig("main", "sleep", "1000")
	c.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 1000}
	c.Linux.SecurityContext.Capabilities = &cri.Capability{DropCapabilities: []string{"ALL"}}
	id := n.Run(pod, p, c)
	for name, want := range p.Linux.Sysctls {
		path := "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
		if got := strings.TrimSpace(n.Exec(id, "cat", path)); got != want {
			t.Errorf("%s in the container = %q, want %q", name, got, want)
		}
	}
	// Without capabilities, as other runtimes have it: low ports and ping.
	// (ping itself is not tried: that of busybox knows only raw sockets.)
	n.Sh(id, "httpd -p 80 -h /www && wget -q -O - http://127.0.0.1:80/")
	if got := strings.Fields(n.Exec(id, "cat", "/proc/sys/net/ipv4/ping_group_range")); strings.Join(got, " ") != "0 2147483647" {
		t.Errorf("groups that may ping = %q, want all", got)
	}

	host := func(c *cri.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	}
	ipc := func(c *cri.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Ipc = cri.NamespaceMode_NODE
	}
	for _, test := range []struct {
		name, value string
		change      func(*cri.PodSandboxConfig)
		want        string
	}{
		{"net.ipv4.no_such_thing", "1", nil, "does not have it"},
		{"net.ipv4.tcp_syncookies", "many", nil, "invalid argument"},
		{"kernel.panic", "1", nil, "not namespaced"},
		{"kernel.hostname", "other", nil, "config.hostname"},
		{"net.ipv4.ip_forward", "1", host, "node's network"},
		{"kernel.msgmax", "777", ipc, "node's IPC"},
		{"net.ipv4/../../kernel/panic", "1", nil, "no name"},
	} {
		t.Run(test.name, func(t *testing.T) {
			bad := n.PodConfig("bad")
			if test.change != nil {
				test.change(bad)
			}
			bad.Linux.Sysctls = map[string]string{test.name: test.value}
			_, err := n.Runtime.RunPodSandbox(n.Ctx(), &cri.RunPodSandboxRequest{Config: bad})
			wantCode(t, "RunPodSandbox", err, codes.InvalidArgument, "config.linux.sysctls", test.name, test.want)
		})
	}
	n.RemovePod(pod)
	var left []string
	n.settle(func() bool {
		left = n.left(machine{links: n.snapshot().links})
		return len(left) == 0
	})
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestDNSAndHostFiles(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	host, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	own := n.path("own-resolv.conf")
	n.WriteFile(own, "nameserver 192.0.2.53\n")
	for _, test := range []struct {
		name     string
		dns      *cri.DNSConfig
		readonly bool
		mounts   []*cri.Mount
		want     string
	}{
		{"none", nil, false, nil, string(host)},
		{"empty", &cri.DNSConfig{}, false, nil, ""},
		{
			"full", &cri.DNSConfig{Servers: []string{"192.0.2.1", "2001:db8::1"}, Searches: []string{"b.test", "a.test"}, Options: []string{"ndots:5", "edns0"}}, false, nil,
			"search b.test a.test\nnameserver 192.0.2.1\nnameserver 2001:db8::1\noptions ndots:5 edns0\n",
		},
		{"read-only", &cri.DNSConfig{Servers: []string{"192.0.2.1"}}, true, nil, "nameserver 192.0.2.1\n"},
		{"kubelets", &cri.DNSConfig{}, false, []*cri.Mount{{ContainerPath: "/etc/resolv.conf", HostPath: own}}, "nameserver 192.0.2.53\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := n.PodConfig("dns-" + test.name)
			p.DnsConfig = test.dns
			pod := n.RunPod(p)
			defer n.RemovePod(pod)
			c := n.ContainerConfig("main", "sleep", "1000")
			c.Linux.SecurityContext.ReadonlyRootfs = test.readonly
			c.Mounts = test.mounts
			id := n.Run(pod, p, c)
			if got := n.Exec(id, "cat", "/etc/resolv.conf"); got != test.want {
				t.Errorf("/etc/resolv.conf = %q, want %q", got, test.want)
			}
			for _, file := range []string{"/etc/resolv.conf", "/etc/hosts", "/etc/hostname"} {
				got := n.Sh(id, "(echo '# mine' >> "+file+") 2>/dev/null && echo writable || echo read-only")
				if want := map[bool]string{true: "read-only\n", false: "writable\n"}[test.readonly]; got != want {
					t.Errorf("%s is %q, want %q", file, got, want)
				}
			}
			if got := n.Sh(id, "echo x > /dev/shm/x && cat /dev/shm/x"); got != "x\n" {
				t.Errorf("/dev/shm is not writable: %q", got)
			}
		})
	}
	if b, _ := os.ReadFile("/etc/hosts"); strings.Contains(string(b), "# mine") {
		t.Error("a container has written to the node's /etc/hosts")
	}
}

func TestHostnames(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	node, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	longest := strings.Repeat("h", 64)
	for _, test := range []struct {
		name, hostname string
		network        cri.NamespaceMode
		want           string
	}{
		{"given", "other", cri.NamespaceMode_POD, "other"},
		{"longest", longest, cri.NamespaceMode_POD, longest},
		{"none", "", cri.NamespaceMode_POD, node},
		{"host-network", "", cri.NamespaceMode_NODE, node},
		{"host-network-given", node, cri.NamespaceMode_NODE, node}, // kubelet's way
	} {
		t.Run(test.name, func(t *testing.T) {
			p := n.PodConfig("name-" + test.name)
			p.Hostname = test.hostname
			p.Linux.SecurityContext.NamespaceOptions.Network = test.network
			pod := n.RunPod(p)
			defer n.RemovePod(pod)
			c := n.ContainerConfig("main", "sleep", "1000")
			c.Linux.SecurityContext.NamespaceOptions.Network = test.network
			id := n.Run(pod, p, c)
			want := strings.Repeat(test.want+"\n", 3)
			if got := n.Sh(id, "uname -n; cat /etc/hostname; echo $HOSTNAME"); got != want {
				t.Errorf("uname, /etc/hostname and HOSTNAME = %q, want %q", got, want)
			}
		})
	}
	if now, _ := os.Hostname(); now != node {
		t.Errorf("the node's name is now %q, was %q", now, node)
	}
	p := n.PodConfig("too-long")
	p.Hostname = longest + "h"
	_, err = n.Runtime.RunPodSandbox(n.Ctx(), &cri.RunPodSandboxRequest{Config: p})
	wantCode(t, "RunPodSandbox with 65 letters", err, codes.InvalidArgument, "config.hostname", "64")
}

func TestLogDirectories(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("logs")
	p.LogDirectory = n.path("deep", "er", "logs")
	pod := n.RunPod(p)
	if fi, err := os.Stat(p.LogDirectory); err != nil || fi.Mode().Perm() != 0o755 {
		t.Errorf("log folder = %v, %v; want it made, with mode 0755", fi, err)
	}
	c := n.ContainerConfig("main", "echo", "hello")
	c.LogPath = "folder/of/main/0.log"
	id := n.Run(pod, p, c)
	n.WaitExit(id)
	if got, want := n.Status(id).LogPath, p.LogDirectory+"/folder/of/main/0.log"; got != want {
		t.Errorf("log_path = %q, want %q", got, want)
	}
	if log := n.ContainerLog(p, c); !strings.HasSuffix(log, " stdout F hello\n") {
		t.Errorf("log = %q", log)
	}

	outside := n.path("outside")
	n.WriteFile(outside+"/precious.log", "precious\n")
	for link, target := range map[string]string{"link": outside, "file.log": outside + "/precious.log", "dangling.log": outside + "/new.log"} {
		if err := os.Symlink(target, p.LogDirectory+"/"+link); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"link/0.log", "link/precious.log", "file.log", "dangling.log", "../0.log", "/abs.log", "a/../../0.log", "folder"} {
		bad := n.ContainerConfig("bad", "echo", "escaped")
		bad.LogPath = path
		_, err := n.Runtime.CreateContainer(n.Ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: bad, SandboxConfig: p})
		if err == nil {
			t.Errorf("CreateContainer with log_path %q succeeds", path)
		}
	}
	if e, err := os.ReadDir(outside); err != nil || len(e) != 1 {
		t.Errorf("outside the log folder are now %v, %v", e, err)
	}

	none := n.PodConfig("none")
	none.LogDirectory = ""
	pod = n.RunPod(none)
	c = n.ContainerConfig("main", "echo", "to nobody")
	id = n.Run(pod, none, c)
	if s := n.WaitExit(id); s.LogPath != "" || s.ExitCode != 0 {
		t.Errorf("without a log folder: log_path %q, code %d; want none, 0", s.LogPath, s.ExitCode)
	}
}

// echoUDP answers in the pod what comes to its port. It ends with the test.
func (n *Node) echoUDP(pod string, port int) {
	n.T.Helper()
	var conn *net.UDPConn
	err := sys.DoInNetNS(n.path("netns", "crid-"+pod), func() (err error) {
		conn, err = net.ListenUDP("udp", &net.UDPAddr{Port: port})
		return err
	})
	if err != nil {
		n.T.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		buf := make([]byte, 1500)
		for {
			l, from, err := conn.ReadFromUDP(buf)
			if err != nil {
				return
			}
			_, _ = conn.WriteToUDP(buf[:l], from)
		}
	}()
	n.T.Cleanup(func() { _ = conn.Close(); <-ended })
}

// saysUDP reports whether address answers.
func saysUDP(address string) bool {
	c, err := net.Dial("udp", address)
	if err != nil {
		return false
	}
	defer c.Close()
	for range 3 {
		_, _ = c.Write([]byte("hello"))
		_ = c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		buf := make([]byte, 100)
		if l, err := c.Read(buf); err == nil && string(buf[:l]) == "hello" {
			return true
		}
	}
	return false
}

// natRules are the node's rules that name any of the ports.
func natRules(t *testing.T, ports ...int) (found []string) {
	t.Helper()
	for _, program := range []string{"iptables-save", "ip6tables-save"} {
		out, err := exec.Command(program, "-t", "nat").Output()
		if err != nil {
			t.Fatalf("%s: %v", program, err)
		}
		for line := range strings.Lines(string(out)) {
			if slices.ContainsFunc(ports, func(p int) bool {
				return strings.Contains(line, fmt.Sprintf("dport %d ", p)) || strings.Contains(line, fmt.Sprintf("dports %d ", p))
			}) {
				found = append(found, strings.TrimSpace(line))
			}
		}
	}
	return found
}

func TestPortMappings(t *testing.T) {
	if why := noNAT(t); why != "" {
		t.Skipf("this kernel has no NAT: %s", why)
	}
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("mapped")
	tcp, local, udp, sctp := testutil.FreePort(t), testutil.FreePort(t), testutil.FreePort(t), testutil.FreePort(t)
	p.PortMappings = []*cri.PortMapping{
		{Protocol: cri.Protocol_TCP, ContainerPort: 8080, HostPort: int32(tcp)},
		{Protocol: cri.Protocol_TCP, ContainerPort: 8080, HostPort: int32(local), HostIp: "127.0.0.1"},
		{Protocol: cri.Protocol_UDP, ContainerPort: 5353, HostPort: int32(udp)},
		{Protocol: cri.Protocol_SCTP, ContainerPort: 7070, HostPort: int32(sctp)}, // only its rule: few kernels have SCTP
	}
	pod := n.RunPod(p)
	id := n.webServer(pod, p)
	n.echoUDP(pod, 5353)
	node, node6 := n.Subnet+".1", "fd00:"+strings.TrimPrefix(n.Bridge, "ce")+"::1"
	const page = "hello from a pod\n"
	n.Eventually("the server serves", func() bool {
		got, err := get("http://" + net.JoinHostPort(n.PodStatus(pod).Network.Ip, "8080") + "/")
		return err == nil && got == page
	})
	answers := func(ip string, port int) bool {
		got, err := get("http://" + net.JoinHostPort(ip, itoa(port)) + "/")
		return err == nil && got == page
	}
	for what, ok := range map[string]bool{
		"TCP through 127.0.0.1":                          answers("127.0.0.1", tcp),
		"TCP on the node's IPv4 address":                 answers(node, tcp),
		"a port of 127.0.0.1 through that":               answers("127.0.0.1", local),
		"a port of 127.0.0.1 not on another address":     !answers(node, local),
		"UDP on the node's address":                      saysUDP(net.JoinHostPort(node, itoa(udp))),
		"UDP through 127.0.0.1":                          saysUDP(net.JoinHostPort("127.0.0.1", itoa(udp))),
		"from the pod itself, by the node's own address": n.Sh(id, fmt.Sprintf("wget -q -O - http://%s:%d/ || true", node, tcp)) == page,
	} {
		if !ok {
			t.Errorf("%s: no", what)
		}
	}
	// The kernel looks for a moment whether another has this address.
	n.Eventually("TCP on the node's IPv6 address", func() bool { return answers(node6, tcp) })
	rules := strings.Join(natRules(t, sctp), "\n")
	if !strings.Contains(rules, "-p sctp") || !strings.Contains(rules, ":7070") {
		t.Errorf("rules for SCTP: %q", rules)
	}

	other := n.PodConfig("rival")
	other.PortMappings = []*cri.PortMapping{{Protocol: cri.Protocol_TCP, ContainerPort: 80, HostPort: int32(tcp), HostIp: node}}
	_, err := n.Runtime.RunPodSandbox(n.Ctx(), &cri.RunPodSandboxRequest{Config: other})
	wantCode(t, "RunPodSandbox with a host port that is taken", err, codes.AlreadyExists, "port_mappings[0]", itoa(tcp)+"/tcp", pod[:12])

	n.Restart() // what DEL needs is on record
	if _, err := n.Runtime.StopPodSandbox(n.Ctx(), &cri.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Fatal(err)
	}
	if left := natRules(t, tcp, local, udp, sctp); len(left) > 0 {
		t.Errorf("rules left behind: %q", left)
	}
	if answers("127.0.0.1", tcp) {
		t.Error("the port still answers")
	}
	n.RemovePod(n.RunPod(other)) // it is free again
}
