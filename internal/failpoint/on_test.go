//go:build failpoint

package failpoint

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// envHits makes the test binary hit the places named in it, and print what came of it.
const envHits = "FAILPOINT_TEST_HITS"

func TestMain(m *testing.M) {
	names, ok := os.LookupEnv(envHits)
	if !ok {
		os.Exit(m.Run())
	}
	for name := range strings.FieldsSeq(names) {
		if err := Hit(name); err != nil {
			println(err.Error())
			continue
		}
		println("ok " + name)
	}
}

func TestHit(t *testing.T) {
	tests := []struct {
		name, points, hits string
		want               string
		killed             bool
	}{
		{name: "nothing asked", hits: "a b", want: "ok a\nok b\n"},
		{
			name: "each hit", points: "a=error", hits: "a b a",
			want: "failpoint a: error asked for by CRID_FAILPOINTS\nok b\nfailpoint a: error asked for by CRID_FAILPOINTS\n",
		},
		{
			name: "second hit only", points: "a=error#2", hits: "a a a",
			want: "ok a\nfailpoint a: error asked for by CRID_FAILPOINTS\nok a\n",
		},
		{name: "delay", points: "a=delay(1ms)", hits: "a", want: "ok a\n"},
		{
			name: "kill", points: "b=kill#2; c=error", hits: "a b c b d",
			want: "ok a\nok b\nfailpoint c: error asked for by CRID_FAILPOINTS\n", killed: true,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			trace := filepath.Join(t.TempDir(), "trace")
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), envHits+"="+tt.hits, envPoints+"="+tt.points, envTrace+"="+trace, "GORACE=atexit_sleep_ms=0")
			out, err := cmd.CombinedOutput()
			if string(out) != tt.want {
				t.Errorf("printed %q, want %q", out, tt.want)
			}
			var exit *exec.ExitError
			if killed := errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL; killed != tt.killed {
				t.Errorf("ended with %v, want killed: %v", err, tt.killed)
			}
			got, err := os.ReadFile(trace)
			if err != nil {
				t.Fatal(err)
			}
			// What is killed has come to the place that killed it, and no further.
			hits := strings.Fields(tt.hits)
			if tt.killed {
				hits = hits[:4]
			}
			if want := strings.Join(hits, "\n") + "\n"; string(got) != want {
				t.Errorf("trace = %q, want %q", got, want)
			}
		})
	}
}

func TestParse(t *testing.T) {
	points, err := parse(" a.b.c=kill#3;d=delay(200ms) ;; e=error")
	if err != nil {
		t.Fatal(err)
	}
	if p := points["a.b.c"]; p == nil || p.action != "kill" || p.only != 3 {
		t.Errorf("a.b.c = %+v, want kill at the third hit", p)
	}
	if p := points["d"]; p == nil || p.action != "delay" || p.delay != 200*time.Millisecond || p.only != 0 {
		t.Errorf("d = %+v, want a delay of 200ms at each hit", p)
	}
	if len(points) != 3 {
		t.Errorf("%d points, want 3", len(points))
	}
	for _, bad := range []string{"a", "=kill", "a=", "a=die", "a=kill#0", "a=kill#x", "a=delay(soon)", "a=delay(1s", "a=kill;a=error"} {
		if _, err := parse(bad); err == nil {
			t.Errorf("parse(%q) = nil, want an error", bad)
		}
	}
}
