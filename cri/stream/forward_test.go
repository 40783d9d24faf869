package stream_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/net/websocket"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/cridproject/crid/cri/stream"
	"github.com/cridproject/crid/internal/errkind"
)

// ports forwards each port to an echo, but for some.
type ports struct{ runtime }

func (ports) PortForward(_ context.Context, _ string, port uint16, stream io.ReadWriteCloser) error {
	switch port {
	case 9:
		return errkind.Errorf(errkind.Unavailable, "nothing listens on port 9")
	case 13:
		panic("a bug")
	case 500:
		return errors.New("the machine is broken")
	}
	_, err := io.Copy(stream, stream)
	return err
}

// What is wrong with one connection of a session is told on its own streams, and
// costs no other.
func TestForwardErrors(t *testing.T) {
	s := serve(t, stream.Options{Runtime: ports{}})
	u, err := s.PortForwardURL("s", nil)
	if err != nil {
		t.Fatal(err)
	}
	conn := dial(t, u, "portforward.k8s.io")
	defer conn.Close()
	open := func(kind, name, port string) httpstream.Stream {
		t.Helper()
		h := http.Header{}
		h.Set("streamType", kind)
		h.Set("port", port)
		if name != "" {
			h.Set("requestID", name)
		}
		s, err := conn.CreateStream(h)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	echo := func(data httpstream.Stream, text string) {
		t.Helper()
		got := make([]byte, len(text))
		if _, err := io.WriteString(data, text); err != nil {
			t.Error(err)
		}
		if _, err := io.ReadFull(data, got); err != nil || string(got) != text {
			t.Errorf("echo = %q, %v, want %q", got, err, text)
		}
	}
	open("error", "standing", "80")
	standing := open("data", "standing", "80")
	echo(standing, "one")
	for port, want := range map[string]string{
		"9": "nothing listens on port 9", "13": "bug", "0": "port 0: must be", "70000": "port 70000: must be", "-1": "port -1", "http": "must be between", "": "must be between",
	} {
		failure := open("error", "r"+port, port)
		data := open("data", "r"+port, port)
		if text, _ := io.ReadAll(failure); !strings.Contains(string(text), want) {
			t.Errorf("port %q = %q, want %q", port, text, want)
		}
		if text, _ := io.ReadAll(data); len(text) > 0 {
			t.Errorf("port %q: data %q", port, text)
		}
	}
	if _, err := io.ReadAll(open("nonsense", "x", "80")); err != nil {
		t.Errorf("a stream of no type = %v, want its end", err)
	}
	open("data", "twice", "80")
	if _, err := io.ReadAll(open("data", "twice", "80")); err != nil {
		t.Errorf("a second stream of a type = %v, want its end", err)
	}
	// Clients of old give no names.
	open("error", "", "80")
	echo(open("data", "", "80"), "two")
	echo(standing, "three")
}

// The protocol that has the ports in the CRI request.
func TestForwardWebSocket(t *testing.T) {
	s := serve(t, stream.Options{Runtime: ports{}})
	u, err := s.PortForwardURL("s", []int32{80, 9})
	if err != nil {
		t.Fatal(err)
	}
	ws, err := websocket.Dial("ws"+strings.TrimPrefix(u, "http"), "v4.channel.k8s.io", "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	ws.PayloadType = websocket.BinaryFrame
	if err := websocket.Message.Send(ws, append([]byte{0}, "hello"...)); err != nil {
		t.Fatal(err)
	}
	var got [4]string
	for got[0] == "" || len(got[0]) < 7 || !strings.Contains(got[3], "nothing listens") {
		var message []byte
		if err := websocket.Message.Receive(ws, &message); err != nil {
			t.Fatalf("%v, after %q", err, got)
		}
		got[message[0]] += string(message[1:])
	}
	for i, port := range []uint16{80, 80, 9, 9} {
		if p := binary.LittleEndian.AppendUint16(nil, port); !strings.HasPrefix(got[i], string(p)) {
			t.Errorf("channel %d begins with %q, want port %d", i, got[i], port)
		}
	}
	if got[0][2:] != "hello" || len(got[1]) != 2 {
		t.Errorf("port 80 says %q, %q, want hello and no error", got[0], got[1])
	}
	if u, err = s.PortForwardURL("s", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := websocket.Dial("ws"+strings.TrimPrefix(u, "http"), "v4.channel.k8s.io", "http://localhost"); err == nil {
		t.Error("a request without ports was served")
	}
}
