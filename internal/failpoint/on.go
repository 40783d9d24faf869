//go:build failpoint

package failpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Names of the environment variables.
const (
	envPoints = "CRID_FAILPOINTS"
	envTrace  = "CRID_FAILPOINTS_TRACE"
)

// point is what happens at one place.
type point struct {
	action string        // kill, error or delay
	delay  time.Duration // of delay
	only   int64         // the hit at which it happens; 0 means each
	hits   atomic.Int64
}

// loaded reads the environment at the first hit. A package variable, because
// the places are everywhere; it exists in test builds only.
var loaded = sync.OnceValue(func() map[string]*point {
	points, err := parse(os.Getenv(envPoints))
	if err != nil {
		panic("failpoint: " + envPoints + ": " + err.Error())
	}
	return points
})

// Hit does what the environment says for name.
func Hit(name string) error {
	points := loaded()
	trace(name)
	p := points[name]
	if p == nil {
		return nil
	}
	if n := p.hits.Add(1); p.only != 0 && n != p.only {
		return nil
	}
	switch p.action {
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // the signal may be a moment later than the return of kill
	case "delay":
		time.Sleep(p.delay)
		return nil
	default:
		return fmt.Errorf("failpoint %s: error asked for by %s", name, envPoints)
	}
}

// trace appends name to the trace file. One write to a file opened for append
// keeps lines of several processes apart.
func trace(name string) {
	path := os.Getenv(envTrace)
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		panic("failpoint: " + envTrace + ": " + err.Error())
	}
	defer f.Close()
	if _, err := f.WriteString(name + "\n"); err != nil {
		panic("failpoint: " + envTrace + ": " + err.Error())
	}
}

func parse(s string) (map[string]*point, error) {
	points := make(map[string]*point)
	for entry := range strings.SplitSeq(s, ";") {
		entry = strings.TrimSpace(entry)
		if entry == "" {
			continue
		}
		name, action, ok := strings.Cut(entry, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("%q is not name=action", entry)
		}
		if points[name] != nil {
			return nil, fmt.Errorf("%q is named twice", name)
		}
		p, err := parseAction(action)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", entry, err)
		}
		points[name] = p
	}
	return points, nil
}

func parseAction(s string) (*point, error) {
	p := &point{}
	s, nth, ok := strings.Cut(s, "#")
	if ok {
		n, err := strconv.ParseInt(nth, 10, 64)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("#%s is not a count from 1", nth)
		}
		p.only = n
	}
	switch arg, isDelay := strings.CutPrefix(s, "delay("); {
	case s == "kill" || s == "error":
		p.action = s
	case isDelay && strings.HasSuffix(arg, ")"):
		d, err := time.ParseDuration(strings.TrimSuffix(arg, ")"))
		if err != nil {
			return nil, err
		}
		p.action, p.delay = "delay", d
	default:
		return nil, fmt.Errorf("action %q is not kill, error or delay(DURATION)", s)
	}
	return p, nil
}
