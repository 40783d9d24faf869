package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"

	"k8s.io/client-go/tools/portforward"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// serveEach answers each connection of l.
func serveEach(l net.Listener, answer func(*net.TCPConn)) {
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				answer(c.(*net.TCPConn))
			}()
		}
	}()
}

func echo(c *net.TCPConn) { _, _ = io.Copy(c, c) }

func portOf(l net.Listener) string { return strconv.Itoa(l.Addr().(*net.TCPAddr).Port) }

func TestPortForward(t *testing.T) {
	n, p, pod, _ := streamNode(t, "forward")
	n.Run(pod, p, n.ContainerConfig("www", "httpd", "-f", "-p", "8080", "-h", "/www"))
	v6 := n.ListenInPod(pod, "[::1]:0")
	serveEach(v6, echo)
	v4 := n.ListenInPod(pod, "127.0.0.1:0")
	serveEach(v4, echo)
	// Answers only when its client has ended, and then by itself.
	late := n.ListenInPod(pod, "127.0.0.1:0")
	serveEach(late, func(c *net.TCPConn) {
		text, _ := io.ReadAll(c)
		_, _ = fmt.Fprintf(c, "%d bytes", len(text))
	})
	// Ends its side first and listens on.
	heard := make(chan string, 8)
	first := n.ListenInPod(pod, "127.0.0.1:0")
	serveEach(first, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "that is all")
		_ = c.CloseWrite()
		text, _ := io.ReadAll(c)
		heard <- string(text)
	})
	rude := n.ListenInPod(pod, "127.0.0.1:0")
	serveEach(rude, func(c *net.TCPConn) {
		_, _ = c.Read(make([]byte, 1))
		_ = c.SetLinger(0) // a reset, not an end
	})
	before := n.Figures()
	for _, transport := range Transports {
		t.Run(transport, func(t *testing.T) {
			conn, protocol, err := Dialer(t, transport, n.PortForwardURL(pod)).Dial("portforward.k8s.io")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if protocol != "portforward.k8s.io" {
				t.Errorf("protocol %q", protocol)
			}
			request := 0
			talk := func(port, text string) (answer, failure string) {
				t.Helper()
				request++
				data, errs := Forward(t, conn, strconv.Itoa(request), port)
				if _, err := io.WriteString(data, text); err != nil {
					t.Fatal(err)
				}
				_ = data.Close()
				a, _ := io.ReadAll(data)
				f, _ := io.ReadAll(errs)
				conn.RemoveStreams(data, errs)
				return string(a), string(f)
			}
			n.Eventually("the server listens", func() bool {
				a, _ := talk("8080", "GET / HTTP/1.0\r\n\r\n")
				return strings.Contains(a, "hello from a pod")
			})
			// A port that nothing listens on costs its own connection and no other.
			standing, _ := Forward(t, conn, "standing", portOf(v4))
			if a, f := talk("9", "x"); a != "" || !strings.Contains(f, "connection refused") || !strings.Contains(f, "port 9") {
				t.Errorf("a refused port = %q, %q, want an error that says so", a, f)
			}
			if a, f := talk(portOf(rude), "xyz"); a != "" || f != "" {
				t.Errorf("a connection that was reset = %q, %q, want its end only", a, f)
			}
			if _, err := io.WriteString(standing, "still here"); err != nil {
				t.Error(err)
			}
			answer := make([]byte, len("still here"))
			if _, err := io.ReadFull(standing, answer); err != nil || string(answer) != "still here" {
				t.Errorf("the connection beside them = %q, %v", answer, err)
			}
			_ = standing.Close()
			if a, f := talk(portOf(v6), "by IPv6"); a != "by IPv6" {
				t.Errorf("a server of IPv6 alone = %q, %q", a, f)
			}
			if a, f := talk(portOf(late), "1234567"); a != "7 bytes" {
				t.Errorf("who answers after the end = %q, %q", a, f)
			}
			data, _ := Forward(t, conn, "first", portOf(first))
			text, _ := io.ReadAll(data)
			_, err = io.WriteString(data, "one more thing")
			_ = data.Close()
			if got := <-heard; err != nil || string(text) != "that is all" || got != "one more thing" {
				t.Errorf("after its own end the pod heard %q, the client %q, %v", got, text, err)
			}
			size := 64 << 20
			if transport == "WebSocket" {
				size = 8 << 20 // the race detector looks at each byte that is unmasked
			}
			forwardLarge(t, size, func(port string) io.ReadWriteCloser {
				data, _ := Forward(t, conn, "large", port)
				return data
			}, portOf(v4))
		})
	}
	t.Run("Client", func(t *testing.T) { forwardClient(t, n, pod) })
	n.Eventually("crid holds no more than before", func() bool { return !n.Figures().exceeds(before) })
}

// forwardLarge sends size bytes through an echo and compares what comes back.
func forwardLarge(t *testing.T, size int, dial func(port string) io.ReadWriteCloser, port string) {
	t.Helper()
	data := dial(port)
	chunk := make([]byte, 1<<20)
	seed := rand.NewChaCha8([32]byte{1})
	_, _ = seed.Read(chunk)
	sent, received := sha256.New(), sha256.New()
	var wg sync.WaitGroup
	wg.Go(func() {
		defer data.Close()
		for range size / len(chunk) {
			chunk[0]++
			_, _ = sent.Write(chunk)
			if _, err := data.Write(chunk); err != nil {
				t.Error(err)
				return
			}
		}
	})
	count, err := io.Copy(received, data)
	wg.Wait()
	if err != nil || count != int64(size) || !bytes.Equal(sent.Sum(nil), received.Sum(nil)) {
		t.Errorf("%d bytes through an echo: %d came back, %v, the same: %t", size, count, err, bytes.Equal(sent.Sum(nil), received.Sum(nil)))
	}
}

// forwardClient uses what kubectl uses.
func forwardClient(t *testing.T, n *Node, pod string) {
	t.Helper()
	l := n.ListenInPod(pod, "127.0.0.1:0")
	serveEach(l, echo)
	for _, transport := range Transports {
		stop, ready, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
		f, err := portforward.NewForStreaming(Dialer(t, transport, n.PortForwardURL(pod)), []string{"0:" + portOf(l)}, stop, ready, io.Discard, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		go func() { done <- f.ForwardPorts() }()
		select {
		case <-ready:
		case err := <-done:
			t.Fatalf("%s: ForwardPorts = %v", transport, err)
		}
		ports, err := f.GetPorts()
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0].Local))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(c, "hello")
			_ = c.(*net.TCPConn).CloseWrite()
			if text, err := io.ReadAll(c); err != nil || string(text) != "hello" {
				t.Errorf("%s: %q, %v", transport, text, err)
			}
			_ = c.Close()
		}
		close(stop)
		if err := <-done; err != nil {
			t.Errorf("%s: ForwardPorts = %v", transport, err)
		}
	}
}

func TestPortForwardHostNetwork(t *testing.T) {
	n := NewNode(t, NodeOptions{NoNetwork: true})
	p := n.PodConfig("host-forward")
	p.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	pod := n.RunPod(p)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	gone := make(chan struct{})
	serveEach(l, func(c *net.TCPConn) {
		echo(c)
		close(gone)
	})
	conn, _, err := Dialer(t, "SPDY", n.PortForwardURL(pod)).Dial("portforward.k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	data, _ := Forward(t, conn, "1", portOf(l))
	answer := make([]byte, 5)
	if _, err := io.WriteString(data, "hello"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(data, answer); err != nil || string(answer) != "hello" {
		t.Errorf("the node's own port = %q, %v", answer, err)
	}
	// The pod's side ends with the client.
	_ = conn.Close()
	ctx, cancel := context.WithTimeout(n.Ctx(), cleanupLimit)
	defer cancel()
	select {
	case <-gone:
	case <-ctx.Done():
		t.Error("the connection in the pod outlives its client")
	}
}
