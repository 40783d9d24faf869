package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/internal/testutil"
)

// Programs are the paths of what is tested, and how.
type Programs struct {
	Crid, Monitor string
	CNIBin        string   // folder of the CNI plugins
	CgroupDriver  string   // cgroupfs or systemd
	Env, Under    []string // further environment of crid, and a command that executes it
}

// Node is one machine's worth of crid: a daemon, its monitor, a network, a registry.
type Node struct {
	T        testing.TB
	Programs Programs
	Dir      string           // everything of this node is below it, but cgroups and links
	Config   string           // crid's configuration file
	Service  *testutil.Keeper // what crid's descriptors are kept by, as by systemd; nil: nothing
	Socket   string
	Bridge   string
	Subnet   string // first three bytes of the pods' IPv4 addresses
	Cgroup   string // parent of the pods' cgroups when a test names none
	Registry *Registry

	Runtime cri.RuntimeServiceClient
	Images  cri.ImageServiceClient

	daemon *exec.Cmd
	exited chan struct{} // closed when daemon has been waited for
	conn   *grpc.ClientConn
	log    *os.File

	tolerant bool    // Start is content when crid ends before it serves (a failpoint of the start)
	fresh    Figures // when the node was new
	monitor  int     // last known process ID of the monitor
}

// NodeOptions changes what NewNode makes.
type NodeOptions struct {
	NoNetwork bool              // no CNI configuration
	Service   bool              // crid is run as systemd runs a service that keeps descriptors
	Env       []string          // further environment of crid
	Under     []string          // a command that executes crid with the arguments given to it
	Config    map[string]string // section.key → TOML value, over the defaults
}

// NewNode makes and starts a node, and takes it down when t ends: all pods are
// removed and the test fails if anything is left.
func NewNode(t testing.TB, o NodeOptions) *Node {
	t.Helper()
	n := &Node{T: t, Programs: programs(t)}
	// Not t.TempDir: a unix socket's path has room for 107 bytes.
	dir, err := os.MkdirTemp("/tmp", "crid-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	n.Dir = dir
	// Root of a user namespace passes through on its way to root file systems.
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	id := rand.IntN(1 << 16)
	n.Bridge = fmt.Sprintf("ce%04x", id)
	n.Subnet = fmt.Sprintf("10.%d.%d", 201+id%50, id>>8)
	n.Cgroup = "/" + filepath.Base(dir)
	if n.Programs.CgroupDriver == "systemd" {
		n.Cgroup = strings.ReplaceAll(filepath.Base(dir), "-", "_") + ".slice"
	}
	n.Socket = filepath.Join(dir, "crid.sock")
	n.Registry = NewRegistry(t)
	if o.Service {
		n.Service = testutil.NewKeeper(t, dir)
	}
	before := n.snapshot()
	t.Cleanup(func() { n.close(before) })
	n.writeConfig(o)
	if !o.NoNetwork {
		n.WriteCNI()
	}
	n.Programs.Env = append(n.Programs.Env, o.Env...)
	n.Programs.Under = o.Under
	n.Start()
	n.warmUp()
	n.fresh = n.Figures()
	return n
}

// warmUp lets the monitor connect to systemd, which it does for the first cgroup
// that it asks for. The connection is one for its whole life, and so no leak.
func (n *Node) warmUp() {
	if n.Programs.CgroupDriver != "systemd" {
		return
	}
	p := n.PodConfig("warm-up")
	options := p.Linux.SecurityContext.NamespaceOptions
	options.Network, options.Pid = cri.NamespaceMode_NODE, cri.NamespaceMode_POD // has an init in a cgroup, needs no image
	n.RemovePod(n.RunPod(p))
}

func (n *Node) path(parts ...string) string {
	return filepath.Join(append([]string{n.Dir}, parts...)...)
}

// CNIDir is the folder of the node's network configuration.
func (n *Node) CNIDir() string { return n.path("net.d") }

// WriteCNI gives the node its bridge network, IPv4 and IPv6.
func (n *Node) WriteCNI() {
	conf := fmt.Sprintf(`{
  "cniVersion": "1.1.0", "name": %q,
  "plugins": [
    {"type": "bridge", "bridge": %q, "isGateway": true, "hairpinMode": true,
     "ipam": {"type": "host-local", "dataDir": %q,
       "ranges": [[{"subnet": "%s.0/24"}], [{"subnet": "fd00:%s::/64"}]],
       "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
    {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}
  ]}`, n.Bridge, n.Bridge, n.path("ipam"), n.Subnet, strings.TrimPrefix(n.Bridge, "ce"))
	n.WriteFile(filepath.Join(n.CNIDir(), "10-e2e.conflist"), conf)
}

// WriteFile writes a file and the folders above it.
func (n *Node) WriteFile(path, content string) {
	n.T.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		n.T.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		n.T.Fatal(err)
	}
}

func (n *Node) writeConfig(o NodeOptions) {
	values := map[string]string{
		"root":           quote(n.path("root")),
		"state":          quote(n.path("state")),
		"socket":         quote(n.Socket),
		"netns_dir":      quote(n.path("netns")),
		"monitor_binary": quote(n.Programs.Monitor),
		"cgroup_driver":  quote(n.Programs.CgroupDriver),
		"cgroup_parent":  quote(n.Cgroup),
		"log_verbosity":  "4",

		"cni.conf_dir":         quote(n.CNIDir()),
		"cni.bin_dirs":         "[" + quote(n.Programs.CNIBin) + "]",
		"cni.cache_dir":        quote(n.path("cni-cache")),
		"registry.config_dirs": "[" + quote(n.path("certs.d")) + "]",
	}
	for k, v := range o.Config {
		values[k] = v
	}
	n.Config = n.path("crid.toml")
	n.WriteFile(n.Config, toml(values))
	for _, host := range []string{"registry.k8s.io", "docker.io", "e2e.test"} {
		n.WriteFile(n.path("certs.d", host, "hosts.toml"), fmt.Sprintf(
			"[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", "http://"+n.Registry.Addr))
	}
}

// Start starts crid and waits until it serves.
func (n *Node) Start() {
	n.T.Helper()
	log, err := os.OpenFile(n.path("crid.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		n.T.Fatal(err)
	}
	n.log = log
	command := append(slices.Clone(n.Programs.Under), n.Programs.Crid, "--config", n.Config)
	// The race detector's runtime would sleep for a second at the end of each program.
	env := append([]string{"GORACE=" + os.Getenv("GORACE") + " atexit_sleep_ms=0"}, n.Programs.Env...)
	if n.Service != nil {
		n.daemon = n.Service.Command(env, command[0], command[1:]...)
	} else {
		n.daemon = exec.Command(command[0], command[1:]...)
		n.daemon.Env = append(os.Environ(), env...)
	}
	n.daemon.Stdout, n.daemon.Stderr = log, log
	n.daemon.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := n.daemon.Start(); err != nil {
		n.T.Fatal(err)
	}
	daemon, exited := n.daemon, make(chan struct{})
	n.exited = exited
	go func() {
		_ = daemon.Wait()
		close(exited)
	}()
	n.dial()
}

// dial connects and waits for an answer, at most a minute.
func (n *Node) dial() {
	n.T.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		if c, err := net.Dial("unix", n.Socket); err == nil {
			_ = c.Close()
			break
		}
		select {
		case <-n.exited:
			if n.tolerant {
				return
			}
			n.T.Fatalf("crid ended before it served:\n%s", n.Log())
		case <-ctx.Done():
			n.T.Fatalf("crid does not serve after a minute:\n%s", n.Log())
		case <-time.After(10 * time.Millisecond):
		}
	}
	conn, err := grpc.NewClient("unix://"+n.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		n.T.Fatal(err)
	}
	n.conn, n.Runtime, n.Images = conn, cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
	if _, err := n.Runtime.Version(ctx, &cri.VersionRequest{}, grpc.WaitForReady(true)); err != nil {
		n.T.Fatalf("Version: %v\n%s", err, n.Log())
	}
}

// PID is crid's.
func (n *Node) PID() int { return n.daemon.Process.Pid }

// Alive reports whether crid runs.
func (n *Node) Alive() bool {
	select {
	case <-n.exited:
		return false
	default:
		return true
	}
}

// Kill9 kills crid as a crash would; containers and the monitor run on.
func (n *Node) Kill9() { n.end(syscall.SIGKILL) }

// Stop ends crid in order; containers and the monitor run on.
func (n *Node) Stop() { n.end(syscall.SIGTERM) }

// Restart is Kill9 and Start.
func (n *Node) Restart() {
	n.Kill9()
	n.Start()
}

func (n *Node) end(sig syscall.Signal) {
	if n.daemon == nil {
		return
	}
	_ = n.daemon.Process.Signal(sig)
	select {
	case <-n.exited:
	case <-time.After(time.Minute):
		n.T.Errorf("crid does not end on %v", sig)
		_ = n.daemon.Process.Kill()
		<-n.exited
	}
	_ = n.conn.Close()
	_ = n.log.Close()
	n.daemon = nil
}

// Log is what crid has logged.
func (n *Node) Log() string {
	b, _ := os.ReadFile(n.path("crid.log"))
	return string(b)
}
