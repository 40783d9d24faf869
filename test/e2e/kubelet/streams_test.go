package kubelet

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"

	"github.com/cridproject/crid/test/e2e"
)

// Streams through kubelet's port, by the clients that kubectl is made of, in both of
// their transports.
func TestStreams(t *testing.T) {
	k := newKubelet(t, options{})
	k.run("kinds", `
		initContainers:
		- name: side
			image: IMAGE
			restartPolicy: Always
			command: [sleep, "1000"]
			env: [{name: WHO, value: side}]
		- name: init
			image: IMAGE
			command: [sh, -c, "until [ -e /tmp/go ]; do sleep 0.05; done"]
			env: [{name: WHO, value: init}]
		containers:
		- name: main
			image: IMAGE
			command: [sleep, "1000"]
			env: [{name: WHO, value: main}]
	`)
	k.run("ports", `
		containers:
		- name: page
			image: IMAGE
			command: [httpd, -f, -p, "80", -h, /www]
			readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 1, timeoutSeconds: 60}
		- name: echo
			image: IMAGE
			command: [nc, -ll, -p, "7", -e, cat]
		- name: count
			image: IMAGE
			command: [nc, -ll, -p, "8", -e, wc, -c]
	`)
	for _, transport := range e2e.Transports {
		name := strings.ToLower(transport)
		k.run("cat-"+name, `
			containers:
			- name: plain
				image: IMAGE
				stdin: true
				command: [sh, -c, "while read l; do echo out $l; echo err $l >&2; done"]
			- name: once
				image: IMAGE
				stdin: true
				stdinOnce: true
				command: [sh, -c, "cat; echo the end"]
			- name: terminal
				image: IMAGE
				stdin: true
				tty: true
				command: [sh, -c, "trap 'stty size' WINCH; until read a; do :; done; echo got $a; sleep 1000"]
		`)
	}
	init := k.await("kinds", "has its init container", func(p *corev1.Pod) bool {
		s := container(p, "init")
		return s != nil && running(s)
	})
	if side := container(init, "side"); !started(side) {
		t.Errorf("the sidecar is %v while the init container runs", side)
	}
	t.Run("ExecInInitContainer", func(t *testing.T) {
		k := k.within(t)
		for _, transport := range e2e.Transports {
			k.execIn(t, transport, "init")
		}
	})
	k.exec("kinds", "init", "touch", "/tmp/go")
	k.await("kinds", "is ready", ready)
	k.await("ports", "is ready", ready)
	for _, transport := range e2e.Transports {
		k.await("cat-"+strings.ToLower(transport), "is ready", ready)
		t.Run(transport, func(t *testing.T) {
			t.Run("Exec", func(t *testing.T) { testExec(t, k.within(t), transport) })
			t.Run("Terminal", func(t *testing.T) { testTerminal(t, k.within(t), transport) })
			t.Run("Attach", func(t *testing.T) { testAttach(t, k.within(t), transport) })
			t.Run("PortForward", func(t *testing.T) { testPortForward(t, k.within(t), transport) })
		})
	}
	t.Run("Run", func(t *testing.T) { testRun(t, k.within(t)) })
	t.Run("RunningPods", func(t *testing.T) { testRunningPods(t, k.within(t)) })
}

// wantExit checks for an exit code, which clients get as an error when it is not 0.
func wantExit(t *testing.T, what string, err error, code int) {
	t.Helper()
	exit, _ := errors.AsType[utilexec.CodeExitError](err)
	if code == 0 && err != nil || exit.Code != code {
		t.Errorf("%s = %v, want exit code %d", what, err, code)
	}
}

// execIn runs something in a container of the pod kinds, which has its own name in $WHO.
func (k *kubelet) execIn(t *testing.T, transport, name string) {
	t.Helper()
	var out, errOut bytes.Buffer
	o := remotecommand.StreamOptions{Stdin: strings.NewReader("in\n"), Stdout: &out, Stderr: &errOut}
	// cat ends: the end of stdin has come to it.
	wantExit(t, "exec in "+name, k.stream(transport, "exec", "kinds", name, o, "sh", "-c", "cat; echo $WHO; echo err >&2; exit 7"), 7)
	if out.String() != "in\n"+name+"\n" || errOut.String() != "err\n" {
		t.Errorf("exec in %s: stdout, stderr = %q, %q, want in, %s; err", name, &out, &errOut, name)
	}
}

// endless is more stdin than anything reads.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func testExec(t *testing.T, k *kubelet, transport string) {
	k.execIn(t, transport, "main")
	k.execIn(t, transport, "side")
	var out bytes.Buffer
	wantExit(t, "exec of true", k.stream(transport, "exec", "kinds", "main", remotecommand.StreamOptions{Stdout: &out}, "true"), 0)
	err := k.stream(transport, "exec", "kinds", "main", remotecommand.StreamOptions{Stdout: &out}, "sh", "-c", "kill -9 $$")
	wantExit(t, "exec of what a signal ends", err, 128+9)
	err = k.stream(transport, "exec", "kinds", "main", remotecommand.StreamOptions{Stdout: &out}, "/no/such")
	if err == nil || !strings.Contains(err.Error(), "/no/such") {
		t.Errorf("exec of a missing program = %v, want an error that names it", err)
	}
	err = k.stream(transport, "exec", "kinds", "init", remotecommand.StreamOptions{Stdout: &out}, "true")
	if err == nil || !strings.Contains(err.Error(), "container not found") {
		t.Errorf("exec in an init container that has ended = %v, want an error that says so", err)
	}
	// Large both ways, and whole.
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
	out.Reset()
	o := remotecommand.StreamOptions{Stdin: bytes.NewReader(big), Stdout: &out}
	wantExit(t, "exec of cat", k.stream(transport, "exec", "kinds", "main", o, "cat"), 0)
	if !bytes.Equal(out.Bytes(), big) {
		t.Errorf("4 MiB through cat: %d bytes came back, or others", out.Len())
	}
	if transport != "SPDY" {
		return // kubelet itself drops the end for clients of WebSockets that still send
	}
	// The outcome comes to who still talks.
	for range 5 {
		out.Reset()
		o = remotecommand.StreamOptions{Stdin: endless{}, Stdout: &out}
		wantExit(t, "exec that does not read", k.stream(transport, "exec", "kinds", "main", o, "sh", "-c", "head -c 1000000 /dev/zero; exit 7"), 7)
		if out.Len() != 1000000 {
			t.Errorf("%d of 1000000 bytes came", out.Len())
		}
	}
}

// sizes is a client's terminal that is resized.
type sizes chan remotecommand.TerminalSize

func (s sizes) Next() *remotecommand.TerminalSize {
	size, ok := <-s
	if !ok {
		return nil
	}
	return &size
}

// terminal is a person at a terminal.
type terminal struct {
	t     *testing.T
	shown e2e.Buffer
	keys  *io.PipeWriter
	sizes sizes
	done  chan error
}

// sit begins a stream with a terminal of 40 lines of 100 characters.
func (k *kubelet) sit(t *testing.T, transport, kind, pod, name string, args ...string) *terminal {
	in, keys := io.Pipe()
	s := &terminal{t: t, keys: keys, sizes: make(sizes, 1), done: make(chan error, 1)}
	s.sizes <- remotecommand.TerminalSize{Width: 100, Height: 40}
	t.Cleanup(func() { close(s.sizes); _ = keys.Close() })
	o := remotecommand.StreamOptions{Stdin: in, Stdout: &s.shown, Tty: true, TerminalSizeQueue: s.sizes}
	go func() { s.done <- k.stream(transport, kind, pod, name, o, args...) }()
	return s
}

func (s *terminal) types(text string) {
	s.t.Helper()
	if _, err := io.WriteString(s.keys, text); err != nil {
		s.t.Fatal(err)
	}
}

func (s *terminal) expects(text string) {
	s.t.Helper()
	if !s.shown.Await(text) {
		s.t.Fatalf("the terminal shows %q, want %q", s.shown.String(), text)
	}
}

func testTerminal(t *testing.T, k *kubelet, transport string) {
	s := k.sit(t, transport, "exec", "kinds", "main", "sh", "-c",
		`trap 'stty size' WINCH; stty size; echo $TERM; until read a; do :; done; echo "got $a"; read b; exit 5`)
	s.expects("40 100\r\nxterm\r\n")
	s.sizes <- remotecommand.TerminalSize{Width: 33, Height: 22}
	s.expects("22 33\r\n")
	s.types("x\n")
	s.expects("got x\r\n")
	s.types("y\n")
	wantExit(t, "exec with a terminal", <-s.done, 5)
}

func testAttach(t *testing.T, k *kubelet, transport string) {
	pod := "cat-" + strings.ToLower(transport)
	t.Run("Stdin", func(t *testing.T) {
		var out, errOut e2e.Buffer
		in, said := io.Pipe()
		done := make(chan error, 1)
		go func() {
			done <- k.stream(transport, "attach", pod, "plain", remotecommand.StreamOptions{Stdin: in, Stdout: &out, Stderr: &errOut})
		}()
		for _, word := range []string{"one", "two"} {
			if _, err := io.WriteString(said, word+"\n"); err != nil {
				t.Fatal(err)
			}
			if !out.Await("out "+word+"\n") || !errOut.Await("err "+word+"\n") {
				t.Fatalf("stdout %q, stderr %q, want both to have %s", out.String(), errOut.String(), word)
			}
		}
		_ = said.Close()
		if err := <-done; err != nil {
			t.Errorf("an attachment whose stdin ends = %v, want nil", err)
		}
	})
	t.Run("StdinOnce", func(t *testing.T) {
		var out e2e.Buffer
		o := remotecommand.StreamOptions{Stdin: strings.NewReader("all I say\n"), Stdout: &out}
		if err := k.stream(transport, "attach", pod, "once", o); err != nil {
			t.Error(err)
		}
		// Its stdin has ended with its client, and so has it.
		k.eventually("the container ends", func() error {
			log, err := get(logURL(pod, "once", "previous", "true"))
			if err == nil && log != "all I say\nthe end\n" {
				err = fmt.Errorf("its log is %q", log)
			}
			return err
		})
	})
	t.Run("Terminal", func(t *testing.T) {
		s := k.sit(t, transport, "attach", pod, "terminal")
		s.expects("40 100\r\n") // a new client's size comes to it too
		s.sizes <- remotecommand.TerminalSize{Width: 33, Height: 22}
		s.expects("22 33\r\n")
		s.types("x\n")
		s.expects("got x\r\n")
	})
}

func testPortForward(t *testing.T, k *kubelet, transport string) {
	conn, _, err := e2e.Dialer(t, transport, podURL("portForward", "ports", "", nil)).Dial("portforward.k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	talk := func(request, port, text string) (answer, failure string) {
		t.Helper()
		data, errs := e2e.Forward(t, conn, request, port)
		defer conn.RemoveStreams(data, errs)
		if _, err := io.WriteString(data, text); err != nil {
			t.Fatal(err)
		}
		_ = data.Close() // this side's half: wc and cat answer after it
		a, _ := io.ReadAll(data)
		f, _ := io.ReadAll(errs)
		return string(a), string(f)
	}
	standing, _ := e2e.Forward(t, conn, "standing", "7")
	if a, f := talk("closed", "9", "x"); a != "" || !strings.Contains(f, "port 9") || !strings.Contains(f, "connection refused") {
		t.Errorf("a port that nobody listens on = %q, %q, want an error that says so", a, f)
	}
	if a, f := talk("half", "8", "1234567"); strings.TrimSpace(a) != "7" || f != "" {
		t.Errorf("who answers after its client's end = %q, %q", a, f)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			data, errs := e2e.Forward(t, conn, "many"+strconv.Itoa(i), "80")
			_, _ = io.WriteString(data, "GET / HTTP/1.0\r\n\r\n")
			a, _ := io.ReadAll(data)
			_ = data.Close()
			f, _ := io.ReadAll(errs)
			if !strings.Contains(string(a), "hello from a pod") || len(f) > 0 {
				t.Errorf("page %d = %q, %q", i, a, f)
			}
		})
	}
	wg.Wait()
	// Not harmed by its neighbours, and whole.
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	go func() {
		_, _ = standing.Write(big)
		_ = standing.Close()
	}()
	if back, err := io.ReadAll(standing); err != nil || !bytes.Equal(back, big) {
		t.Errorf("1 MiB through an echo: %d bytes came back, or others; %v", len(back), err)
	}
}

// /run is what people call with curl.
func testRun(t *testing.T, k *kubelet) {
	call := func(name, cmd string) (int, string) {
		r, err := client.Post(podURL("run", "kinds", name, url.Values{"cmd": {cmd}}), "", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, string(b)
	}
	for _, name := range []string{"main", "side"} {
		if code, out := call(name, "env"); code != http.StatusOK || !strings.Contains(out, "WHO="+name+"\n") {
			t.Errorf("/run in %s = %d, %q", name, code, out)
		}
	}
	if code, out := call("main", "false"); code != http.StatusInternalServerError || !strings.Contains(out, "exited with 1") {
		t.Errorf("/run of false = %d, %q", code, out)
	}
}

// /runningpods is what the runtime says that runs, by kubelet's names.
func testRunningPods(t *testing.T, k *kubelet) {
	var list corev1.PodList
	if err := getJSON("/runningpods/", &list); err != nil {
		t.Fatal(err)
	}
	running := make(map[string][]string)
	for _, p := range list.Items {
		known, err := k.pod(strings.TrimSuffix(p.Name, "-"+nodeName))
		if err != nil || p.Namespace != namespace || p.UID != known.UID {
			t.Errorf("running pod %s/%s has UID %s, want %v; %v", p.Namespace, p.Name, p.UID, known, err)
		}
		for _, c := range p.Spec.Containers {
			running[p.Name] = append(running[p.Name], c.Name)
			// kubelet shows the image's digest as the runtime has it.
			if !strings.Contains(c.Image, "sha256:") {
				t.Errorf("container %s of %s has the image %q", c.Name, p.Name, c.Image)
			}
		}
		slices.Sort(running[p.Name])
	}
	for name, want := range map[string][]string{
		"kinds-" + nodeName: {"main", "side"}, "ports-" + nodeName: {"count", "echo", "page"},
	} {
		if !slices.Equal(running[name], want) {
			t.Errorf("of %s there run %v, want %v", name, running[name], want)
		}
	}
}
