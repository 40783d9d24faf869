package sandbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cridproject/crid/cni"
	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/monitor"
	"github.com/cridproject/crid/sandbox"
	"github.com/cridproject/crid/sandbox/config"
	"github.com/cridproject/crid/sandbox/sandboxtest"
)

func TestAttachmentIsRecordedFirst(t *testing.T) {
	n := sandboxtest.New(t)
	n.Network.OnAttach = func(a cni.Attachment) {
		data, err := os.ReadFile(filepath.Join(n.Dir, "root/sandboxes", a.ID+".json"))
		if err != nil {
			t.Errorf("record at ADD: %v", err)
		}
		var r struct{ Attachment *cni.Attachment }
		if err := json.Unmarshal(data, &r); err != nil || r.Attachment == nil || string(r.Attachment.Config) != string(a.Config) {
			t.Errorf("attachment on record at ADD = %+v, %v, want the one attached", r.Attachment, err)
		}
	}
	id, err := n.Manager.Run(t.Context(), sandboxtest.Pod("web"))
	if err != nil {
		t.Fatal(err)
	}
	mustRemove(t, n, id)
	mustBeClean(t, n)
}

func TestRunAgain(t *testing.T) {
	n := sandboxtest.New(t)
	pod := sandboxtest.Pod("web")
	id, err := n.Manager.Run(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := n.Manager.Run(t.Context(), sandboxtest.Pod("web")); again != id || err != nil {
		t.Errorf("Run again = %s, %v, want %s", again, err, id)
	}
	other := sandboxtest.Pod("web")
	other.Hostname = "other"
	if _, err := n.Manager.Run(t.Context(), other); !errkind.Is(err, errkind.Exists) || !strings.Contains(err.Error(), string(id)) {
		t.Errorf("Run with another config = %v, want kind exists and %s named", err, id)
	}
	next := sandboxtest.Pod("web")
	next.Attempt = 1
	second, err := n.Manager.Run(t.Context(), next)
	if err != nil || second == id {
		t.Errorf("Run of the next attempt = %s, %v, want a new sandbox", second, err)
	}
	n.Restart()
	if again, err := n.Manager.Run(t.Context(), pod); again != id || err != nil {
		t.Errorf("Run again after a restart = %s, %v, want %s", again, err, id)
	}
	if err := n.Manager.StopSandbox(t.Context(), string(id)); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Manager.Run(t.Context(), pod); !errkind.Is(err, errkind.Exists) {
		t.Errorf("Run of what is stopped = %v, want kind exists", err)
	}
	mustRemove(t, n, id)
	third, err := n.Manager.Run(t.Context(), pod)
	if err != nil || third == id {
		t.Errorf("Run after removal = %s, %v, want a new sandbox", third, err)
	}
	mustRemove(t, n, second)
	mustRemove(t, n, third)
	mustBeClean(t, n)
}

func TestRunOutlivesItsClient(t *testing.T) {
	n := sandboxtest.New(t)
	reached, release := n.Network.Block("attach")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := n.Manager.Run(ctx, sandboxtest.Pod("web"))
		done <- err
	}()
	<-reached
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("Run with its client gone = %v, want canceled", err)
	}
	if got := n.Manager.Sandboxes(); len(got) > 0 {
		t.Errorf("Sandboxes while one is made = %v, want none", got)
	}
	type result struct {
		id  config.SandboxID
		err error
	}
	retry := make(chan result)
	go func() {
		id, err := n.Manager.Run(t.Context(), sandboxtest.Pod("web"))
		retry <- result{id, err}
	}()
	release()
	r := <-retry
	if r.err != nil {
		t.Fatalf("Run again = %v", r.err)
	}
	all := n.Manager.Sandboxes()
	if len(all) != 1 || all[0].ID != r.id {
		t.Errorf("Sandboxes = %v, want the one, %s", all, r.id)
	}
	mustRemove(t, n, r.id)
	mustBeClean(t, n)
}

func TestCreateOutlivesItsClient(t *testing.T) {
	n := sandboxtest.New(t)
	pod, err := n.Manager.Run(t.Context(), sandboxtest.Pod("web"))
	if err != nil {
		t.Fatal(err)
	}
	reached, release := n.Monitor.Block(monitor.OpCreate)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := n.Manager.Create(ctx, string(pod), sandboxtest.Container("main"))
		done <- err
	}()
	<-reached
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("Create with its client gone = %v, want canceled", err)
	}
	release()
	id, err := n.Manager.Create(t.Context(), string(pod), sandboxtest.Container("main"))
	if err != nil {
		t.Fatalf("Create again = %v", err)
	}
	if all := n.Manager.Containers(); len(all) != 1 || all[0].ID != id {
		t.Errorf("Containers = %v, want the one, %s", all, id)
	}
	mustRemove(t, n, pod)
	mustBeClean(t, n)
}

func TestStopWhileBeingMade(t *testing.T) {
	n := sandboxtest.New(t)
	reached, release := n.Network.Block("attach")
	defer release()
	done := make(chan error)
	go func() {
		_, err := n.Manager.Run(t.Context(), sandboxtest.Pod("web"))
		done <- err
	}()
	<-reached
	dirs, err := os.ReadDir(filepath.Join(n.Dir, "root/sandboxes"))
	if err != nil || len(dirs) != 1 {
		t.Fatalf("records = %v, %v, want one", dirs, err)
	}
	id := strings.TrimSuffix(dirs[0].Name(), ".json")
	if err := n.Manager.StopSandbox(t.Context(), id); err != nil {
		t.Errorf("StopSandbox = %v", err)
	}
	if err := <-done; !errkind.Is(err, errkind.BadState) {
		t.Errorf("Run of what was stopped = %v, want kind bad state", err)
	}
	mustBeClean(t, n)
}

func TestFailedUndoIsTriedAgain(t *testing.T) {
	n := sandboxtest.New(t)
	n.Network.FailAfter("attach", sandboxtest.ErrInjected)
	n.Network.FailAt("detach", sandboxtest.ErrInjected)
	if _, err := n.Manager.Run(t.Context(), sandboxtest.Pod("web")); err == nil {
		t.Fatal("Run with a broken network = nil, want an error")
	}
	// kubelet must be able to see it and have it removed.
	all := n.Manager.Sandboxes()
	if len(all) != 1 || all[0].State != sandbox.SandboxNotReady {
		t.Fatalf("Sandboxes = %+v, want one that is not ready", all)
	}
	if _, err := n.Manager.Run(t.Context(), sandboxtest.Pod("web")); !errors.Is(err, sandboxtest.ErrInjected) {
		t.Errorf("Run again = %v, want the injected error", err)
	}
	n.Network.FailAfter("attach", nil)
	n.Network.FailAt("detach", nil)
	id, err := n.Manager.Run(t.Context(), sandboxtest.Pod("web"))
	if err != nil || id == all[0].ID {
		t.Fatalf("Run with the network whole again = %s, %v, want a new sandbox", id, err)
	}
	mustRemove(t, n, id)
	mustBeClean(t, n)
}

func TestSysctls(t *testing.T) {
	hostNet := func(p *config.Sandbox) { p.Namespaces.Network = config.NamespaceNode }
	hostIPC := func(p *config.Sandbox) { p.Namespaces.IPC = config.NamespaceNode }
	for _, tc := range []struct {
		name, sysctl string
		change       func(*config.Sandbox)
		ok           bool
	}{
		{"network", "net.ipv4.tcp_keepalive_time", nil, true},
		{"network with slashes", "net/ipv4/conf/eth0.1/rp_filter", nil, true},
		{"ipc", "kernel.shm_rmid_forced", nil, true},
		{"semaphores", "kernel.sem", nil, true},
		{"message queues", "fs.mqueue.msg_max", nil, true},
		{"domain", "kernel.domainname", nil, true},
		{"network of the node", "net.ipv4.tcp_keepalive_time", hostNet, false},
		{"domain of the node", "kernel.domainname", hostNet, false},
		{"ipc of the node", "kernel.shmmax", hostIPC, false},
		{"host name", "kernel.hostname", nil, false},
		{"not namespaced", "vm.swappiness", nil, false},
		{"not namespaced either", "kernel.panic", nil, false},
		{"prefix of a name", "network.x", nil, false},
		{"no folder", "net", nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := sandboxtest.New(t)
			pod := sandboxtest.Pod("web")
			if tc.change != nil {
				tc.change(&pod)
			}
			pod.Sysctls = map[string]string{tc.sysctl: "1"}
			id, err := n.Manager.Run(t.Context(), pod)
			if tc.ok {
				if err != nil {
					t.Fatalf("Run = %v", err)
				}
				p := n.Kernel.PinsAt(filepath.Join(n.Dir, "netns/crid-"+string(id)))
				if p.Sysctls[tc.sysctl] != "1" || p.Defaults["net.ipv4.ip_unprivileged_port_start"] != "0" || p.Hostname != "web" {
					t.Errorf("Pin was asked for %+v", p)
				}
				return
			}
			if !errkind.Is(err, errkind.Invalid) || !strings.Contains(err.Error(), tc.sysctl) {
				t.Errorf("Run = %v, want kind invalid and %s named", err, tc.sysctl)
			}
			mustBeClean(t, n)
		})
	}
}

func TestSandboxFiles(t *testing.T) {
	n := sandboxtest.New(t)
	etc := filepath.Join(n.Dir, "etc")
	if err := os.MkdirAll(etc, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"resolv.conf": "nameserver 192.0.2.1\n", "hosts": "127.0.0.1 localhost\n"} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name     string
		dns      *config.DNS
		hostname string
		want     map[string]string
	}{
		{"node's", nil, "", map[string]string{"resolv.conf": "nameserver 192.0.2.1\n", "hosts": "127.0.0.1 localhost\n", "hostname": "node\n"}},
		{"empty", &config.DNS{}, "web", map[string]string{"resolv.conf": "", "hostname": "web\n"}},
		{
			"full", &config.DNS{Servers: []string{"192.0.2.2", "2001:db8::2"}, Searches: []string{"a.test", "b.test"}, Options: []string{"ndots:5", "trust-ad"}}, "web",
			map[string]string{"resolv.conf": "search a.test b.test\nnameserver 192.0.2.2\nnameserver 2001:db8::2\noptions ndots:5 trust-ad\n"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pod := sandboxtest.Pod("web")
			pod.DNS, pod.Hostname = tc.dns, tc.hostname
			id, err := n.Manager.Run(t.Context(), pod)
			if err != nil {
				t.Fatal(err)
			}
			for name, want := range tc.want {
				got, err := os.ReadFile(filepath.Join(n.Dir, "state/sandboxes", string(id), name))
				if err != nil || string(got) != want {
					t.Errorf("%s = %q, %v, want %q", name, got, err, want)
				}
				// Whatever user a container runs as reads it.
				if fi, err := os.Stat(filepath.Join(n.Dir, "state/sandboxes", string(id), name)); err != nil || fi.Mode() != 0o644 {
					t.Errorf("mode of %s = %v, %v, want 0644", name, fi.Mode(), err)
				}
			}
			mustRemove(t, n, id)
		})
	}
	mustBeClean(t, n)
}

// A service manager may have given crid a stricter umask.
func TestSandboxFilesWithUmask(t *testing.T) {
	cmd := exec.Command("sh", "-c", `umask 077; exec "$0" "$@"`, os.Args[0], "-test.run=^TestSandboxFiles$")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("with umask 077: %v\n%s", err, out)
	}
}

func TestNodeNamespaces(t *testing.T) {
	n := sandboxtest.New(t)
	pod := sandboxtest.Pod("web")
	pod.PortMappings = nil
	pod.Namespaces = config.Namespaces{Network: config.NamespaceNode, PID: config.NamespaceNode, IPC: config.NamespaceNode}
	id, err := n.Manager.Run(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	s, err := n.Manager.Sandbox(string(id))
	if err != nil || s.NetNS != "" || len(s.IPs) != 0 || s.HolderPID != 0 {
		t.Errorf("Sandbox = %+v, %v, want nothing of its own", s, err)
	}
	if left := n.Network.Attached(); len(left) > 0 {
		t.Errorf("attached: %v, want nothing", left)
	}
	mustRemove(t, n, id)
	mustBeClean(t, n)
}

func TestPrefixLookup(t *testing.T) {
	n := sandboxtest.New(t)
	a, err := n.Manager.Run(t.Context(), sandboxtest.Pod("a"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 16 { // by then two of them begin with the same digit
		if _, err := n.Manager.Run(t.Context(), sandboxtest.Pod("b"+string(rune('a'+i)))); err != nil {
			t.Fatal(err)
		}
	}
	if s, err := n.Manager.Sandbox(string(a[:16])); err != nil || s.ID != a {
		t.Errorf("Sandbox by prefix = %s, %v, want %s", s.ID, err, a)
	}
	seen := map[byte]bool{}
	for _, s := range n.Manager.Sandboxes() {
		if seen[s.ID[0]] {
			if _, err := n.Manager.Sandbox(string(s.ID[:1])); !errkind.Is(err, errkind.Invalid) {
				t.Errorf("Sandbox by a prefix of several = %v, want kind invalid", err)
			}
		}
		seen[s.ID[0]] = true
	}
	if _, err := n.Manager.Sandbox("xyz"); !errkind.Is(err, errkind.NotFound) {
		t.Errorf("Sandbox of nothing = %v, want kind not found", err)
	}
	if _, err := n.Manager.Sandbox(""); !errkind.Is(err, errkind.Invalid) {
		t.Errorf("Sandbox of no id = %v, want kind invalid", err)
	}
	for _, f := range []func(context.Context, string) error{n.Manager.StopSandbox, n.Manager.RemoveSandbox, n.Manager.Remove} {
		if err := f(t.Context(), "xyz"); err != nil {
			t.Errorf("Stop or Remove of nothing = %v, want nil", err)
		}
	}
}

func TestReadersDoNotWait(t *testing.T) {
	n := sandboxtest.New(t)
	pod, c := mustLive(t, n, sandboxtest.Pod("web"), sandboxtest.Container("main"))
	// Everything that can hang, hangs.
	attach, releaseAttach := n.Network.Block("attach")
	detach, releaseDetach := n.Network.Block("detach")
	done := make(chan error, 2)
	go func() {
		_, err := n.Manager.Run(t.Context(), sandboxtest.Pod("slow"))
		done <- err
	}()
	<-attach
	go func() { done <- n.Manager.StopSandbox(t.Context(), string(pod)) }()
	<-detach
	if got := n.Manager.Sandboxes(); len(got) != 1 || got[0].State != sandbox.SandboxNotReady {
		t.Errorf("Sandboxes = %v, want the one that stops", got)
	}
	if _, err := n.Manager.Sandbox(string(pod)); err != nil {
		t.Errorf("Sandbox = %v", err)
	}
	if got := n.Manager.Containers(); len(got) != 1 || got[0].ID != c {
		t.Errorf("Containers = %v, want the one", got)
	}
	status(t, n, c)
	// Nor does another pod wait.
	other := sandboxtest.Pod("host")
	other.Namespaces.Network = config.NamespaceNode
	host, hc := mustLive(t, n, other, sandboxtest.Container("main"))
	if err := n.Manager.Stop(t.Context(), string(hc), 0); err != nil {
		t.Errorf("Stop beside = %v", err)
	}
	mustRemove(t, n, host)
	releaseAttach()
	releaseDetach()
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
