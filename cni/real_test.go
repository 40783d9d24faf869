package cni

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/internal/testutil"
)

// realConf is what a small cluster would use, with host-local's state below DIR.
const realConf = `{"name": "real", "cniVersion": "1.1.0", "plugins": [
	{"type": "bridge", "bridge": "cni-real0", "isGateway": true, "ipMasq": NAT, "hairpinMode": true,
	 "ipam": {"type": "host-local", "dataDir": "DIR", "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
	          "ranges": [[{"subnet": "10.234.0.0/24"}], [{"subnet": "fd00:234::/64"}]]}},
	{"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
	{"type": "bandwidth", "capabilities": {"bandwidth": true}}FIREWALL]}`

// realLab is a Network of real plugins on a node that is a namespace of its own.
type realLab struct {
	*Network
	node, leases string
	dir          string
	nat          bool // the kernel has address translation
}

func newRealLab(t *testing.T) *realLab {
	t.Helper()
	testutil.RequireRoot(t)
	bin := os.Getenv("CRID_CNI_BIN")
	if bin == "" {
		bin = "../bin/cni"
	}
	bin, err := filepath.Abs(bin)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bin, "bridge")); err != nil {
		t.Fatalf("no CNI plugins (make build makes them): %v", err)
	}
	l := &realLab{dir: t.TempDir(), leases: t.TempDir()}
	l.node = l.netns(t, "node")
	// Some kernels, such as Debian's for User-Mode Linux, have no NAT at all.
	l.onNode(t, func() error {
		out, err := exec.Command("iptables", "-t", "nat", "-N", "PROBE").CombinedOutput()
		if l.nat = err == nil; !l.nat {
			t.Logf("without NAT and host ports: %s", out)
		}
		return nil
	})
	firewall := ""
	if l.nat {
		firewall = `, {"type": "firewall", "backend": "iptables"}`
	}
	confs := t.TempDir()
	write(t, filepath.Join(confs, "real.conflist"),
		strings.NewReplacer("DIR", l.leases, "NAT", strconv.FormatBool(l.nat), "FIREWALL", firewall).Replace(realConf))
	l.Network, err = New(Options{ConfDir: confs, BinDirs: []string{bin}, CacheDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// netns pins a new network namespace for the time of the test.
func (l *realLab) netns(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(l.dir, name)
	t.Cleanup(func() {
		if err := sys.Unpin(path); err != nil {
			t.Error(err)
		}
		// Pinning has made the folder a mount point of its own.
		if err := sys.Unmount(l.dir, sys.UnmountFlags(0)); err != nil && name == "node" {
			t.Error(err)
		}
	})
	if err := sys.NewNetNS(path, sys.LoopbackUp); err != nil {
		t.Fatal(err)
	}
	return path
}

// onNode runs f, and so the plugins that it calls, in the node's namespace.
func (l *realLab) onNode(t *testing.T, f func() error) {
	t.Helper()
	if err := sys.DoInNetNS(l.node, f); err != nil {
		t.Fatal(err)
	}
}

// pod is an attachment in a new namespace.
func (l *realLab) pod(t *testing.T, id string, ports ...Port) Attachment {
	t.Helper()
	a, err := l.Plan(Attachment{ID: id, NetNS: l.netns(t, id), Name: "web", Namespace: "shop", UID: "1", Ports: ports})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// ports maps port 80 of a pod to one of the node, where that can be done.
func (l *realLab) ports(host uint16) []Port {
	if !l.nat {
		return nil
	}
	return []Port{{Protocol: "tcp", Container: 80, Host: host}}
}

func (l *realLab) attach(t *testing.T, a Attachment) (r Result) {
	t.Helper()
	l.onNode(t, func() (err error) {
		r, err = l.Attach(t.Context(), a)
		return err
	})
	return r
}

func (l *realLab) detach(t *testing.T, a Attachment) {
	t.Helper()
	l.onNode(t, func() error { return l.Detach(t.Context(), a) })
}

// left is what there is of pods on the node: links other than lo and the
// bridge, rules that name a pod or its address, leases.
func (l *realLab) left(t *testing.T) []string {
	t.Helper()
	var out []string
	l.onNode(t, func() error {
		links, err := net.Interfaces()
		if err != nil {
			return err
		}
		for _, link := range links {
			if link.Name != "lo" && link.Name != "cni-real0" {
				out = append(out, "link "+link.Name)
			}
		}
		if !l.nat {
			return nil
		}
		for _, tool := range []string{"iptables-save", "ip6tables-save"} {
			rules, err := exec.Command(tool).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%s: %w: %s", tool, err, rules)
			}
			for line := range strings.Lines(string(rules)) {
				if strings.Contains(line, "id:") || strings.Contains(line, "10.234.0.") || strings.Contains(line, "fd00:234::") {
					out = append(out, strings.TrimSpace(line))
				}
			}
		}
		return nil
	})
	leases, err := filepath.Glob(filepath.Join(l.leases, "real", "*[0-9a-f]"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range leases {
		if _, err := netip.ParseAddr(filepath.Base(f)); err == nil {
			out = append(out, "lease "+filepath.Base(f))
		}
	}
	return out
}

// serve answers "hello" at port 80 of a pod.
func serve(t *testing.T, netns string) {
	t.Helper()
	if err := sys.DoInNetNS(netns, func() error {
		ln, err := net.Listen("tcp", ":80")
		if err != nil {
			return err
		}
		done := make(chan struct{})
		t.Cleanup(func() {
			_ = ln.Close()
			<-done
		})
		go func() {
			defer close(done)
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, "hello")
				_ = c.Close()
			}
		}()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// hear connects and returns what comes.
func hear(addr string) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	b, err := io.ReadAll(c)
	if err == nil && string(b) != "hello" {
		err = fmt.Errorf("%s said %q", addr, b)
	}
	return err
}

func TestRealPlugins(t *testing.T) {
	l := newRealLab(t)
	a := l.pod(t, "pod1", l.ports(8080)...)
	a.IngressBits, a.EgressBits = 100_000_000, 100_000_000
	b := l.pod(t, "pod2")
	ra, rb := l.attach(t, a), l.attach(t, b)
	for _, r := range []Result{ra, rb} {
		if len(r.IPs) != 2 || !r.IPs[0].Is4() || !r.IPs[1].Is6() {
			t.Fatalf("addresses = %v, want one of each family", r.IPs)
		}
	}
	serve(t, a.NetNS)
	pod := netip.AddrPortFrom(ra.IPs[0], 80).String()
	if err := sys.DoInNetNS(b.NetNS, func() error { return hear(pod) }); err != nil {
		t.Errorf("from pod to pod: %v", err)
	}
	var gateway string
	l.onNode(t, func() error {
		gateway = bridgeAddr()
		return hear(pod)
	})
	if l.nat {
		l.onNode(t, func() error { return hear("127.0.0.1:8080") })
		if err := sys.DoInNetNS(b.NetNS, func() error { return hear(net.JoinHostPort(gateway, "8080")) }); err != nil {
			t.Errorf("from pod to the node's port: %v", err)
		}
	}
	l.detach(t, a)
	if err := sys.DoInNetNS(a.NetNS, func() error {
		if _, err := net.InterfaceByName("eth0"); err == nil {
			return errors.New("eth0 is still there")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	l.detach(t, b)
	l.detach(t, a) // again
	if left := l.left(t); len(left) > 0 {
		t.Errorf("left on the node: %q", left)
	}
}

// bridgeAddr is the bridge's IPv4 address, in the namespace of the caller.
func bridgeAddr() string {
	link, err := net.InterfaceByName("cni-real0")
	if err != nil {
		return ""
	}
	addrs, err := link.Addrs()
	if err != nil {
		return ""
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() {
			return p.Addr().String()
		}
	}
	return ""
}

// An ADD that failed halfway, and pods that vanished without a DEL, leave no lease.
func TestRealPluginsAfterTrouble(t *testing.T) {
	l := newRealLab(t)
	a := l.pod(t, "pod1")
	// The second plugin of the chain fails: the first has done its work.
	broken := a
	broken.Config = []byte(strings.Replace(string(a.Config), `"snat":true`, `"snat":"maybe"`, 1))
	if string(broken.Config) == string(a.Config) {
		t.Fatalf("configuration has no snat: %s", a.Config)
	}
	if err := sys.DoInNetNS(l.node, func() error {
		_, err := l.Attach(t.Context(), broken)
		return err
	}); err == nil || !strings.Contains(err.Error(), "CNI plugin portmap, ADD") {
		t.Fatalf("Attach with a broken second plugin = %v, want an error of portmap", err)
	}
	if len(l.left(t)) == 0 {
		t.Fatal("the first plugin did nothing: the test is void")
	}
	l.detach(t, a)
	if left := l.left(t); len(left) > 0 {
		t.Errorf("left after a failed ADD and DEL: %q", left)
	}

	// The namespace goes without a DEL, as at a reboot; then DEL.
	b := l.pod(t, "pod2", l.ports(8081)...)
	l.attach(t, b)
	if err := sys.Unpin(b.NetNS); err != nil {
		t.Fatal(err)
	}
	l.detach(t, b)
	for _, x := range l.left(t) {
		if strings.HasPrefix(x, "lease") {
			t.Errorf("left after DEL without a namespace: %s", x)
		}
	}

	// The record goes too: GC.
	c := l.pod(t, "pod3")
	l.attach(t, c)
	d := l.pod(t, "pod4")
	kept := l.attach(t, d)
	l.onNode(t, func() error { return l.GC(t.Context(), []Attachment{d}) })
	var leases []string
	for _, x := range l.left(t) {
		if strings.HasPrefix(x, "lease") {
			leases = append(leases, strings.TrimPrefix(x, "lease "))
		}
	}
	if len(leases) != 2 || leases[0] != kept.IPs[0].String() || leases[1] != kept.IPs[1].String() {
		t.Errorf("leases after GC = %v, want those of the live one, %v", leases, kept.IPs)
	}
	l.detach(t, d)
}
