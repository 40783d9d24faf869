package server

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

var logTime = time.Date(2016, 10, 6, 0, 17, 9, 669794202, time.UTC)

// records is what a recorder makes of chunks and the end of the stream.
func records(stream string, size int, chunks ...[]byte) []byte {
	var all []byte
	flush := func(p []byte) { all = append(all, p...) }
	r := recorder{stream: stream}
	out := make([]byte, 0, size)
	for _, c := range chunks {
		flush(r.add(out[:0], c, logTime, flush))
	}
	flush(r.end(out[:0], logTime, flush))
	return all
}

func TestRecords(t *testing.T) {
	const n = maxRecord
	x := func(n int) string { return strings.Repeat("x", n) }
	const at = "2016-10-06T00:17:09.669794202Z stdout "
	for _, tt := range []struct{ name, in, want string }{
		{"nothing", "", ""},
		{"line", "text\n", at + "F text\n"},
		{"lines", "a\nb\n", at + "F a\n" + at + "F b\n"},
		{"empty line", "\n", at + "F \n"},
		{"unended", "text", at + "P text\n"},
		{"carriage return", "text\r\n", at + "F text\n"},
		{"only one carriage return", "text\r\r\n", at + "F text\r\n"},
		{"carriage return within", "a\rb\n", at + "F a\rb\n"},
		{"only carriage return", "\r\n", at + "F \n"},
		{"unended carriage return", "a\r", at + "P a\r\n"},
		{"full", x(n) + "\n", at + "F " + x(n) + "\n"},
		{"full with carriage return", x(n) + "\r\n", at + "F " + x(n) + "\n"},
		{"one more", x(n+1) + "\n", at + "P " + x(n) + "\n" + at + "F x\n"},
		{"one more with carriage return", x(n+1) + "\r\n", at + "P " + x(n) + "\n" + at + "F x\n"},
		{"twice full", x(2*n) + "\n", at + "P " + x(n) + "\n" + at + "F " + x(n) + "\n"},
		{"full and unended", x(n), at + "P " + x(n) + "\n"},
		{"one more and unended", x(n + 1), at + "P " + x(n) + "\n" + at + "P x\n"},
		{"full, carriage return, unended", x(n) + "\r", at + "P " + x(n) + "\n" + at + "P \r\n"},
		{"thrice", x(3*n+5) + "\nb\n", at + "P " + x(n) + "\n" + at + "P " + x(n) + "\n" + at + "P " + x(n) + "\n" + at + "F xxxxx\n" + at + "F b\n"},
	} {
		for _, step := range []int{len(tt.in) + 1, 1, 7, n, n + 1} {
			var chunks [][]byte
			for in := []byte(tt.in); len(in) > 0; {
				k := min(step, len(in))
				chunks, in = append(chunks, in[:k]), in[k:]
			}
			if got := string(records("stdout", logBatch, chunks...)); got != tt.want {
				t.Errorf("%s in steps of %d = %.120q…, want %.120q…", tt.name, step, got, tt.want)
			}
		}
	}
}

// parseLog is a reader of CRI logs: the streams' text as it was written, with
// the carriage returns gone that the format drops.
func parseLog(log []byte) (map[string]string, error) {
	text := map[string]string{}
	for len(log) > 0 {
		line, rest, ok := bytes.Cut(log, []byte("\n"))
		if !ok {
			return nil, fmt.Errorf("record without end: %.80q", line)
		}
		log = rest
		f := bytes.SplitN(line, []byte(" "), 4)
		if len(f) != 4 {
			return nil, fmt.Errorf("record of %d fields: %.80q", len(f), line)
		}
		if _, err := time.Parse(time.RFC3339Nano, string(f[0])); err != nil {
			return nil, err
		}
		if len(f[3]) > maxRecord {
			return nil, fmt.Errorf("record of %d bytes", len(f[3]))
		}
		switch string(f[2]) {
		case "F":
			f[3] = append(bytes.Clone(f[3]), '\n')
		case "P":
		default:
			return nil, fmt.Errorf("tag %q", f[2])
		}
		text[string(f[1])] += string(f[3])
	}
	return text, nil
}

func FuzzRecords(f *testing.F) {
	f.Add([]byte("a\nb\r\nc"), uint16(2), uint16(100))
	f.Add(bytes.Repeat([]byte("x"), maxRecord+1), uint16(maxRecord), uint16(0))
	f.Add(append(bytes.Repeat([]byte("x"), maxRecord), "\r\n\r\n"...), uint16(1), uint16(7))
	f.Fuzz(func(t *testing.T, in []byte, step, repeat uint16) {
		// Long lines are interesting and rare in what the fuzzer makes.
		in = append(bytes.Repeat([]byte("y"), int(repeat)), in...)
		var chunks [][]byte
		for rest := in; len(rest) > 0; {
			k := min(int(step)+1, len(rest))
			chunks, rest = append(chunks, rest[:k]), rest[k:]
		}
		log := records("stderr", headerLen+maxRecord+1, chunks...)
		got, err := parseLog(log)
		if err != nil {
			t.Fatal(err)
		}
		if want := strings.ReplaceAll(string(in), "\r\n", "\n"); got["stderr"] != want {
			t.Errorf("parsed %.200q, want %.200q", got["stderr"], want)
		}
		if whole := records("stderr", logBatch, in); !bytes.Equal(whole, log) {
			t.Errorf("in steps of %d = %.200q, at once %.200q", int(step)+1, log, whole)
		}
	})
}

func TestLogFile(t *testing.T) {
	var counts logCounts
	path := filepath.Join(t.TempDir(), "a/b/c.log")
	l, made, err := openLog(path, &counts)
	if err != nil || !made {
		t.Fatalf("openLog = %v, %v, want made", made, err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o640 {
		t.Errorf("mode = %v, %v, want 0640", st.Mode(), err)
	}
	l.write(t.Context(), []byte("one\n"))
	moved := path + ".1"
	if err := os.Rename(path, moved); err != nil {
		t.Fatal(err)
	}
	l.write(t.Context(), []byte("two\n"))
	if err := l.reopen(); err != nil {
		t.Fatal(err)
	}
	l.write(t.Context(), []byte("three\n"))
	// Reopening fails: a folder is in the way. The old file stays in use.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := l.reopen(); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("reopen over a folder = %v, want an error that names it", err)
	}
	l.write(t.Context(), []byte("four\n"))
	l.close()
	l.write(t.Context(), []byte("five\n"))
	if b, err := os.ReadFile(moved); string(b) != "one\ntwo\n" {
		t.Errorf("old file = %q, %v, want one, two", b, err)
	}
	if n := counts.dropped.Load(); n != 0 {
		t.Errorf("dropped %d bytes, want 0", n)
	}
	if n := counts.written.Load(); n != uint64(len("onetwothreefour")+4) {
		t.Errorf("written %d bytes, want all up to the end", n)
	}
}

// A follower leaves the old file when it sees the new one: nothing may come after.
func TestReopenEndsOldFirst(t *testing.T) {
	var counts logCounts
	path := filepath.Join(t.TempDir(), "c.log")
	l, _, err := openLog(path, &counts)
	if err != nil {
		t.Fatal(err)
	}
	var writer sync.WaitGroup
	t.Cleanup(writer.Wait)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	writer.Go(func() {
		for ctx.Err() == nil {
			l.write(ctx, []byte("a line\n"))
		}
	})
	size := func(path string) int64 {
		st, err := os.Stat(path)
		if err != nil {
			return -1
		}
		return st.Size()
	}
	for i := range 200 {
		old := fmt.Sprintf("%s.%d", path, i)
		if err := os.Rename(path, old); err != nil {
			t.Fatal(err)
		}
		seen := make(chan int64, 1)
		go func() {
			for size(path) < 0 && ctx.Err() == nil {
			}
			seen <- size(old)
		}()
		if err := l.reopen(); err != nil {
			t.Fatal(err)
		}
		if before, after := <-seen, size(old); before != after {
			t.Fatalf("rotation %d: the old file grew from %d to %d bytes after the new one was there", i, before, after)
		}
	}
	stop()
	writer.Wait()
	l.close()
}

func TestLogDiskFull(t *testing.T) {
	var counts logCounts
	l, made, err := openLog("/dev/full", &counts)
	if err != nil || made {
		t.Fatalf("openLog = %v, %v, want not made", made, err)
	}
	defer l.close()
	l.write(t.Context(), []byte("t stdout F lost\n"))
	l.write(t.Context(), []byte("t stdout F lost\n"))
	if n := counts.dropped.Load(); n != 32 {
		t.Errorf("dropped %d bytes, want 32", n)
	}
	if failed, written := counts.failed.Load(), counts.written.Load(); failed != 2 || written != 0 {
		t.Errorf("%d writes failed and %d bytes were written, want 2 and 0", failed, written)
	}
	// A record was cut short: what comes next begins on a line of its own.
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte("cut"), 0o640); err != nil {
		t.Fatal(err)
	}
	l.path, l.torn = path, true
	if err := l.reopen(); err != nil {
		t.Fatal(err)
	}
	if l.torn || l.failing {
		t.Error("a reopened log is still torn")
	}
	l.torn = true
	l.write(t.Context(), []byte("t stderr F next\n"))
	const want = "cut\nt stderr F [crid: lost 32 bytes of this log: no space left on device]\nt stderr F next\n"
	if b, _ := os.ReadFile(path); string(b) != want {
		t.Errorf("log after a cut record = %q, want %q", b, want)
	}
}

func TestRecordsAllocateNothing(t *testing.T) {
	in := bytes.Repeat([]byte("a line of a log that has some length\n"), 1000)
	out := make([]byte, 0, logBatch)
	r := recorder{stream: "stdout"}
	flush := func([]byte) {}
	if n := testing.AllocsPerRun(20, func() { r.add(out, in, logTime, flush) }); n > 0 {
		t.Errorf("1000 lines make %v allocations, want 0", n)
	}
}

func BenchmarkRecords(b *testing.B) {
	for _, size := range []int{1, 40, 100, 1000, 20000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			line := append(bytes.Repeat([]byte("x"), size), '\n')
			in := bytes.Repeat(line, readSize/len(line)+1)[:readSize]
			out := make([]byte, 0, logBatch)
			r := recorder{stream: "stdout"}
			flush := func([]byte) {}
			b.SetBytes(readSize)
			for b.Loop() {
				r.add(out, in, logTime, flush)
			}
		})
	}
}

// BenchmarkStream is the way from a pipe to a file.
func BenchmarkStream(b *testing.B) {
	var counts logCounts
	log, _, err := openLog(filepath.Join(b.TempDir(), "log"), &counts)
	if err != nil {
		b.Fatal(err)
	}
	r, w, err := pipeFrom()
	if err != nil {
		b.Fatal(err)
	}
	s := newStream(r, "stdout", log)
	go s.run(context.Background())
	in := bytes.Repeat([]byte("a line of a log that has some length, as they have, about a hundred bytes, or a few more or less...\n"), 1300)
	b.SetBytes(int64(len(in)))
	i := 0
	for b.Loop() {
		if _, err := w.Write(in); err != nil {
			b.Fatal(err)
		}
		if i++; i%4096 == 0 {
			_ = os.Truncate(log.path, 0)
		}
	}
	w.Close()
	<-s.done
	log.close()
}
