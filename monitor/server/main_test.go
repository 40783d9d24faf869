package server

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	_ "github.com/opencontainers/runc/libcontainer/nsenter"
	"github.com/opencontainers/runtime-spec/specs-go"
	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/internal/testutil"
	"github.com/cridproject/crid/monitor"
)

// The test binary is also what libcontainer starts in containers, and a monitor
// of its own for the tests that kill one.
const monitorEnv = "CRID_TEST_MONITOR"

func init() {
	runtime.LockOSThread() // as in cmd/crid-monitor
}

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		Init()
	}
	if len(os.Args) > 1 && os.Args[1] == RecordMode {
		recordInTest()
	}
	if state := os.Getenv(monitorEnv); state != "" {
		if err := serveTestMonitor(state); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	flag.Parse()
	// The fuzzer starts this program by its path, which a sealed copy has none of.
	fuzzing := flag.Lookup("test.fuzz").Value.String() != "" || flag.Lookup("test.fuzzworker").Value.String() == "true"
	if os.Getuid() != 0 || fuzzing {
		os.Exit(m.Run())
	}
	// Sealed like the monitor, so that what is measured is what runs.
	state := filepath.Join(os.TempDir(), "crid-server-test")
	stage, err := Bootstrap(state)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Setenv("GOMAXPROCS", "1")
	code := m.Run()
	if err := errors.Join(stage.Leave(state), os.RemoveAll(state)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func serveTestMonitor(state string) error {
	stage, err := Bootstrap(state)
	if err != nil {
		return err
	}
	os.Setenv("GOMAXPROCS", "1")
	s, err := New(Options{Socket: filepath.Join(state, "m.sock"), StateDir: state, Build: "test", Log: klog.Background(), Store: stage.Store})
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	done := make(chan error)
	go func() { done <- s.Serve(ctx) }()
	return <-done
}

// node is a monitor under test and what it needs.
type node struct {
	t      testing.TB
	state  string
	rootfs string // with busybox and its links
	parent string // cgroup
	client *monitor.Client
	exits  chan monitor.Exit
	server *Server // nil when it is a process of its own

	systemd bool // the cgroup driver, by the environment variable CRID_TEST_CGROUP_DRIVER
}

// newNode serves in this process.
func newNode(t testing.TB) *node {
	t.Helper()
	return newNodeWith(t, Options{})
}

// newNodeWith is newNode with options, of which it fills in what each needs.
func newNodeWith(t testing.TB, o Options) *node {
	t.Helper()
	n := prepareNode(t)
	o.Socket, o.StateDir, o.Build, o.Log = n.socket(), n.state, "test", klog.Background()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	n.server = s
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		n.client.Close()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v, want nil", err)
		}
	})
	n.client = n.connect()
	return n
}

func prepareNode(t testing.TB) *node {
	t.Helper()
	testutil.RequireRoot(t)
	n := &node{t: t, exits: make(chan monitor.Exit, 4096), systemd: os.Getenv("CRID_TEST_CGROUP_DRIVER") == "systemd"}
	var err error
	// Not t.TempDir: the path of a unix socket is short.
	if n.state, err = os.MkdirTemp("", "mon"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Left by a monitor that was killed.
		if err := sys.Unmount(filepath.Join(n.state, "rootfs"), sys.Detach); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(n.state); err != nil {
			t.Error(err)
		}
	})
	n.rootfs = busyboxRoot(t)
	n.parent = testutil.TempCgroupParent(t)
	return n
}

func (n *node) socket() string { return filepath.Join(n.state, "m.sock") }

func (n *node) connect() *monitor.Client {
	n.t.Helper()
	c, err := monitor.Connect(context.Background(), n.socket(), monitor.ClientOptions{OnExit: func(e monitor.Exit) { n.exits <- e }})
	if err != nil {
		n.t.Fatal(err)
	}
	return c
}

// busyboxRoot is a layer folder with busybox in it.
func busyboxRoot(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	var bin []byte
	for _, p := range []string{os.Getenv("CRID_TEST_BUSYBOX"), "/bin/busybox", "/usr/bin/busybox"} {
		if b, err := os.ReadFile(p); err == nil {
			bin = b
			break
		}
	}
	if bin == nil {
		t.Fatal("these tests need a static busybox: apt-get install busybox-static")
	}
	for _, d := range []string{"bin", "proc", "sys", "dev", "tmp", "etc"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"sh", "sleep", "true", "false", "echo", "cat", "id", "ls", "stty", "head", "tail", "env", "pwd", "yes", "kill", "setsid", "dd", "seq", "ps", "grep", "touch", "stat", "mount", "rm", "ulimit"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", a)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// spec is what crid would ask for, more or less.
func (n *node) spec(args ...string) *specs.Spec {
	caps := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_NET_BIND_SERVICE"}
	mount := func(dst, typ, src string, opts ...string) specs.Mount {
		return specs.Mount{Destination: dst, Type: typ, Source: src, Options: opts}
	}
	return &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{},
		Process: &specs.Process{
			Args:         args,
			Env:          []string{"PATH=/bin"},
			Cwd:          "/",
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Mounts: []specs.Mount{
			mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
			mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
			mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
			mount("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),
			mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
			mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
			},
			MaskedPaths:   []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			Resources:     &specs.LinuxResources{},
		},
	}
}

func (n *node) cgroupsPath(id string) string {
	if n.systemd {
		return "system.slice:crid-test:" + id
	}
	return n.parent + "/crid-" + id
}

func (n *node) holdRequest(id string) monitor.HoldRequest {
	return monitor.HoldRequest{ID: id, CgroupsPath: n.cgroupsPath("hold-" + id), SystemdCgroup: n.systemd}
}

func (n *node) releaseRequest(id string) monitor.ReleaseRequest {
	return monitor.ReleaseRequest{ID: id, CgroupsPath: n.cgroupsPath("hold-" + id), SystemdCgroup: n.systemd}
}

// request is complete; edit may change it.
func (n *node) request(id string, spec *specs.Spec) monitor.CreateRequest {
	n.t.Helper()
	spec.Linux.CgroupsPath = n.cgroupsPath(id)
	b, err := json.Marshal(spec)
	if err != nil {
		n.t.Fatal(err)
	}
	upper, work := filepath.Join(n.state, "layers", id, "upper"), filepath.Join(n.state, "layers", id, "work")
	for _, d := range []string{upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			n.t.Fatal(err)
		}
	}
	return monitor.CreateRequest{
		ID:      id,
		Rootfs:  monitor.Rootfs{Lower: []string{n.rootfs}, Upper: upper, Work: work},
		Spec:    b,
		LogPath: filepath.Join(n.state, "logs", id+".log"),
		TTY:     spec.Process.Terminal,

		SystemdCgroup: n.systemd,
	}
}

// create makes a container and deletes it with the test.
func (n *node) create(r monitor.CreateRequest) *monitor.Hold {
	n.t.Helper()
	_, h, err := n.client.Create(context.Background(), r)
	if err != nil {
		n.t.Fatalf("Create(%s): %v", r.ID, err)
	}
	n.t.Cleanup(func() {
		h.Close()
		n.delete(r.ID)
	})
	return h
}

func (n *node) delete(id string) {
	n.t.Helper()
	if err := n.client.Delete(context.Background(), monitor.DeleteRequest{ID: id, CgroupsPath: n.cgroupsPath(id), SystemdCgroup: n.systemd}); err != nil {
		n.t.Errorf("Delete(%s): %v", id, err)
	}
}

// run creates and starts a container.
func (n *node) run(id string, args ...string) {
	n.t.Helper()
	n.runSpec(id, n.spec(args...))
}

func (n *node) runSpec(id string, spec *specs.Spec) {
	n.t.Helper()
	n.create(n.request(id, spec))
	n.start(id)
}

func (n *node) start(id string) {
	n.t.Helper()
	if err := n.client.Start(context.Background(), id); err != nil {
		n.t.Fatalf("Start(%s): %v", id, err)
	}
}

// exit waits for the exit of a container, throwing others away.
func (n *node) exit(id string) monitor.Exit {
	n.t.Helper()
	limit := time.After(60 * time.Second)
	for {
		select {
		case e := <-n.exits:
			if e.ID == id {
				return e
			}
		case <-limit:
			n.t.Fatalf("no exit of %s came", id)
		}
	}
}

func (n *node) log(id string) string {
	n.t.Helper()
	b, err := os.ReadFile(filepath.Join(n.state, "logs", id+".log"))
	if err != nil {
		n.t.Fatal(err)
	}
	return string(b)
}

// texts is the log without times, one record a line: "stdout F text".
func texts(log string) string {
	var out []string
	for l := range strings.Lines(log) {
		_, rest, _ := strings.Cut(l, " ")
		out = append(out, rest)
	}
	return strings.Join(out, "")
}

// exec runs a command in a container and returns what it wrote and its code.
func (n *node) exec(id string, args ...string) (stdout, stderr string, code int, err error) {
	n.t.Helper()
	return n.execAs(id, fmt.Sprint("x", time.Now().UnixNano()), args...)
}

func (n *node) execAs(id, execID string, args ...string) (stdout, stderr string, code int, err error) {
	in, err := os.Open(os.DevNull)
	if err != nil {
		return "", "", 0, err
	}
	defer in.Close()
	outR, outW, err := os.Pipe()
	if err != nil {
		return "", "", 0, err
	}
	defer outR.Close()
	errR, errW, err := os.Pipe()
	if err != nil {
		return "", "", 0, err
	}
	defer errR.Close()
	p, err := n.client.Exec(context.Background(), monitor.ExecRequest{ID: id, ExecID: execID, Args: args}, [3]*os.File{in, outW, errW})
	outW.Close()
	errW.Close()
	if err != nil {
		return "", "", 0, err
	}
	ch := make(chan string)
	go func() {
		b, _ := io.ReadAll(errR)
		ch <- string(b)
	}()
	b, _ := io.ReadAll(outR)
	stderr = <-ch
	e := <-p.Done
	return string(b), stderr, e.Code, nil
}

// residue fails the test if something of the monitor's is left.
func (n *node) residue() {
	n.t.Helper()
	for _, dir := range []string{"runc", "rootfs", "journal"} {
		if es, err := os.ReadDir(filepath.Join(n.state, dir)); err != nil || len(es) > 0 {
			n.t.Errorf("left in %s: %v, %v, want nothing", dir, es, err)
		}
	}
	ms, err := sys.Mounts()
	if err != nil {
		n.t.Fatal(err)
	}
	if i := slices.IndexFunc(ms, func(m sys.MountInfo) bool { return strings.HasPrefix(m.Point, n.state+"/rootfs/") }); i >= 0 {
		n.t.Errorf("left mounted: %s", ms[i].Point)
	}
	parent := n.parent
	if n.systemd {
		parent = "/system.slice"
	}
	dirs, err := sys.CgroupDirs(parent)
	if err != nil {
		n.t.Fatal(err)
	}
	for _, d := range dirs {
		if left, _ := filepath.Glob(d + "/crid-test-*"); n.systemd && len(left) > 0 {
			n.t.Errorf("left scopes: %v", left)
		}
		if left, _ := filepath.Glob(d + "/crid-*"); !n.systemd && len(left) > 0 {
			n.t.Errorf("left cgroups: %v", left)
		}
	}
}

// startMonitor starts a monitor process for the node.
func (n *node) startMonitor() *exec.Cmd {
	n.t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args[0] = "crid-monitor.test"
	cmd.Env = append(os.Environ(), monitorEnv+"="+n.state)
	if bin := os.Getenv("CRID_TEST_BINARY"); bin != "" {
		cmd = exec.Command(bin, "--socket", n.socket(), "--state", n.state)
	}
	n.launchMonitor(cmd)
	return cmd
}

// launchMonitor starts a monitor and waits for its socket.
func (n *node) launchMonitor(cmd *exec.Cmd) {
	n.t.Helper()
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	testutil.WaitFor(n.t, "the monitor's socket", func() bool {
		c, err := monitor.Connect(context.Background(), n.socket(), monitor.ClientOptions{})
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}
