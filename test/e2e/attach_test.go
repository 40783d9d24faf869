package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"k8s.io/client-go/tools/remotecommand"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// attached is a client that is attached.
type attached struct {
	in          *io.PipeWriter // nil without stdin
	out, errOut Buffer
	vanish      context.CancelFunc
	done        chan error
}

// attach attaches a client with stdout, and with what else it is told.
func (n *Node) attach(t *testing.T, transport, id string, stdin, stderr, tty bool) *attached {
	t.Helper()
	a := &attached{done: make(chan error, 1)}
	o := remotecommand.StreamOptions{Stdout: &a.out, Tty: tty}
	if stdin {
		o.Stdin, a.in = io.Pipe()
		t.Cleanup(func() { _ = a.in.Close() })
	}
	if stderr {
		o.Stderr = &a.errOut
	}
	ctx, vanish := context.WithCancel(n.Ctx())
	a.vanish = vanish
	executor := Executor(t, transport, n.AttachURL(id, o))
	go func() { a.done <- executor.StreamWithContext(ctx, o) }()
	return a
}

func (a *attached) say(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(a.in, text); err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, who string, b *Buffer, text string) {
	t.Helper()
	if !b.Await(text) {
		t.Fatalf("%s got %q, want %q", who, b.String(), text)
	}
}

func TestAttach(t *testing.T) {
	n, p, pod, _ := streamNode(t, "attach")
	for _, test := range []struct {
		name string
		run  func(*testing.T, *Node, *cri.PodSandboxConfig, string)
	}{
		{"Many", attachMany},
		{"StdinOnce", attachStdinOnce},
		{"Terminal", attachTerminal},
		{"WholeOutput", attachWholeOutput},
		{"Large", attachLarge},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, n, p, pod) })
	}
}

func attachMany(t *testing.T, n *Node, p *cri.PodSandboxConfig, pod string) {
	for _, transport := range Transports {
		t.Run(transport, func(t *testing.T) {
			c := n.ContainerConfig("cat-"+strings.ToLower(transport), "sh", "-c", "while read l; do echo out $l; echo err $l >&2; [ $l != end ] || exit 3; done")
			c.Stdin = true
			id := n.Run(pod, p, c)
			one := n.attach(t, transport, id, true, true, false)
			two := n.attach(t, transport, id, true, false, false)
			// Who is attached sees what comes from then on: talk until both do.
			for i, a := range []*attached{one, two} {
				hello := fmt.Sprintf("hello%d", i)
				a.say(t, hello+"\n")
				expect(t, "the client", &a.out, "out "+hello)
			}
			two.say(t, "both\n")
			expect(t, "the first client", &one.out, "out both")
			expect(t, "the second client", &two.out, "out both")
			expect(t, "the first client's stderr", &one.errOut, "err both")
			// One goes, the other stays, and so does the container.
			one.vanish()
			<-one.done
			two.say(t, "alone\n")
			expect(t, "the second client", &two.out, "out alone")
			// One whose stdin ends is detached; without stdin_once it may come again.
			_ = two.in.Close()
			if err := <-two.done; err != nil {
				t.Errorf("Attach whose stdin has ended = %v, want nil", err)
			}
			three := n.attach(t, transport, id, true, true, false)
			three.say(t, "again\n")
			expect(t, "the third client", &three.out, "out again")
			three.say(t, "end\n")
			if err := <-three.done; err != nil {
				t.Errorf("Attach until the container's exit = %v, want nil", err)
			}
			if got := three.errOut.String(); !strings.HasSuffix(got, "err end\n") {
				t.Errorf("stderr = %q, want all until the exit", got)
			}
			if s := n.WaitExit(id); s.ExitCode != 3 {
				t.Errorf("exit code %d, want 3", s.ExitCode)
			}
			log := n.ContainerLog(p, c)
			for _, line := range []string{"out hello0", "out hello1", "out both", "out alone", "out again", "err end"} {
				if !strings.Contains(log, line) {
					t.Errorf("the log lacks %q", line)
				}
			}
		})
	}
}

func attachStdinOnce(t *testing.T, n *Node, p *cri.PodSandboxConfig, pod string) {
	for i, name := range []string{"end of stdin", "vanished client"} {
		t.Run(name, func(t *testing.T) {
			c := n.ContainerConfig(fmt.Sprintf("cat%d", i), "sh", "-c", "cat; echo the end")
			c.Stdin, c.StdinOnce = true, true
			id := n.Run(pod, p, c)
			a := n.attach(t, "SPDY", id, true, false, false)
			a.say(t, "hello\n")
			expect(t, "the client", &a.out, "hello\n")
			if i == 0 {
				_ = a.in.Close()
				if err := <-a.done; err != nil || a.out.String() != "hello\nthe end\n" {
					t.Errorf("Attach = %q, %v, want all until the exit", a.out.String(), err)
				}
			} else {
				a.vanish()
				<-a.done
			}
			if s := n.WaitExit(id); s.ExitCode != 0 {
				t.Errorf("exit code %d, want 0", s.ExitCode)
			}
		})
	}
}

func attachTerminal(t *testing.T, n *Node, p *cri.PodSandboxConfig, pod string) {
	for _, transport := range Transports {
		t.Run(transport, func(t *testing.T) {
			c := n.ContainerConfig("sh-"+strings.ToLower(transport), "sh", "-c", "trap 'stty size' WINCH; while :; do read l && echo got $l; done")
			c.Stdin, c.Tty = true, true
			id := n.Run(pod, p, c)
			in, typed := io.Pipe()
			defer typed.Close()
			var out Buffer
			sizes := make(queue, 1)
			defer close(sizes)
			o := remotecommand.StreamOptions{Stdin: in, Stdout: &out, Tty: true, TerminalSizeQueue: sizes}
			ctx, vanish := context.WithCancel(n.Ctx())
			defer vanish()
			executor, done := Executor(t, transport, n.AttachURL(id, o)), make(chan error, 1)
			go func() { done <- executor.StreamWithContext(ctx, o) }()
			_, _ = io.WriteString(typed, "x\n")
			expect(t, "the client", &out, "got x\r\n")
			sizes <- remotecommand.TerminalSize{Width: 44, Height: 11}
			expect(t, "the client", &out, "11 44\r\n")
			vanish()
			<-done
			again := n.attach(t, transport, id, true, false, true)
			again.say(t, "y\n")
			expect(t, "who came again", &again.out, "got y\r\n")
			if _, err := n.Runtime.StopContainer(n.Ctx(), &cri.StopContainerRequest{ContainerId: id}); err != nil {
				t.Fatal(err)
			}
			if err := <-again.done; err != nil {
				t.Errorf("Attach until the container was stopped = %v, want nil", err)
			}
		})
	}
}

// All of a large output comes to who is attached before it begins, and to who
// wants streams that are not there what other runtimes give.
func attachWholeOutput(t *testing.T, n *Node, p *cri.PodSandboxConfig, pod string) {
	before := n.Figures()
	c := n.ContainerConfig("big", "sh", "-c", "head -c 33554432 /dev/zero; echo end")
	id := n.CreateContainer(pod, p, c)
	a := n.attach(t, "SPDY", id, true, true, false) // its stdin is thrown away: the container has none
	a.say(t, "nobody reads this\n")
	n.Eventually("the client is attached", func() bool { return strings.Contains(n.monitorLog(), `"Attached a client" container="`+id) })
	n.StartContainer(id)
	if err := <-a.done; err != nil {
		t.Error(err)
	}
	if got := a.out.String(); len(got) != 33554432+4 || !strings.HasSuffix(got, "end\n") {
		t.Errorf("the client got %d bytes, want %d", len(got), 33554432+4)
	}
	n.Eventually("crid holds no more than before", func() bool { return !n.Figures().exceeds(before) })
	only := n.Run(pod, p, n.ContainerConfig("no-stdin", "sleep", "1000"))
	o := remotecommand.StreamOptions{Stdin: bytes.NewReader(nil)}
	err := Executor(t, "SPDY", n.AttachURL(only, o)).StreamWithContext(n.Ctx(), o)
	if err == nil || !strings.Contains(err.Error(), "none of the streams") {
		t.Errorf("Attach to a stdin that is not there = %v, want an error that says so", err)
	}
}

// What a container writes as fast as it can comes to its client whole, and is in
// its log. CRID_TEST_ATTACH is how many MiB.
func attachLarge(t *testing.T, n *Node, p *cri.PodSandboxConfig, pod string) {
	sizes := map[string]int{"SPDY": 96 << 20, "WebSocket": 16 << 20}
	if v, err := strconv.Atoi(os.Getenv("CRID_TEST_ATTACH")); err == nil {
		sizes = map[string]int{"SPDY": v << 20, "WebSocket": v << 20}
	}
	for transport, size := range sizes {
		t.Run(transport, func(t *testing.T) {
			c := n.ContainerConfig("large-"+strings.ToLower(transport), "sh", "-c",
				fmt.Sprintf("mkfifo /tmp/f; sha256sum </tmp/f >&2 & head -c %d /dev/urandom | tee /tmp/f; wait", size))
			id := n.CreateContainer(pod, p, c)
			sum, errOut := sha256.New(), new(Buffer)
			o := remotecommand.StreamOptions{Stdout: sum, Stderr: errOut}
			executor, done := Executor(t, transport, n.AttachURL(id, o)), make(chan error, 1)
			go func() { done <- executor.StreamWithContext(n.Ctx(), o) }()
			n.Eventually("the client is attached", func() bool { return strings.Contains(n.monitorLog(), `"Attached a client" container="`+id) })
			n.StartContainer(id)
			if err := <-done; err != nil {
				t.Error(err)
			}
			if got, want := fmt.Sprintf("%x", sum.Sum(nil)), errOut.String(); !strings.HasPrefix(want, got) {
				t.Errorf("the client got what has the sum %s, the container wrote %s", got, want)
			}
			n.WaitExit(id)
			path := filepath.Join(p.LogDirectory, c.LogPath)
			if st, err := os.Stat(path); err != nil || st.Size() < int64(size) {
				t.Errorf("the log: %v, %v, want more than %d bytes", st, err, size)
			}
			_ = os.Remove(path)
		})
	}
}
