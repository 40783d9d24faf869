package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/internal/sys"
)

// kill -9 of crid and of the monitor at the same moment, where systemd runs the
// monitor with a descriptor store: containers run on, and no line of their logs
// is lost, neither those in the pipe at that time nor those written meanwhile.
func TestKill9OfBoth(t *testing.T) {
	if !sys.SystemdBooted() {
		t.Skip("there is no systemd here; TestBothDie in monitor/server plays it")
	}
	n := NewNode(t, NodeOptions{})
	n.killBoth()
	unit := filepath.Base(n.Dir) + ".service"
	start := exec.Command("systemd-run", "--quiet", "--collect", "--unit="+unit,
		"-p", "Restart=always", "-p", "RestartSec=0", "-p", "KillMode=process", "-p", "Delegate=yes",
		"-p", "NotifyAccess=main", "-p", "FileDescriptorStoreMax=16384",
		n.Programs.Monitor, "--socket", n.path("state", "monitor.sock"), "--state", n.path("run", "monitor"))
	if out, err := start.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", start.Args, err, out)
	}
	t.Cleanup(func() {
		n.RemoveAll()
		if out, err := exec.Command("systemctl", "stop", unit).CombinedOutput(); err != nil {
			t.Errorf("systemctl stop %s: %v: %s", unit, err, out)
		}
	})
	serves := func() bool {
		_, err := os.Stat(n.path("state", "monitor.sock"))
		return err == nil
	}
	n.Eventually("systemd has started the monitor", serves)
	n.Start()

	n.PullBusybox()
	p := n.PodConfig("survivor")
	pod := n.RunPod(p)
	const loop = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.005; done"
	plain, terminal := n.ContainerConfig("plain", "sh", "-c", loop), n.ContainerConfig("terminal", "sh", "-c", loop)
	terminal.Tty = true
	ids := map[*cri.ContainerConfig]string{plain: n.Run(pod, p, plain), terminal: n.Run(pod, p, terminal)}
	lines := func(c *cri.ContainerConfig) int { return strings.Count(n.ContainerLog(p, c), "\n") }
	for round := range 2 {
		pids, seen := map[string]int{}, map[string]int{}
		for c, id := range ids {
			pids[id], seen[id] = n.containerPID(id), lines(c)
		}
		n.killBoth()
		n.Eventually("systemd has started the monitor again", serves)
		n.Start()
		for c, id := range ids {
			n.Eventually("the log goes on", func() bool { return lines(c) > seen[id]+50 })
			if s := n.Status(id); s.State != cri.ContainerState_CONTAINER_RUNNING || n.containerPID(id) != pids[id] {
				t.Errorf("round %d, %s: %v, pid %d; want running, %d", round, c.Metadata.Name, s.State, n.containerPID(id), pids[id])
			}
			i, torn := 0, 0
			for l := range strings.Lines(n.ContainerLog(p, c)) {
				_, text, _ := strings.Cut(strings.TrimSuffix(l, "\n"), " stdout F ")
				switch {
				case text == strconv.Itoa(i):
				case c.Tty && torn <= round && strings.HasSuffix(strconv.Itoa(i), text):
					torn++ // a terminal gives a line in pieces: the first went with the monitor
				default:
					t.Fatalf("round %d, %s: record %d is %q", round, c.Metadata.Name, i, l)
				}
				i++
			}
			n.Exec(id, "true")
		}
	}
}

// killBoth kills crid and the monitor while neither can see the other's death,
// and takes the monitor's socket away, to see when the next has made its own.
func (n *Node) killBoth() {
	n.T.Helper()
	monitor := n.MonitorPID()
	if err := syscall.Kill(n.PID(), syscall.SIGSTOP); err != nil {
		n.T.Fatal(err)
	}
	_ = os.Remove(n.path("state", "monitor.sock"))
	if err := syscall.Kill(monitor, syscall.SIGKILL); err != nil {
		n.T.Fatal(err)
	}
	n.Kill9()
}
