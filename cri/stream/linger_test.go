package stream_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"

	"github.com/cridproject/crid/cri/stream"
	"github.com/cridproject/crid/sandbox"
)

// endless is more stdin than anything reads.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// proxy passes connections to target as kubelet and API servers do: both ends go when
// one way has ended.
func proxy(t *testing.T, target string) (address string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				_ = client.Close()
				continue
			}
			ended := make(chan struct{}, 2)
			pass := func(to, from net.Conn) {
				_, _ = io.Copy(to, from)
				ended <- struct{}{}
			}
			go pass(server, client)
			go pass(client, server)
			go func() {
				<-ended
				_ = client.Close()
				_ = server.Close()
			}()
		}
	}()
	return l.Addr().String()
}

// What a program has said, and how it ended, reaches clients that still talk to it:
// the server does not close a connection on which something unread lies, since the
// kernel makes a reset of that and drops what was not yet sent.
func TestWholeOutputForWhoStillTalks(t *testing.T) {
	const size, code = 1 << 20, 7
	s := serve(t, stream.Options{Runtime: runtime{func(_ context.Context, _ []string, s sandbox.Streams) (int, error) {
		if _, err := io.ReadFull(s.Stdin, make([]byte, 1)); err != nil {
			return 0, err
		}
		_, err := s.Stdout.Write(make([]byte, size))
		return code, err
	}}})
	for _, transport := range []string{"SPDY", "WebSocket"} {
		for range 10 {
			target, err := s.ExecURL("c", []string{"x"}, all)
			if err != nil {
				t.Fatal(err)
			}
			u, err := url.Parse(target)
			if err != nil {
				t.Fatal(err)
			}
			if transport == "SPDY" { // a WebSocket's client does not end by itself
				u.Host = proxy(t, u.Host)
			}
			var out bytes.Buffer
			err = run(t, transport, u.String(), &rest.Config{}, remotecommand.StreamOptions{Stdin: endless{}, Stdout: &out})
			exit, _ := errors.AsType[utilexec.CodeExitError](err)
			if exit.Code != code || out.Len() != size {
				t.Fatalf("%s: exec = %v with %d bytes, want exit code %d, %d", transport, err, out.Len(), code, size)
			}
		}
	}
}
