// Package testutil is what tests of several packages need: root or a reason to
// skip, golden files, checks that nothing is left over in the process
// (LeakCheck) or on the machine (Snapshot).
//
// It is imported by tests only.
package testutil

import (
	"bytes"
	"flag"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// waitLimit bounds waits for something that takes milliseconds on an idle machine.
// It is no promise about speed: it only turns a hang into a failure.
const waitLimit = 30 * time.Second

// update is a flag of every test that uses Golden: go test ./sandbox/spec -update
var update = flag.Bool("update", false, "write golden files instead of comparing with them")

// RequireRoot skips a test that needs root, and with -short, as in the tier of unit
// tests, one that could run: the kernel's tier runs it. With CRID_REQUIRE_ROOT set, as
// there, it fails without root: a skipped test must not pass for one that ran.
func RequireRoot(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("touches the kernel, and these are the short tests: run `sudo make kernel`")
	}
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CRID_REQUIRE_ROOT") != "" {
		t.Fatal("needs root, and CRID_REQUIRE_ROOT is set")
	}
	t.Skip("needs root: run `sudo make kernel`")
}

// Golden compares got with the file at path, or with -update writes it there.
func Golden(t testing.TB, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (run the test with -update to write it)", err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("differs from %s (run with -update to accept, and review the change)\n%s", path, lineDiff(want, got))
	}
}

// WaitFor waits until cond is true, and ends the test when that does not come
// about. For what has no channel to wait on, such as the state of another process.
func WaitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	if !poll(cond) {
		t.Fatalf("waited %v for this, in vain: %s", waitLimit, what)
	}
}

func poll(cond func() bool) bool {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(waitLimit)
	defer limit.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-limit.C:
			return cond()
		}
	}
	return true
}

// FreePort is a TCP port on which nobody listens at 127.0.0.1 at the moment.
func FreePort(t testing.TB) int {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// lineDiff is the first place at which two texts differ, with the lines around it.
func lineDiff(want, got []byte) string {
	w, g := bytes.Split(want, []byte("\n")), bytes.Split(got, []byte("\n"))
	n := 0
	for n < len(w) && n < len(g) && bytes.Equal(w[n], g[n]) {
		n++
	}
	var b bytes.Buffer
	show := func(sign string, lines [][]byte) {
		for _, l := range lines {
			b.WriteString(sign + string(l) + "\n")
		}
	}
	const context = 3
	show("  ", w[max(0, n-context):n])
	show("- ", w[n:min(len(w), n+2*context)])
	show("+ ", g[n:min(len(g), n+2*context)])
	return b.String()
}
