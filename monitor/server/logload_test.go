package server

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/internal/testutil"
)

// TestRotationUnderLoad: a log that is rotated as fast as it can be, while the
// container writes as fast as it can, has every line once and in order.
func TestRotationUnderLoad(t *testing.T) {
	n := newNode(t)
	const lines = 300000
	n.run("a", "seq", strconv.Itoa(lines))
	path := filepath.Join(n.state, "logs", "a.log")
	var rotated []string
	var sizes []int64
	for {
		old := fmt.Sprintf("%s.%d", path, len(rotated))
		if err := os.Rename(path, old); err != nil {
			t.Fatal(err)
		}
		err := n.client.ReopenLog(context.Background(), "a")
		rotated = append(rotated, old)
		if errkind.Is(err, errkind.BadState) {
			break // it has exited
		}
		if err != nil {
			t.Fatalf("ReopenLog = %v", err)
		}
		st, err := os.Stat(old)
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, st.Size())
	}
	n.exit("a")
	want := 1
	for i, file := range append(rotated, path) {
		b, err := os.ReadFile(file)
		if os.IsNotExist(err) && file == path {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if i < len(sizes) && int64(len(b)) != sizes[i] {
			t.Errorf("%s grew from %d to %d bytes after it had been let go", file, sizes[i], len(b))
		}
		for l := range bytes.Lines(b) {
			if _, text, _ := strings.Cut(string(l), " "); text != fmt.Sprintf("stdout F %d\n", want) {
				t.Fatalf("%s has %q, want line %d", file, l, want)
			}
			want++
		}
	}
	if want != lines+1 {
		t.Errorf("%d lines in %d files, want %d", want-1, len(rotated), lines)
	}
	t.Logf("%d rotations", len(rotated))
}

// logTo is a stream that logs to path, and where to write.
func logTo(t *testing.T, ctx context.Context, path string, limit *logLimit) (s *stream, w *os.File, counts *logCounts) {
	t.Helper()
	counts = new(logCounts)
	log, _, err := openLog(path, counts)
	if err != nil {
		t.Fatal(err)
	}
	log.limit = limit
	r, w, err := pipeFrom()
	if err != nil {
		t.Fatal(err)
	}
	s = newStream(r, "stdout", log)
	go s.run(ctx)
	t.Cleanup(func() {
		_ = w.Close()
		<-s.done
		log.close()
	})
	return s, w, counts
}

// TestLogOnFullDisk: what does not fit is lost, the writer does not notice, one
// warning is said, and what comes once there is room is there.
func TestLogOnFullDisk(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("small", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sys.Unmount(dir, sys.Detach) })
	logger := ktesting.NewLogger(t, ktesting.NewConfig(ktesting.BufferLogs(true)))
	ctx := klog.NewContext(t.Context(), logger)
	path := filepath.Join(dir, "log")
	s, w, counts := logTo(t, ctx, path, nil)
	const lines = 100000
	for i := range lines {
		if _, err := fmt.Fprintln(w, i); err != nil {
			t.Fatalf("the writer got %v", err)
		}
	}
	s.drain(ctx)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	whole := bytes.Count(b, []byte{'\n'})
	for i, l := range bytes.SplitAfter(b, []byte{'\n'})[:whole] {
		if !strings.HasSuffix(string(l), fmt.Sprintf(" stdout F %d\n", i)) {
			t.Fatalf("record %d = %q", i, l)
		}
	}
	if counts.dropped.Load() == 0 || whole == 0 || whole >= lines {
		t.Errorf("%d records were written, %d bytes counted as lost, want some each", whole, counts.dropped.Load())
	}
	// As kubelet makes room: the file goes, and the log is opened anew.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := s.log.reopen(); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(w, "again")
	s.drain(ctx)
	fmt.Fprintln(w, "and again")
	s.drain(ctx)
	b, err = os.ReadFile(path)
	if want := fmt.Sprintf("stdout F [crid: lost %d bytes of this log: no space left on device]\nstdout F again\nstdout F and again\n", counts.dropped.Load()); err != nil || texts(string(b)) != want {
		t.Errorf("log with room again = %q, %v, want %q", texts(string(b)), err, want)
	}
	said := logger.GetSink().(ktesting.Underlier).GetBuffer().String()
	if n := strings.Count(said, "Lost log of a container"); n != 1 {
		t.Errorf("the loss was said %d times, want once:\n%s", n, said)
	}
}

func TestLogLimit(t *testing.T) {
	records := bytes.Repeat([]byte("2016-10-06T00:17:09.669794202Z stdout F text of it\n"), 20) // 51 bytes each
	const one = 51
	var counts logCounts
	l := newLogLimit(10*one, &counts)
	at := logTime
	for i, step := range []struct {
		after time.Duration
		want  int
	}{
		{0, 10},
		{0, 0},
		{100 * time.Millisecond, 0},
		{399 * time.Millisecond, 0}, // not yet half
		{10 * time.Millisecond, 6},
		{time.Hour, 10},
	} {
		at = at.Add(step.after)
		if got := l.take(records, at); got != step.want*one {
			t.Errorf("step %d: %d bytes may be written, want %d records", i, got, step.want)
		}
	}
	if newLogLimit(0, &counts) != nil {
		t.Error("a rate of 0 makes a limit")
	}
	// A record that is longer than what a second allows is not held back for ever.
	long := append(bytes.Repeat([]byte("x"), 100*one), '\n')
	if got := l.take(long, at.Add(2*time.Hour)); got != len(long) {
		t.Errorf("%d bytes of a long record may be written, want all", got)
	}
}

// TestLogLimitSaysWhatIsLost: each record is in the log or counted in a notice,
// and the notices come without that anything more is written.
func TestLogLimitSaysWhatIsLost(t *testing.T) {
	var limited logCounts
	path := filepath.Join(t.TempDir(), "log")
	_, w, counts := logTo(t, t.Context(), path, newLogLimit(20000, &limited))
	const lines = 50000
	for i := range lines {
		fmt.Fprintln(w, i)
	}
	lost, kept, bytesLost := 0, 0, 0
	testutil.WaitFor(t, "the notice", func() bool {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		lost, kept, bytesLost = 0, 0, 0
		for l := range strings.Lines(texts(string(b))) {
			var nb, n int
			if _, err := fmt.Sscanf(l, "stdout F [crid: dropped %d bytes of this log, %d records, over the limit of 20000 bytes a second]\n", &nb, &n); err == nil {
				lost, bytesLost = lost+n, bytesLost+nb
				continue
			}
			if l != fmt.Sprintf("stdout F %d\n", kept+lost) {
				t.Fatalf("log has %q, want line %d", l, kept+lost)
			}
			kept++
		}
		return kept+lost == lines
	})
	if kept == 0 || lost == 0 {
		t.Errorf("%d records are there and %d said to be lost, want some each", kept, lost)
	}
	if int(limited.limited.Load()) != bytesLost || int(limited.limitedRecords.Load()) != lost || counts.dropped.Load() != 0 {
		t.Errorf("counted %d bytes in %d records as over the limit and %d as lost, want %d, %d and 0",
			limited.limited.Load(), limited.limitedRecords.Load(), counts.dropped.Load(), bytesLost, lost)
	}
}
