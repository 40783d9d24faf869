package testutil

import (
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// LeakCheck fails t if at its end there are goroutines or file descriptors that
// were not there when LeakCheck was called. Cleanups registered after
// LeakCheck run before the check, so call it first. Not for parallel tests.
func LeakCheck(t testing.TB) {
	t.Helper()
	goroutines, files := goroutines(), openFiles()
	t.Cleanup(func() {
		if t.Failed() {
			return // what the failure left open would only hide it
		}
		var left []string
		poll(func() bool {
			left = append(added(goroutines, currentGoroutines()), added(files, openFiles())...)
			return len(left) == 0
		})
		for _, l := range left {
			t.Errorf("left behind: %s", l)
		}
	})
}

// currentGoroutines lets finalizers and exiting goroutines go on before it looks.
func currentGoroutines() map[string]string {
	runtime.Gosched()
	return goroutines()
}

// added is the values whose keys are new or have another value, in order of keys.
func added(before, after map[string]string) []string {
	var vs []string
	for _, k := range slices.Sorted(maps.Keys(after)) {
		if old, ok := before[k]; !ok || old != after[k] && strings.HasPrefix(k, "fd ") {
			vs = append(vs, after[k])
		}
	}
	return vs
}

// goroutines is the stacks of all goroutines but the caller's and the runtime's,
// keyed by their number.
func goroutines() map[string]string {
	buf := make([]byte, 64<<10)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	all := make(map[string]string)
	stacks := strings.Split(string(buf), "\n\n")
	for _, s := range stacks[1:] { // the first is the caller's
		header, _, _ := strings.Cut(s, " [")
		// Started once and kept by the standard library.
		if strings.Contains(s, "os/signal.signal_recv") || strings.Contains(s, "runtime.ensureSigM") {
			continue
		}
		all[header] = strings.TrimSpace(s)
	}
	return all
}

// openFiles is what the descriptors of this process refer to, by number. The
// descriptor that lists the folder is gone when it is looked at.
func openFiles() map[string]string {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		panic(fmt.Sprintf("testutil: %v", err))
	}
	all := make(map[string]string)
	for _, e := range entries {
		target, err := os.Readlink(dir + "/" + e.Name())
		// The runtime opens its poller at the first use and keeps it.
		if err != nil || target == "anon_inode:[eventpoll]" || target == "anon_inode:[eventfd]" {
			continue
		}
		n, _ := strconv.Atoi(e.Name())
		all[fmt.Sprintf("fd %06d", n)] = fmt.Sprintf("fd %d: %s", n, target)
	}
	return all
}
