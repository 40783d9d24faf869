package kubelet

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Each container writes numbered lines in bursts: few, many, and lines that are longer
// than an entry of the log may be, so that some are cut by the rotation.
const rotatedPod = `
	restartPolicy: Never
	containers:
	- &writer
		name: few
		image: IMAGE
		env: [{name: BURST, value: "5"}, {name: PAD, value: "200"}]
		command:
		- sh
		- -c
		- |
			pad=$(head -c $PAD /dev/zero | tr '\0' x)
			i=0
			until test -e /tmp/end; do
				n=0
				while test $n -lt $BURST; do
					echo $i $pad
					i=$((i+1))
					n=$((n+1))
				done
				sleep 0.02
			done
	- <<: *writer
		name: many
		env: [{name: BURST, value: "300"}, {name: PAD, value: "20"}]
	- <<: *writer
		name: long
		env: [{name: BURST, value: "1"}, {name: PAD, value: "40000"}]
`

// kubelet rotates the logs of running containers; nobody who reads along, and no
// reader of the files, misses a line or gets one twice.
func TestLogRotation(t *testing.T) {
	k := newKubelet(t, options{kubelet: map[string]any{
		"containerLogMaxSize":         "20Ki",
		"containerLogMaxFiles":        3,
		"containerLogMonitorInterval": "3s", // the least that kubelet takes
		"containerLogMaxWorkers":      2,
	}})
	k.run("rotated", rotatedPod)
	p := k.await("rotated", "is ready", ready)
	containers := []string{"few", "many", "long"}
	followed := make(map[string]*following)
	for _, c := range containers {
		followed[c] = k.followLog("rotated", c)
	}
	dir := k.path("pod-logs", fmt.Sprintf("%s_rotated-%s_%s", namespace, nodeName, p.Annotations["kubernetes.io/config.hash"]))
	// After the first the reader has to change files, at the third an archive goes.
	k.awaitRotations(dir, containers, 3)
	for _, c := range containers {
		k.exec("rotated", c, "touch", "/tmp/end")
	}
	k.await("rotated", "has succeeded", succeeded)

	for _, c := range containers {
		if err := <-followed[c].done; err != nil {
			t.Errorf("%s: following its log: %v", c, err)
		}
		lines := strings.SplitAfter(followed[c].String(), "\n")
		n, err := numbered(lines[:len(lines)-1], 0)
		if err != nil || lines[len(lines)-1] != "" {
			t.Errorf("%s: the follower's line %d: %v; rest %.60q", c, n, err, lines[len(lines)-1])
			continue
		}
		k.checkRotated(filepath.Join(dir, c), n)
	}
}

// awaitRotations waits until kubelet has put so many files of each log aside. A name
// holds the time, to the second; each is there for two rotations.
func (k *kubelet) awaitRotations(dir string, containers []string, want int) {
	k.t.Helper()
	seen := map[string]map[string]bool{}
	k.eventually("logs are rotated", func() error {
		for _, c := range containers {
			names, err := filepath.Glob(filepath.Join(dir, c, "0.log.*"))
			if err != nil {
				return err
			}
			if seen[c] == nil {
				seen[c] = map[string]bool{}
			}
			for _, n := range names {
				seen[c][strings.TrimSuffix(strings.TrimSuffix(n, ".tmp"), ".gz")] = true
			}
			if len(seen[c]) < want {
				return fmt.Errorf("%s: %d rotations of %d", c, len(seen[c]), want)
			}
		}
		return nil
	})
}

// numbered checks that lines begin with the numbers from first on, and returns the
// number that the next one would have.
func numbered(lines []string, first int) (int, error) {
	for _, l := range lines {
		if number, _, _ := strings.Cut(l, " "); number != fmt.Sprint(first) {
			return first, fmt.Errorf("it is %.60q", l)
		}
		first++
	}
	return first, nil
}

// checkRotated reads a log's files, the oldest first: an archive, one that is not
// yet one, and the last; all lines from some number to the end are in them.
func (k *kubelet) checkRotated(dir string, end int) {
	k.t.Helper()
	var files []string
	k.eventually("the last rotation has ended", func() error {
		files, _ = filepath.Glob(filepath.Join(dir, "*"))
		slices.Sort(files) // 0.log is the first
		if len(files) != 3 || !strings.HasSuffix(files[1], ".gz") || strings.Contains(files[2], ".gz") {
			return fmt.Errorf("%q, want three files, the second one an archive", files)
		}
		return nil
	})
	var text strings.Builder
	for _, f := range []string{files[1], files[2], files[0]} {
		text.WriteString(k.logText(f))
	}
	lines := strings.SplitAfter(text.String(), "\n")
	lines = lines[:len(lines)-1]
	if len(lines) == 0 {
		k.t.Fatalf("%s: no lines", dir)
	}
	// The first may have begun in a file that is gone.
	var first int
	if _, err := fmt.Sscan(lines[1], &first); err != nil {
		k.t.Fatalf("%s: line %.60q: %v", dir, lines[1], err)
	}
	if n, err := numbered(lines[1:], first); err != nil || n != end {
		k.t.Errorf("%s: the files hold the lines %d to %d (%v), want all up to %d", dir, first, n-1, err, end-1)
	}
}

// logText is what a container wrote, from a file of its log.
func (k *kubelet) logText(path string) string {
	k.t.Helper()
	b, err := os.ReadFile(path)
	if err == nil && strings.HasSuffix(path, ".gz") {
		var r *gzip.Reader
		if r, err = gzip.NewReader(bytes.NewReader(b)); err == nil {
			b, err = io.ReadAll(r)
		}
	}
	if err != nil {
		k.t.Fatalf("%s: %v", path, err)
	}
	var text strings.Builder
	for entry := range strings.Lines(string(b)) {
		// time, stream, "P" for a part of a line or "F", text
		f := strings.SplitN(entry, " ", 4)
		if len(f) != 4 || !strings.HasSuffix(entry, "\n") {
			k.t.Fatalf("%s: entry %.60q", path, entry)
		}
		if f[2] == "P" {
			f[3] = strings.TrimSuffix(f[3], "\n")
		}
		text.WriteString(f[3])
	}
	return text.String()
}
