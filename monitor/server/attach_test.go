package server

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
	"github.com/cridproject/crid/monitor"
)

// client is the other ends of what an attachment was given.
type client struct {
	in       *os.File // nil without
	out, err *os.File // nil without
}

func (c *client) close() {
	for _, f := range []*os.File{c.in, c.out, c.err} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// attach attaches to the streams that are named: "in", "out" and "err".
func (n *node) attach(id, streams string) *client {
	n.t.Helper()
	c, err := n.tryAttach(id, streams)
	if err != nil {
		n.t.Fatalf("Attach(%s) = %v", id, err)
	}
	n.t.Cleanup(c.close)
	return c
}

func (n *node) tryAttach(id, streams string) (*client, error) {
	c := new(client)
	var theirs [3]*os.File
	defer func() {
		for _, f := range theirs {
			if f != nil {
				_ = f.Close()
			}
		}
	}()
	for i, place := range []struct {
		name string
		ours **os.File
	}{{"in", &c.in}, {"out", &c.out}, {"err", &c.err}} {
		if !strings.Contains(streams, place.name) {
			continue
		}
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		if *place.ours, theirs[i] = r, w; i == 0 {
			*place.ours, theirs[i] = w, r
		}
	}
	err := n.client.Attach(context.Background(), monitor.AttachRequest{ID: id}, theirs)
	if err != nil {
		c.close()
	}
	return c, err
}

// line reads until the next newline.
func line(t *testing.T, f *os.File) string {
	t.Helper()
	var got []byte
	for b := make([]byte, 1); len(got) == 0 || got[len(got)-1] != '\n'; {
		if _, err := f.Read(b); err != nil {
			t.Fatalf("read = %v after %q, want a line", err, got)
		}
		got = append(got, b[0])
	}
	return string(got)
}

// rest reads to the end.
func rest(t *testing.T, f *os.File) string {
	t.Helper()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Errorf("read to the end = %v", err)
	}
	return string(b)
}

func say(t *testing.T, f *os.File, text string) {
	t.Helper()
	if _, err := io.WriteString(f, text); err != nil {
		t.Fatalf("write %q = %v", text, err)
	}
}

// runStdin creates and starts a container that keeps a stdin.
func (n *node) runStdin(id string, once bool, args ...string) *monitor.Hold {
	n.t.Helper()
	r := n.request(id, n.spec(args...))
	r.Stdin, r.StdinOnce = true, once
	h := n.create(r)
	n.start(id)
	return h
}

func TestAttachStdinOnce(t *testing.T) {
	n := newNode(t)
	h := n.runStdin("a", true, "sh", "-c", "cat; echo end >&2; exit 3")
	early := n.attach("a", "out err")
	a := n.attach("a", "in out err")
	// Whose client has come keeps the only copy.
	_ = h.Stdin.Close()
	say(t, a.in, "one\n")
	if got := line(t, early.out) + line(t, a.out); got != "one\none\n" {
		t.Errorf("attached clients got %q, want the line each", got)
	}
	late := n.attach("a", "in out")
	say(t, late.in, "two\n")
	if got := line(t, late.out); got != "two\n" {
		t.Errorf("who came late got %q, want what was written from then on", got)
	}
	list, err := n.client.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range list {
		if l.Hold.Stdin != nil {
			t.Error("List hands out a copy of a stdin that is to be closed")
		}
		l.Hold.Close()
	}
	// A client that vanishes closes it too.
	_ = a.in.Close()
	for who, f := range map[string]*os.File{"early": early.out, "with stdin": a.out} {
		if got := rest(t, f); got != "two\n" {
			t.Errorf("%s: after the end of stdin got %q, want two", who, got)
		}
	}
	if got := rest(t, early.err); got != "end\n" {
		t.Errorf("stderr = %q, want end", got)
	}
	if e := n.exit("a"); e.Code != 3 {
		t.Errorf("exit = %+v, want 3", e)
	}
	if got := texts(n.log("a")); got != "stdout F one\nstdout F two\nstderr F end\n" {
		t.Errorf("log = %q", got)
	}
	if _, err := n.tryAttach("a", "out"); !errkind.Is(err, errkind.BadState) {
		t.Errorf("Attach after the exit = %v, want bad state", err)
	}
}

func TestAttachStdinStaysOpen(t *testing.T) {
	n := newNode(t)
	n.runStdin("a", false, "cat")
	watcher := n.attach("a", "out")
	for _, text := range []string{"one\n", "two\n"} {
		a := n.attach("a", "in out")
		say(t, a.in, text)
		if got := line(t, a.out) + line(t, watcher.out); got != text+text {
			t.Errorf("clients got %q, want %q each", got, text)
		}
		_ = a.in.Close()
		if got := rest(t, a.out); got != "" {
			t.Errorf("after its stdin had ended a client got %q, want the end", got)
		}
	}
	// Those that are attached see the end when the container is killed.
	n.delete("a")
	if got := rest(t, watcher.out); got != "" {
		t.Errorf("at the end a client got %q, want the end", got)
	}
}

func TestAttachTerminal(t *testing.T) {
	n := newNode(t)
	s := n.spec("sh", "-c", "stty -echo; echo ready; read a; echo got $a; read b; echo got $b; exit 4")
	s.Process.Terminal = true
	r := n.request("a", s)
	r.Stdin, r.StdinOnce = true, true
	n.create(r)
	watcher := n.attach("a", "out")
	if _, err := n.tryAttach("a", "out err"); !errkind.Is(err, errkind.Invalid) {
		t.Errorf("Attach to a terminal's stderr = %v, want invalid", err)
	}
	n.start("a")
	if got := line(t, watcher.out); got != "ready\r\n" {
		t.Errorf("terminal wrote %q, want ready", got)
	}
	a := n.attach("a", "in out")
	say(t, a.in, "one\n")
	if got := line(t, a.out); got != "got one\r\n" {
		t.Errorf("terminal answered %q, want got one", got)
	}
	// A terminal has no end of file of its own: only this client goes.
	_ = a.in.Close()
	if got := rest(t, a.out); got != "" {
		t.Errorf("after its stdin had ended a client got %q, want the end", got)
	}
	b := n.attach("a", "in out")
	say(t, b.in, "two\n")
	if got := rest(t, b.out); got != "got two\r\n" {
		t.Errorf("terminal answered %q, want got two", got)
	}
	if got := rest(t, watcher.out); got != "got one\r\ngot two\r\n" {
		t.Errorf("terminal wrote %q", got)
	}
	if e := n.exit("a"); e.Code != 4 {
		t.Errorf("exit = %+v, want 4", e)
	}
}

// TestAttachLastWords: an exit does not wait for a client, and the client gets
// all that was written before.
func TestAttachLastWords(t *testing.T) {
	n := newNode(t)
	n.create(n.request("a", n.spec("sh", "-c", "seq 60000")))
	a := n.attach("a", "out err")
	n.start("a")
	n.exit("a")
	n.delete("a")
	got := rest(t, a.out)
	for i, l := range strings.Split(strings.TrimSuffix(got, "\n"), "\n") {
		if l != strconv.Itoa(i+1) {
			t.Fatalf("line %d = %q: lost or out of order", i+1, l)
		}
	}
	if n := strings.Count(got, "\n"); n != 60000 {
		t.Errorf("client got %d lines, want 60000", n)
	}
	if got := rest(t, a.err); got != "" {
		t.Errorf("stderr = %q, want its end", got)
	}
}

// TestAttachStuckClient: one that does not read is detached, the others and the
// log get everything.
func TestAttachStuckClient(t *testing.T) {
	n := newNodeWith(t, Options{AttachStall: 50 * time.Millisecond})
	const lines = 400000
	n.create(n.request("a", n.spec("sh", "-c", fmt.Sprintf("seq %d", lines))))
	stuck := n.attach("a", "out")
	reader := n.attach("a", "out")
	n.start("a")
	if got := strings.Count(rest(t, reader.out), "\n"); got != lines {
		t.Errorf("who reads got %d lines, want %d", got, lines)
	}
	n.exit("a")
	if got := strings.Count(n.log("a"), "\n"); got != lines {
		t.Errorf("log has %d lines, want %d", got, lines)
	}
	if got := strings.Count(rest(t, stuck.out), "\n"); got == 0 || got >= lines {
		t.Errorf("who did not read has %d lines, want some", got)
	}
}

// TestAttachClientsVanish: they leave nothing, whatever they had attached.
func TestAttachClientsVanish(t *testing.T) {
	n := newNode(t)
	n.runStdin("a", false, "sleep", "1000")
	figures := func() monitor.DumpReply {
		d, err := n.client.Dump(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	before := figures()
	for _, streams := range []string{"out", "err", "in", "out err", "in out err"} {
		for range 10 {
			n.attach("a", streams).close()
		}
	}
	testutil.WaitFor(t, "the clients to be gone", func() bool {
		after := figures() // fewer, once what was there before is collected
		return after.FDs <= before.FDs && after.Goroutines <= before.Goroutines
	})
	for name, files := range map[string][]string{"none": nil, "unknown": {"console"}, "twice": {"stdout", "stdout"}} {
		if _, err := attachFiles(monitor.AttachRequest{Streams: files}, make([]*os.File, len(files))); err == nil {
			t.Errorf("streams %s: want an error", name)
		}
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	err = n.client.Attach(context.Background(), monitor.AttachRequest{ID: "a"}, [3]*os.File{nil, null, nil})
	if !errkind.Is(err, errkind.Invalid) || !strings.Contains(err.Error(), "stdout is neither a pipe nor a socket") {
		t.Errorf("Attach with a device = %v, want invalid", err)
	}
}

// TestAttachWithoutStdin: what the client writes has nowhere to go.
func TestAttachWithoutStdin(t *testing.T) {
	n := newNode(t)
	n.run("a", "sh", "-c", "read x; echo $?; sleep 1000")
	a := n.attach("a", "in out")
	if _, err := a.in.Write(bytes.Repeat([]byte("x"), 1<<20)); err == nil {
		t.Error("writing to a stdin that nobody reads succeeded, want an error")
	}
}
