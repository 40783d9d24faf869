package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/docker/go-units"
	"golang.org/x/term"

	"github.com/cridproject/crid/image"
)

const (
	barEvery  = 200 * time.Millisecond // on a terminal
	lineEvery = 5 * time.Second        // elsewhere
)

// bar shows how far a command is: one line that changes on a terminal, a line
// every few seconds elsewhere. It writes where errors go, so that the output is
// only results.
type bar struct {
	out      io.Writer
	what     string
	terminal bool
	width    func() int
	began    time.Time

	mu    sync.Mutex
	steps func() []image.Step // nil until there is something to show; +checklocks:mu

	stopped chan struct{}
	wg      sync.WaitGroup
}

// showProgress starts a bar. The caller stops it before it prints a result.
func (p program) showProgress(what string) *bar {
	b := &bar{out: p.err, what: what, began: time.Now(), stopped: make(chan struct{})}
	every := lineEvery
	if f, ok := p.err.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		every, b.terminal = barEvery, true
		b.width = func() int {
			if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
				return w
			}
			return 80
		}
	}
	b.wg.Go(func() { b.run(time.NewTicker(every)) })
	return b
}

// follow makes the bar show what steps says.
func (b *bar) follow(steps func() []image.Step) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.steps = steps
}

// source is what the bar shows; nil for nothing.
func (b *bar) source() func() []image.Step {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.steps
}

// latest makes the bar show the last snapshot that is passed to what it returns.
func (b *bar) latest() (set func([]image.Step)) {
	var mu sync.Mutex
	var now []image.Step
	b.follow(func() []image.Step {
		mu.Lock()
		defer mu.Unlock()
		return now
	})
	return func(steps []image.Step) {
		mu.Lock()
		defer mu.Unlock()
		now = steps
	}
}

// stop ends the bar and takes it off the terminal. It may be called again.
func (b *bar) stop() {
	select {
	case <-b.stopped:
		return
	default:
	}
	close(b.stopped)
	b.wg.Wait()
	if b.terminal {
		fmt.Fprint(b.out, "\r\x1b[K")
	}
}

func (b *bar) run(tick *time.Ticker) {
	defer tick.Stop()
	for {
		select {
		case <-b.stopped:
			return
		case <-tick.C:
		}
		b.mu.Lock()
		steps := b.steps
		b.mu.Unlock()
		if steps == nil {
			continue
		}
		s := sum(steps())
		switch {
		case s.steps == 0:
		case b.terminal:
			fmt.Fprint(b.out, "\r"+s.bar(b.what, time.Since(b.began), b.width())+"\x1b[K")
		default:
			fmt.Fprintln(b.out, b.what+": "+s.text(time.Since(b.began)))
		}
	}
}

// total is all steps together.
type total struct {
	steps, finished int
	done, size      int64
	known           bool // whether size is all there is
}

func sum(steps []image.Step) total {
	t := total{known: true}
	for _, s := range steps {
		t.steps++
		finished := s.State == image.StepDone || s.State == image.StepExists
		if finished {
			t.finished++
		}
		t.done += s.Done
		switch {
		case finished:
			t.size += s.Done
		case s.Total < 0:
			t.known = false
		default:
			t.size += s.Total
		}
	}
	return t
}

// text says it in words.
func (t total) text(since time.Duration) string {
	var s strings.Builder
	if t.steps > 1 {
		fmt.Fprintf(&s, "%d of %d layers, ", t.finished, t.steps)
	}
	s.WriteString(units.HumanSize(float64(t.done)))
	if t.known && t.size > 0 {
		fmt.Fprintf(&s, " of %s", units.HumanSize(float64(t.size)))
	}
	if sec := since.Seconds(); sec >= 1 {
		fmt.Fprintf(&s, ", %s/s", units.HumanSize(float64(t.done)/sec))
	}
	return s.String()
}

// bar is text with a bar before it, in at most width columns less one. What is long
// loses the beginning of its name first: the figures are what changes.
func (t total) bar(what string, since time.Duration, width int) string {
	text := t.text(since)
	line := what + " " + text
	const least = 10
	if verb, name, _ := strings.Cut(what, " "); len(line) > width-1 {
		line = verb + " " + text
		if room := width - 1 - len(line) - len(" ..."); room >= least {
			line = verb + " ..." + name[max(len(name)-room, 0):] + " " + text
		}
	}
	if room := width - 1 - len(line) - 3; t.known && t.size > 0 && room >= least {
		room = min(room, 40)
		full := int(min(t.done, t.size) * int64(room) / t.size)
		line = what + " [" + strings.Repeat("=", full) + strings.Repeat(" ", room-full) + "] " + text
	}
	return line[:min(len(line), max(width-1, 0))]
}

// counter is a reader or writer that a bar can follow.
type counter struct {
	r io.Reader
	w io.Writer

	mu   sync.Mutex
	n    int64 // +checklocks:mu
	size int64 // of all; -1 when unknown; +checklocks:mu
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.add(n)
	return n, err
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.add(n)
	return n, err
}

func (c *counter) add(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n += int64(n)
}

func (c *counter) setSize(n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.size = n
}

func (c *counter) steps() []image.Step {
	c.mu.Lock()
	defer c.mu.Unlock()
	return []image.Step{{State: image.StepRunning, Done: c.n, Total: c.size}}
}
