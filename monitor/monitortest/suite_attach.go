package monitortest

import (
	"io"
	"os"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/monitor"
)

// attach attaches to stdout, stderr and with stdin to that. What comes back is
// the other ends, stdin nil without.
func (s *suite) attach(c *conn, id string, stdin bool) (ours [3]*os.File) {
	s.t.Helper()
	var theirs [3]*os.File
	for i := range ours {
		if i == 0 && !stdin {
			continue
		}
		r, w, err := os.Pipe()
		if err != nil {
			s.t.Fatal(err)
		}
		if ours[i], theirs[i] = r, w; i == 0 {
			ours[i], theirs[i] = w, r
		}
	}
	s.t.Cleanup(func() { closeFiles(ours[:]...) })
	s.must("Attach", c.Attach(s.ctx, monitor.AttachRequest{ID: id}, theirs))
	for _, f := range theirs {
		// Still ours to close: a second owner would make this an error.
		if f != nil {
			s.must("Close of what Attach was given", f.Close())
		}
	}
	return ours
}

// wantNext reads as much as want is long.
func (s *suite) wantNext(f *os.File, want string) {
	s.t.Helper()
	b := make([]byte, len(want))
	if _, err := io.ReadFull(f, b); err != nil || string(b) != want {
		s.t.Errorf("an attached client read %q, %v, want %q", b, err, want)
	}
}

// wantEnd reads to the end, before which there is want.
func (s *suite) wantEnd(f *os.File, want string) {
	s.t.Helper()
	if b, err := io.ReadAll(f); err != nil || string(b) != want {
		s.t.Errorf("an attached client read %q, %v to the end, want %q", b, err, want)
	}
}

func (s *suite) say(f *os.File, text string) {
	s.t.Helper()
	_, err := io.WriteString(f, text)
	s.must("writing to a container", err)
}

// withStdin runs cat, with a stdin.
func (s *suite) runCat(c *conn, once bool) (id string, h *monitor.Hold) {
	s.t.Helper()
	r := s.request("cat")
	r.Stdin, r.StdinOnce = true, once
	h = s.create(c, r)
	s.must("Start", c.Start(s.ctx, r.ID))
	return r.ID, h
}

func (s *suite) attachEchoes() {
	c := s.connect()
	id, h := s.runCat(c, true)
	if h.Stdin == nil {
		s.t.Fatal("Create came without the stdin that crid keeps until a client has it")
	}
	watcher := s.attach(c, id, false)
	a := s.attach(c, id, true)
	s.must("Close", h.Stdin.Close())
	h.Stdin = nil
	s.say(a[0], "one")
	s.wantNext(watcher[1], "one")
	s.wantNext(a[1], "one")
	b := s.attach(c, id, true)
	s.say(b[0], "two")
	for _, f := range []*os.File{watcher[1], a[1], b[1]} {
		s.wantNext(f, "two")
	}
	if l := s.list(c)[id]; l.Hold.Stdin != nil {
		s.t.Error("List came with a stdin that a client's end is to close")
	}
	_ = a[0].Close() // the first that ends, ends it
	for _, f := range []*os.File{watcher[1], watcher[2], a[1], a[2], b[1], b[2]} {
		s.wantEnd(f, "")
	}
	s.wantCode(c.exit(id), 0)
}

func (s *suite) attachStdinStaysOpen() {
	c := s.connect()
	id, _ := s.runCat(c, false)
	watcher := s.attach(c, id, false)
	for range 3 {
		a := s.attach(c, id, true)
		s.say(a[0], "text")
		s.wantNext(a[1], "text")
		s.wantNext(watcher[1], "text")
		_ = a[0].Close()
		s.wantEnd(a[1], "")
		s.wantEnd(a[2], "")
	}
	if l := s.list(c)[id]; l.Exit != nil || l.Hold.Stdin == nil {
		s.t.Errorf("List: exit %v, stdin %v, want none and one", l.Exit, l.Hold.Stdin)
	}
	s.kill(c, id)
	s.wantEnd(watcher[1], "")
}

func (s *suite) attachBeforeStart() {
	c := s.connect()
	r := s.request("sh", "-c", "echo out; echo err >&2; exit 4")
	s.create(c, r)
	a, b := s.attach(c, r.ID, true), s.attach(c, r.ID, false)
	s.must("Start", c.Start(s.ctx, r.ID))
	s.wantCode(c.exit(r.ID), 4)
	for _, f := range [][3]*os.File{a, b} {
		s.wantEnd(f[1], "out\n")
		s.wantEnd(f[2], "err\n")
	}
	if _, err := a[0].Write([]byte("x")); err == nil {
		s.t.Error("writing to a stdin that a container does not have succeeded")
	}
}

func (s *suite) attachClientVanishes() {
	c := s.connect()
	id, _ := s.runCat(c, false)
	a, b := s.attach(c, id, true), s.attach(c, id, false)
	closeFiles(b[:]...)
	s.say(a[0], "one")
	s.wantNext(a[1], "one")
	closeFiles(a[1:]...) // does not read any more, but goes on to write
	s.say(a[0], "two")
	last := s.attach(c, id, true)
	s.say(last[0], "three")
	s.kill(c, id)
}

func (s *suite) attachErrors() {
	c := s.connect()
	ended, _ := s.run(c, "true")
	c.exit(ended)
	tty := s.create(c, s.withTerminal(s.request("sleep", "1000")))
	if tty.Console == nil {
		s.t.Error("Create with TTY came without a console")
	}
	var id string
	for id = range s.list(c) {
		if id != ended {
			break
		}
	}
	r, w, err := os.Pipe()
	s.must("Pipe", err)
	defer closeFiles(r, w)
	attach := func(id string, files ...*os.File) error {
		var stdio [3]*os.File
		copy(stdio[:], files)
		return c.Attach(s.ctx, monitor.AttachRequest{ID: id}, stdio)
	}
	s.wantKind("Attach to none", attach("none", nil, w), errkind.NotFound)
	s.wantKind("Attach to what ended", attach(ended, nil, w), errkind.BadState)
	s.wantKind("Attach to nothing of it", attach(id), errkind.Invalid)
	s.wantKind("Attach to a terminal's stderr", attach(id, nil, nil, w), errkind.Invalid)
}
