package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"
)

const (
	watchEvery  = 2 * time.Second
	statusLimit = 10 * time.Second // for all answers of one look
)

// statusCommand is `crid status [--watch] [--json]`.
func (p program) statusCommand(args []string) (action, error) {
	flags := newFlags("crid status")
	watch := flags.Bool("watch", false, "")
	asJSON := flags.Bool("json", false, "")
	rest, err := parseFlags(flags, args)
	if err != nil {
		return nil, err
	}
	if len(rest) > 0 {
		return nil, usagef("`crid status` takes no argument, but was given %q", rest[0])
	}
	print := func(v *nodeView, out io.Writer) error { return v.text(out, time.Now()) }
	if *asJSON {
		print = func(v *nodeView, out io.Writer) error { return json.NewEncoder(out).Encode(v) }
	}
	return configured(func(ctx context.Context, c Config) error {
		if !*watch {
			return p.look(ctx, c, func(ctx context.Context, r *statusReader) error {
				v, err := r.read(ctx)
				if err != nil {
					return err
				}
				return print(v, p.out)
			})
		}
		ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		return p.watch(ctx, c, watchEvery, *asJSON, print)
	}), nil
}

// pods is the table of `crid status` alone.
func (p program) pods(ctx context.Context, c Config) error {
	return p.look(ctx, c, func(ctx context.Context, r *statusReader) error {
		rows, err := r.pods(ctx, make(map[string]int))
		if err != nil {
			return plainStatus(err)
		}
		return podTable(p.out, rows, time.Now())
	})
}

// look asks once.
func (p program) look(ctx context.Context, c Config, ask func(context.Context, *statusReader) error) error {
	client, err := dialCRI(ctx, c)
	if err != nil {
		return err
	}
	defer client.close()
	ctx, cancel := context.WithTimeout(ctx, statusLimit)
	defer cancel()
	return ask(ctx, &statusReader{client: client})
}

// watch shows the node again and again until ctx ends, which is no error. A terminal is
// drawn over, anything else gets one block after the other. While crid is away it
// says so, and goes on.
func (p program) watch(ctx context.Context, c Config, every time.Duration, asJSON bool, show func(*nodeView, io.Writer) error) error {
	var s screen = blocks{out: p.out, separate: !asJSON}
	if f, ok := p.out.(*os.File); ok && !asJSON && term.IsTerminal(int(f.Fd())) {
		s = terminal{f}
	}
	if err := s.open(); err != nil {
		return err
	}
	defer s.close()
	var r statusReader
	defer r.hangUp()
	for {
		var page bytes.Buffer
		v, err := r.again(ctx, c)
		if ctx.Err() != nil {
			return nil
		}
		switch {
		case err == nil:
			err = show(v, &page)
		case asJSON:
			err = json.NewEncoder(&page).Encode(map[string]string{"error": err.Error()})
		default:
			_, err = fmt.Fprintf(&page, "crid does not answer, asking on: %s\n", plain(err.Error()))
		}
		if err == nil {
			err = s.draw(page.String())
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(every):
		}
	}
}

// again connects if need be, and asks. After an error it connects anew next time.
func (r *statusReader) again(ctx context.Context, c Config) (v *nodeView, err error) {
	ctx, cancel := context.WithTimeout(ctx, statusLimit)
	defer cancel()
	if r.client == nil {
		if r.client, err = dialCRI(ctx, c); err != nil {
			return nil, err
		}
	}
	if v, err = r.read(ctx); err != nil {
		r.hangUp()
	}
	return v, err
}

func (r *statusReader) hangUp() {
	if r.client != nil {
		r.client.close()
		r.client = nil
	}
}

// screen is where pages are shown.
type screen interface {
	open() error
	draw(page string) error
	close()
}

// blocks is a screen that is no terminal.
type blocks struct {
	out      io.Writer
	separate bool // by an empty line
}

func (b blocks) open() error { return nil }
func (b blocks) close()      {}

func (b blocks) draw(page string) error {
	if b.separate {
		page += "\n"
	}
	_, err := io.WriteString(b.out, page)
	return err
}

// terminal draws on the other screen that terminals have for programs like this: what
// was there before comes back at the end.
type terminal struct{ f *os.File }

// Sequences that all terminals of today know (ECMA-48, xterm).
const (
	enterScreen = "\x1b[?1049h\x1b[?25l" // the other screen, without a cursor
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	goHome      = "\x1b[H"
	clearLine   = "\x1b[K" // what is right of here
	clearBelow  = "\x1b[J"
)

func (t terminal) open() error {
	_, err := t.f.WriteString(enterScreen)
	return err
}

func (t terminal) close() { _, _ = t.f.WriteString(leaveScreen) }

// draw writes over what is there, line by line and in one call, so that nothing
// flickers.
func (t terminal) draw(page string) error {
	columns, rows, _ := term.GetSize(int(t.f.Fd()))
	_, err := t.f.WriteString(frame(page, rows, columns))
	return err
}

// frame is what draws as much of page as a terminal has room for. A size of 0 or less is
// not known.
func frame(page string, rows, columns int) string {
	lines := strings.Split(strings.TrimSuffix(page, "\n"), "\n")
	if rows > 1 && len(lines) > rows {
		more := len(lines) - rows + 1
		lines = append(lines[:rows-1], fmt.Sprintf("... %d more lines", more))
	}
	var b strings.Builder
	b.WriteString(goHome)
	for i, l := range lines {
		if r := []rune(l); columns > 0 && len(r) > columns {
			l = string(r[:columns])
		}
		if i > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString(l)
		b.WriteString(clearLine)
	}
	b.WriteString(clearBelow)
	return b.String()
}
