package e2e

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// streamNode is a node with one pod and one container that does nothing.
func streamNode(t *testing.T, name string) (n *Node, p *cri.PodSandboxConfig, pod, id string) {
	t.Helper()
	n = NewNode(t, NodeOptions{})
	n.PullBusybox()
	p = n.PodConfig(name)
	pod = n.RunPod(p)
	return n, p, pod, n.Run(pod, p, n.ContainerConfig("main", "sleep", "1000"))
}

// stream runs one exec by a client of Kubernetes.
func (n *Node) stream(t *testing.T, transport, id string, o remotecommand.StreamOptions, args ...string) error {
	t.Helper()
	return Executor(t, transport, n.ExecURL(id, o, args...)).StreamWithContext(n.Ctx(), o)
}

// wantExit checks for an exit code, which clients get as an error when it is not 0.
func wantExit(t *testing.T, what string, err error, code int) {
	t.Helper()
	var exit utilexec.CodeExitError
	switch {
	case code == 0 && err == nil:
	case code != 0 && errors.As(err, &exit) && exit.Code == code:
	default:
		t.Errorf("%s = %v, want exit code %d", what, err, code)
	}
}

// TestExecStreams is all that needs no more than a container that runs.
func TestExecStreams(t *testing.T) {
	n, _, _, id := streamNode(t, "exec-streams")
	for _, test := range []struct {
		name string
		run  func(*testing.T, *Node, string)
	}{
		{"Streams", execStreams},
		{"OldProtocols", execOldProtocols},
		{"Terminal", execTerminal},
		{"HangUp", execTerminalHangsUp},
		{"Vanish", execClientVanishes},
		{"Crictl", execCrictl},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, n, id) })
	}
}

func execStreams(t *testing.T, n *Node, id string) {
	for _, transport := range Transports {
		t.Run(transport, func(t *testing.T) {
			var out, errOut bytes.Buffer
			o := remotecommand.StreamOptions{Stdin: strings.NewReader("in\n"), Stdout: &out, Stderr: &errOut}
			// cat ends: the end of stdin has come to it.
			err := n.stream(t, transport, id, o, "sh", "-c", "cat; echo err >&2; exit 7")
			wantExit(t, "Exec", err, 7)
			if out.String() != "in\n" || errOut.String() != "err\n" {
				t.Errorf("stdout, stderr = %q, %q, want in, err", &out, &errOut)
			}
			out.Reset()
			wantExit(t, "Exec of what a signal ends", n.stream(t, transport, id, remotecommand.StreamOptions{Stdout: &out}, "sh", "-c", "kill -9 $$"), 137)
			wantExit(t, "Exec of true", n.stream(t, transport, id, remotecommand.StreamOptions{Stdout: &out}, "true"), 0)
			err = n.stream(t, transport, id, remotecommand.StreamOptions{Stdout: &out}, "/no/such")
			if err == nil || !strings.Contains(err.Error(), "/no/such") {
				t.Errorf("Exec of a missing program = %v, want an error that names it", err)
			}
			// A grandchild that keeps stdout open does not hold the end up.
			err = n.stream(t, transport, id, remotecommand.StreamOptions{Stdout: &out}, "sh", "-c", "echo said; setsid sleep 444 &")
			wantExit(t, "Exec with a grandchild", err, 0)
			if out.String() != "said\n" {
				t.Errorf("stdout = %q, want said", &out)
			}
			// Large both ways, and whole.
			big := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
			out.Reset()
			wantExit(t, "Exec of cat", n.stream(t, transport, id, remotecommand.StreamOptions{Stdin: bytes.NewReader(big), Stdout: &out}, "cat"), 0)
			if !bytes.Equal(out.Bytes(), big) {
				t.Errorf("4 MiB through cat: %d bytes came back, or others", out.Len())
			}
		})
	}
}

// The older protocols, which clients of other languages speak.
func execOldProtocols(t *testing.T, n *Node, id string) {
	for _, protocol := range []string{"v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"} {
		o := remotecommand.StreamOptions{Stdout: new(bytes.Buffer)}
		u, err := url.Parse(n.ExecURL(id, o, "echo", protocol))
		if err != nil {
			t.Fatal(err)
		}
		rt, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
		if err != nil {
			t.Fatal(err)
		}
		e, err := remotecommand.NewSPDYExecutorForProtocols(rt, upgrader, http.MethodPost, u, protocol)
		if err == nil {
			err = e.StreamWithContext(n.Ctx(), o)
		}
		if got := o.Stdout.(*bytes.Buffer).String(); err != nil || got != protocol+"\n" {
			t.Errorf("SPDY %s = %q, %v", protocol, got, err)
		}
	}
	for _, protocol := range []string{"v4.channel.k8s.io", "channel.k8s.io"} {
		o := remotecommand.StreamOptions{Stdout: new(bytes.Buffer)}
		e, err := remotecommand.NewWebSocketExecutorForProtocols(&rest.Config{}, http.MethodGet, n.ExecURL(id, o, "echo", protocol), protocol)
		if err == nil {
			err = e.StreamWithContext(n.Ctx(), o)
		}
		if got := o.Stdout.(*bytes.Buffer).String(); got != protocol+"\n" {
			t.Errorf("WebSocket %s = %q, %v", protocol, got, err)
		}
	}
	o := remotecommand.StreamOptions{Stdout: io.Discard}
	e, err := remotecommand.NewWebSocketExecutorForProtocols(&rest.Config{}, http.MethodGet, n.ExecURL(id, o, "true"), "v9.channel.k8s.io")
	if err == nil {
		err = e.StreamWithContext(n.Ctx(), o)
	}
	if err == nil {
		t.Error("a protocol that does not exist was spoken")
	}
}

// queue is a client's terminal that is resized.
type queue chan remotecommand.TerminalSize

func (q queue) Next() *remotecommand.TerminalSize {
	size, ok := <-q
	if !ok {
		return nil
	}
	return &size
}

func execTerminal(t *testing.T, n *Node, id string) {
	for _, transport := range Transports {
		t.Run(transport, func(t *testing.T) {
			in, typed := io.Pipe()
			var out Buffer
			sizes := make(queue, 1)
			sizes <- remotecommand.TerminalSize{Width: 100, Height: 40}
			o := remotecommand.StreamOptions{Stdin: in, Stdout: &out, Tty: true, TerminalSizeQueue: sizes}
			url, done := n.ExecURL(id, o, "sh", "-c", `trap 'stty size' WINCH; stty size; echo $TERM; until read a; do :; done; echo "got $a"; read b; exit 5`), make(chan error, 1)
			go func() { done <- Executor(t, transport, url).StreamWithContext(n.Ctx(), o) }()
			expect := func(text string) {
				t.Helper()
				if !out.Await(text) {
					t.Fatalf("the terminal shows %q, want %q", out.String(), text)
				}
			}
			expect("40 100\r\nxterm\r\n")
			sizes <- remotecommand.TerminalSize{Width: 33, Height: 22}
			expect("22 33\r\n")
			_, _ = io.WriteString(typed, "x\n")
			expect("got x\r\n")
			_, _ = io.WriteString(typed, "y\n")
			wantExit(t, "Exec", <-done, 5)
			close(sizes)
			_ = typed.Close()
		})
	}
}

func TestStreamErrors(t *testing.T) {
	n, p, pod, id := streamNode(t, "stream-errors")
	o := remotecommand.StreamOptions{Stdout: io.Discard}
	u := n.ExecURL(id, o, "true")
	if !strings.HasPrefix(u, "http://127.0.0.1:") || len(u) < len("http://127.0.0.1:1/exec/")+26 {
		t.Errorf("URL = %s, want one of 127.0.0.1 with a long token", u)
	}
	if err := Executor(t, "SPDY", u).StreamWithContext(n.Ctx(), o); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{u, u[:len(u)-26] + strings.Repeat("A", 26), strings.Replace(n.ExecURL(id, o, "true"), "/exec/", "/attach/", 1)} {
		r, err := http.Get(bad)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(r.Body)
		_ = r.Body.Close()
		if r.StatusCode != http.StatusNotFound || !strings.Contains(string(text), "ask for another") {
			t.Errorf("GET %s = %d %s, want 404 that says what to do", bad, r.StatusCode, text)
		}
	}
	// Who speaks no protocol of streams gets an answer too.
	r, err := http.Get(n.ExecURL(id, o, "true"))
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Body.Close()
	if r.StatusCode/100 != 4 {
		t.Errorf("GET without an upgrade = %s, want an error of the client's", r.Status)
	}
	late := n.ExecURL(id, o, "true")
	lateAttach := n.AttachURL(id, o)
	if _, err := n.Runtime.StopContainer(n.Ctx(), &cri.StopContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	for what, u := range map[string]string{"exec": late, "attach": lateAttach} {
		if err := Executor(t, "SPDY", u).StreamWithContext(n.Ctx(), o); err == nil || !strings.Contains(err.Error(), "exited, not running") {
			t.Errorf("%s in what has exited meanwhile = %v, want an error that says so", what, err)
		}
	}
	_, err = n.Runtime.Exec(n.Ctx(), &cri.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true})
	wantCode(t, "Exec in what has exited", err, codes.FailedPrecondition, "not running")
	_, err = n.Runtime.Attach(n.Ctx(), &cri.AttachRequest{ContainerId: id, Stdout: true})
	wantCode(t, "Attach to what has exited", err, codes.FailedPrecondition, "not running")
	created := n.CreateContainer(pod, p, n.ContainerConfig("created", "sleep", "1000"))
	_, err = n.Runtime.Exec(n.Ctx(), &cri.ExecRequest{ContainerId: created, Cmd: []string{"true"}, Stdout: true})
	wantCode(t, "Exec in what was not started", err, codes.OK)
	_, err = n.Runtime.Exec(n.Ctx(), &cri.ExecRequest{ContainerId: "nope", Cmd: []string{"true"}, Stdout: true})
	wantCode(t, "Exec in nothing", err, codes.NotFound, "nope")
	_, err = n.Runtime.Exec(n.Ctx(), &cri.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true, Stderr: true, Tty: true})
	wantCode(t, "Exec with tty and stderr", err, codes.InvalidArgument, "stderr")
	_, err = n.Runtime.PortForward(n.Ctx(), &cri.PortForwardRequest{PodSandboxId: pod, Port: []int32{70000}})
	wantCode(t, "PortForward of 70000", err, codes.InvalidArgument, "70000")
	if _, err := n.Runtime.StopPodSandbox(n.Ctx(), &cri.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Fatal(err)
	}
	_, err = n.Runtime.PortForward(n.Ctx(), &cri.PortForwardRequest{PodSandboxId: pod})
	wantCode(t, "PortForward to a stopped pod", err, codes.FailedPrecondition, "not ready")
}

// A client that goes away takes what it ran with it, and leaves nothing in crid.
func execClientVanishes(t *testing.T, n *Node, id string) {
	before := n.Figures()
	processes := func() string { return n.Exec(id, "ps", "-o", "args") }
	for _, transport := range Transports {
		for name, o := range map[string]remotecommand.StreamOptions{
			"silent": {Stdout: new(Buffer)},
			"stdin":  {Stdin: endless(t), Stdout: new(Buffer)},
			// More than a pipe holds, which nobody reads.
			"stuffed":  {Stdin: io.MultiReader(bytes.NewReader(make([]byte, 96<<10)), endless(t)), Stdout: new(Buffer)},
			"terminal": {Stdin: endless(t), Stdout: new(Buffer), Tty: true},
		} {
			t.Run(transport+"/"+name, func(t *testing.T) {
				ctx, vanish := context.WithCancel(n.Ctx())
				url, done := n.ExecURL(id, o, "sh", "-c", "sleep 333 & echo there; trap '' HUP; sleep 334"), make(chan error, 1)
				go func() { done <- Executor(t, transport, url).StreamWithContext(ctx, o) }()
				if !o.Stdout.(*Buffer).Await("there") {
					t.Fatal("it does not run")
				}
				vanish()
				<-done
				n.Eventually("its processes are gone", func() bool { return !strings.Contains(processes(), "sleep 33") })
			})
		}
	}
	n.Eventually("crid holds no more than before", func() bool { return !n.Figures().exceeds(before) })
}

// A shell whose terminal is lost takes down its jobs, but not what was told to stay.
func execTerminalHangsUp(t *testing.T, n *Node, id string) {
	ctx, vanish := context.WithCancel(n.Ctx())
	var out Buffer
	in, typed := io.Pipe()
	o := remotecommand.StreamOptions{Stdin: in, Stdout: &out, Tty: true}
	url, done := n.ExecURL(id, o, "sh"), make(chan error, 1)
	go func() { done <- Executor(t, "SPDY", url).StreamWithContext(ctx, o) }()
	_, _ = io.WriteString(typed, "(trap '' HUP; exec sleep 551) & sleep 552 & echo sta''rted; sleep 553\n")
	if !out.Await("started") {
		t.Fatal("it does not run")
	}
	vanish()
	<-done
	_ = typed.Close()
	n.Eventually("the terminal's jobs are gone", func() bool { return !strings.Contains(n.Exec(id, "ps", "-o", "args"), "sleep 553") })
	if ps := n.Exec(id, "ps", "-o", "args"); !strings.Contains(ps, "sleep 551") {
		t.Errorf("what ignores SIGHUP is gone, want it to stay:\n%s", ps)
	}
}

// An exec ends with its container, also one that does not share its PID namespace.
func TestExecEndsWithContainer(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	for _, mode := range []cri.NamespaceMode{cri.NamespaceMode_CONTAINER, cri.NamespaceMode_POD} {
		t.Run(mode.String(), func(t *testing.T) {
			p := n.PodConfig("exec-ends-" + strings.ToLower(mode.String()))
			p.Linux.SecurityContext.NamespaceOptions.Pid = mode
			pod := n.RunPod(p)
			c := n.ContainerConfig("main", "sh", "-c", "while [ ! -e /tmp/end ]; do sleep 0.05; done")
			c.Linux.SecurityContext.NamespaceOptions.Pid = mode
			id := n.Run(pod, p, c)
			var out Buffer
			o := remotecommand.StreamOptions{Stdout: &out}
			url, done := n.ExecURL(id, o, "sh", "-c", "echo there; exec sleep 1000"), make(chan error, 1)
			go func() { done <- Executor(t, "SPDY", url).StreamWithContext(n.Ctx(), o) }()
			if !out.Await("there") {
				t.Fatal("it does not run")
			}
			n.Exec(id, "touch", "/tmp/end")
			select {
			case err := <-done:
				if err == nil {
					t.Error("the exec has ended well, want an error")
				}
			case <-n.Ctx().Done():
				t.Fatal("the exec goes on without its container")
			}
		})
	}
}

// The daemon's end does not wait for people's shells, and leaves none behind: nor
// what ExecSync runs, when it is killed.
func TestStreamsEndWithCrid(t *testing.T) {
	n, _, _, id := streamNode(t, "crid-ends")
	for name, end := range map[string]func(){"stopped": n.Stop, "killed": n.Kill9} {
		t.Run(name, func(t *testing.T) {
			var out, terminal Buffer
			o := remotecommand.StreamOptions{Stdin: endless(t), Stdout: &out}
			tty := remotecommand.StreamOptions{Stdin: endless(t), Stdout: &terminal, Tty: true}
			url, done := n.ExecURL(id, o, "sh", "-c", "echo there; sleep 661"), make(chan error, 2)
			go func() { done <- Executor(t, "WebSocket", url).StreamWithContext(n.Ctx(), o) }()
			ttyURL := n.ExecURL(id, tty, "sh", "-c", "echo there; sleep 661")
			go func() { done <- Executor(t, "SPDY", ttyURL).StreamWithContext(n.Ctx(), tty) }()
			if !out.Await("there") || !terminal.Await("there") {
				t.Fatal("it does not run")
			}
			if name == "killed" {
				go func() {
					_, _ = n.Runtime.ExecSync(n.Ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "sleep 662; true"}})
				}()
				n.Eventually("ExecSync runs", func() bool { return strings.Contains(n.Exec(id, "ps", "-o", "args"), "sleep 662") })
			}
			end()
			for range 2 {
				// To a client of SPDY a connection that just ends is a good end.
				if err := <-done; err == nil && name == "stopped" {
					t.Error("the stream has ended well, want an error")
				}
			}
			n.Start()
			n.Eventually("the execs are gone", func() bool { return !strings.Contains(n.Exec(id, "ps", "-o", "args"), "sleep 66") })
		})
	}
}

// crictl is the client that people use on a node.
func execCrictl(t *testing.T, n *Node, id string) {
	crictl, err := exec.LookPath("crictl")
	if err != nil {
		crictl = "/tmp/crictl"
		if _, serr := os.Stat(crictl); serr != nil {
			t.Skipf("crictl is not installed: %v, %v", err, serr)
		}
	}
	for _, transport := range []string{"spdy", "websocket"} {
		cmd := exec.CommandContext(n.Ctx(), crictl, "-r", "unix://"+n.Socket, "exec", "-i", "--transport", transport, id, "sh", "-c", "cat; exit 3")
		cmd.Stdin = strings.NewReader("through crictl\n")
		out, err := cmd.Output()
		var exit *exec.ExitError
		if string(out) != "through crictl\n" || !errors.As(err, &exit) {
			t.Errorf("crictl exec over %s = %q, %v, want what was sent and an exit code", transport, out, err)
		}
	}
}
