package e2e

import (
	"context"
	"net"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// kill -9 of crid: containers run on, their logs go on, exits during the down
// time come with their real code, and pods keep their addresses.
func TestKill9OfCrid(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("survivor")
	pod := n.RunPod(p)
	runs := n.ContainerConfig("runs", "sh", "-c", "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done")
	running := n.Run(pod, p, runs)
	exits := n.ContainerConfig("exits", "sh", "-c", "while ! test -e /dev/shm/go; do sleep 0.02; done; echo last words; exit 42")
	exiting := n.Run(pod, p, exits)
	waits := n.ContainerConfig("waits", "echo", "started late")
	waiting := n.CreateContainer(pod, p, waits)
	before := n.PodStatus(pod)
	pid, monitor := n.containerPID(running), n.MonitorPID()

	n.Sh(running, "(sleep 0.3; touch /dev/shm/go) >/dev/null 2>&1 &")
	n.Kill9()
	seen := strings.Count(n.ContainerLog(p, runs), "\n")
	n.Eventually("the log goes on without crid", func() bool { return strings.Count(n.ContainerLog(p, runs), "\n") > seen+3 })
	n.Eventually("the other container ends without crid", func() bool { return strings.Contains(n.ContainerLog(p, exits), "last words") })
	n.Start()

	if got := n.MonitorPID(); got != monitor {
		t.Errorf("monitor after the restart = %d, want the same, %d", got, monitor)
	}
	if s := n.Status(running); s.State != cri.ContainerState_CONTAINER_RUNNING || n.containerPID(running) != pid {
		t.Errorf("running container after the restart: %v, pid %d; want running, %d", s.State, n.containerPID(running), pid)
	}
	if s := n.WaitExit(exiting); s.ExitCode != 42 || s.Reason != "Error" {
		t.Errorf("exit during the down time: code %d, reason %q; want 42, Error", s.ExitCode, s.Reason)
	}
	after := n.PodStatus(pod)
	if after.State != cri.PodSandboxState_SANDBOX_READY || after.Network.Ip != before.Network.Ip || after.CreatedAt != before.CreatedAt {
		t.Errorf("pod after the restart = %v, want %v", after, before)
	}
	n.Exec(running, "true")
	n.StartContainer(waiting)
	if s := n.WaitExit(waiting); s.ExitCode != 0 {
		t.Errorf("container created before and started after: code %d", s.ExitCode)
	}
}

// Without its monitor no container dies, and crid brings up a new one that goes on.
func TestKill9OfMonitor(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("orphan")
	pod := n.RunPod(p)
	runs := n.ContainerConfig("runs", "sh", "-c", "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done")
	running := n.Run(pod, p, runs)
	exits := n.ContainerConfig("exits", "sh", "-c", "while ! test -e /dev/shm/go; do sleep 0.02; done; exit 42")
	exiting := n.Run(pod, p, exits)
	pid, monitor := n.containerPID(running), n.MonitorPID()
	if err := syscall.Kill(monitor, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.Eventually("a new monitor", func() bool { m := n.MonitorPID(); return m != monitor && m != 0 && syscall.Kill(m, 0) == nil })
	seen := strings.Count(n.ContainerLog(p, runs), "\n")
	n.Eventually("the log goes on", func() bool { return strings.Count(n.ContainerLog(p, runs), "\n") > seen+3 })
	if s := n.Status(running); s.State != cri.ContainerState_CONTAINER_RUNNING || n.containerPID(running) != pid {
		t.Errorf("container after its monitor's death: %v, pid %d; want running, %d", s.State, n.containerPID(running), pid)
	}
	n.Sh(running, "touch /dev/shm/go")
	if s := n.WaitExit(exiting); s.ExitCode != 42 {
		t.Errorf("exit after the monitor's death: code %d, reason %q; want 42", s.ExitCode, s.Reason)
	}
	// No line is lost or doubled.
	next := 0
	for line := range strings.Lines(n.ContainerLog(p, runs)) {
		f := strings.Fields(line)
		if len(f) != 4 || f[3] != itoa(next) {
			t.Fatalf("log line %d = %q", next, line)
		}
		next++
	}
}

func TestRestartInOrder(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("order")
	pod := n.RunPod(p)
	id := n.Run(pod, p, n.ContainerConfig("main", "sleep", "1000"))
	n.Stop()
	n.Start()
	if s := n.Status(id); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("container after SIGTERM and a new start of crid: %v, want running", s.State)
	}
	if img := n.image(BusyboxRef); img == nil {
		t.Error("the image is gone after the restart")
	}
}

// Who connects while systemd starts crid again waits for it, whatever has ended it:
// a request is answered late, and an event stream begins.
func TestSocketOutlivesCrid(t *testing.T) {
	n := NewNode(t, NodeOptions{Service: true})
	for _, end := range []struct {
		name string
		do   func()
	}{{"killed", n.Kill9}, {"stopped", n.Stop}} {
		end.do()
		conn, err := net.Dial("unix", n.Socket)
		if err != nil {
			t.Fatalf("%s: nobody listens while crid is away: %v", end.name, err)
		}
		_ = conn.Close()
		client, err := grpc.NewClient("unix://"+n.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		answer, event := make(chan error, 1), make(chan error, 1)
		go func() {
			_, err := cri.NewRuntimeServiceClient(client).Status(n.Ctx(), &cri.StatusRequest{})
			answer <- err
		}()
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			events, err := cri.NewRuntimeServiceClient(client).GetContainerEvents(ctx, &cri.GetEventsRequest{})
			if err == nil {
				_, err = events.Recv()
			}
			event <- err
		}()
		n.Start()
		if err := <-answer; err != nil {
			t.Errorf("%s: a request of that time got %v", end.name, err)
		}
		n.Eventually("an event comes", func() bool {
			n.RemovePod(n.RunPod(n.PodConfig(end.name)))
			select {
			case err = <-event:
				return true
			default:
				return false
			}
		})
		if err != nil {
			t.Errorf("%s: an event stream of that time got %v", end.name, err)
		}
		cancel()
		_ = client.Close()
	}
}
