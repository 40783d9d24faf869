package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var logLine = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(Z|[+-]\d\d:\d\d) (stdout|stderr) ([FP]) (.*)$`)

func TestLogFormat(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("log")
	pod := n.RunPod(p)
	for _, test := range []struct {
		name, script string
		want         []string // stream tag length-or-text
	}{
		{"streams", "echo out; echo err >&2", []string{"stdout F out", "stderr F err"}},
		{"empty-lines", "echo; echo x", []string{"stdout F ", "stdout F x"}},
		{"no-newline", "printf abc", []string{"stdout P abc"}},
		{"exact", "head -c 16384 /dev/zero | tr '\\0' x; echo", []string{"stdout F 16384"}},
		{"terminal", "echo out; echo err >&2", []string{"stdout F out", "stdout F err"}}, // one stream, and no carriage returns
		{"long", "head -c 16385 /dev/zero | tr '\\0' x; echo", []string{"stdout P 16384", "stdout F 1"}},
		{"longer", "head -c 40000 /dev/zero | tr '\\0' x; echo", []string{"stdout P 16384", "stdout P 16384", "stdout F 7232"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := n.ContainerConfig(test.name, "sh", "-c", test.script)
			c.Tty = test.name == "terminal"
			n.WaitExit(n.Run(pod, p, c))
			// The last words are in the file before the exit is reported: no waiting here.
			var got []string
			for line := range strings.Lines(n.ContainerLog(p, c)) {
				m := logLine.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
				if m == nil {
					t.Fatalf("not a CRI log line: %q", line)
				}
				text := m[4]
				if strings.Trim(text, "x") == "" && len(text) > 0 && test.name != "empty-lines" {
					text = fmt.Sprint(len(text))
				}
				got = append(got, m[2]+" "+m[3]+" "+text)
			}
			if test.name == "streams" && len(got) == 2 && strings.HasPrefix(got[0], "stderr") {
				got[0], got[1] = got[1], got[0] // two pipes have no common order
			}
			if strings.Join(got, "|") != strings.Join(test.want, "|") {
				t.Errorf("log = %q, want %q", got, test.want)
			}
		})
	}
}

func TestLogRotation(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("rotate")
	pod := n.RunPod(p)
	c := n.ContainerConfig("main", "sh", "-c", "i=0; while [ $i -lt 60000 ]; do echo line $i; i=$((i+1)); done; echo last; sleep 1000")
	id := n.Run(pod, p, c)
	path := filepath.Join(p.LogDirectory, c.LogPath)
	for i := range 5 {
		if err := os.Rename(path, fmt.Sprintf("%s.%d", path, i)); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Runtime.ReopenContainerLog(n.Ctx(), &cri.ReopenContainerLogRequest{ContainerId: id}); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path); err != nil {
			t.Fatalf("after reopen: %v", err)
		}
	}
	n.Eventually("all lines are written", func() bool { return strings.Contains(n.ContainerLog(p, c), " F last\n") })
	var all strings.Builder
	for i := range 5 {
		b, err := os.ReadFile(fmt.Sprintf("%s.%d", path, i))
		if err != nil {
			t.Fatal(err)
		}
		all.Write(b)
	}
	all.WriteString(n.ContainerLog(p, c))
	next := 0
	for line := range strings.Lines(all.String()) {
		if strings.HasSuffix(line, " F last\n") {
			break
		}
		if want := fmt.Sprintf(" stdout F line %d\n", next); !strings.HasSuffix(line, want) {
			t.Fatalf("after %d lines: %q, want one that ends with %q", next, line, want)
		}
		next++
	}
	if next != 60000 {
		t.Errorf("%d lines in all files, want 60000", next)
	}
	if _, err := n.Runtime.StopContainer(n.Ctx(), &cri.StopContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	_, err := n.Runtime.ReopenContainerLog(n.Ctx(), &cri.ReopenContainerLogRequest{ContainerId: id})
	wantCode(t, "ReopenContainerLog of an exited container", err, codes.FailedPrecondition)
}

func TestNoLogPath(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("nolog")
	pod := n.RunPod(p)
	c := n.ContainerConfig("main", "sh", "-c", "yes | head -c 10000000; exit 4")
	c.LogPath = ""
	if s := n.WaitExit(n.Run(pod, p, c)); s.ExitCode != 4 {
		t.Errorf("exit code %d, want 4: output without a log file is discarded", s.ExitCode)
	}
}
