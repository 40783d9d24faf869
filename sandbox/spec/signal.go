package spec

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/moby/sys/signal"
)

// The real-time signals that programs may use. The C library keeps 32 and 33.
const (
	rtMin = 34
	rtMax = 64
)

// StopSignal is the signal that asks a container to end: the request's, else
// the image's, else SIGTERM. It returns its name as CRI spells it, such as
// SIGRTMIN+3, and its number. An image's signal that does not exist counts as
// none, as with Docker: the image still runs.
func StopSignal(requested, image string) (string, syscall.Signal, error) {
	if requested != "" {
		name, n, err := parseSignal(requested)
		if err != nil {
			return "", 0, invalid("config.stop_signal", "%v", err)
		}
		return name, n, nil
	}
	if image != "" {
		if name, n, err := parseSignal(image); err == nil {
			return name, n, nil
		}
	}
	return "SIGTERM", syscall.SIGTERM, nil
}

func stopSignal(b *builder) error {
	var err error
	b.StopSignal, b.Signal, err = StopSignal(b.Container.StopSignal, b.Image.StopSignal)
	return err
}

// parseSignal knows numbers, names with or without SIG, and offsets from
// SIGRTMIN and SIGRTMAX.
func parseSignal(s string) (string, syscall.Signal, error) {
	unknown := fmt.Errorf("unknown signal %q", s)
	if n, err := strconv.Atoi(s); err == nil {
		name := signalName(n)
		if name == "" {
			return "", 0, unknown
		}
		return name, syscall.Signal(n), nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if n, ok := signal.SignalMap[name]; ok {
		return "SIG" + name, n, nil
	}
	// Offsets beyond the table's: RTMIN+20 is RTMAX-10.
	for prefix, base := range map[string]int{"RTMIN+": rtMin, "RTMAX-": -rtMax} {
		rest, ok := strings.CutPrefix(name, prefix)
		offset, err := strconv.ParseUint(rest, 10, 8)
		if !ok || err != nil {
			continue
		}
		n := max(base, -base) + int(offset)
		if base < 0 {
			n = rtMax - int(offset)
		}
		if n >= rtMin && n <= rtMax {
			return signalName(n), syscall.Signal(n), nil
		}
	}
	return "", 0, unknown
}

// signalName is the name of signal n as CRI spells it; "" when there is none.
// Of two names for one signal the first in the alphabet is the usual one.
func signalName(n int) string {
	var names []string
	for name, s := range signal.SignalMap {
		if int(s) == n {
			names = append(names, "SIG"+name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return slices.Min(names)
}
