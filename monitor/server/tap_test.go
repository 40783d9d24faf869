package server

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cridproject/crid/internal/testutil"
)

// tapTo is a tap and the end that its client reads.
func tapTo(t testing.TB, stall time.Duration) (*tap, *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	tp, err := newTap(w, stall)
	if err != nil {
		t.Fatal(err)
	}
	return tp, r
}

func TestTapQueuesAndEnds(t *testing.T) {
	testutil.LeakCheck(t)
	tp, r := tapTo(t, time.Hour)
	watched := make(chan error)
	go func() { watched <- tp.watch() }()
	// More than the pipe holds: give does not wait, and end does not either.
	chunk := bytes.Repeat([]byte("0123456789abcdef"), readSize/16)
	const chunks = 20
	for range chunks {
		tp.give(chunk)
	}
	behind := tp.waiting()
	if behind == nil {
		t.Fatal("nothing waits, though nobody has read")
	}
	tp.end()
	tp.give([]byte("after the end"))
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, bytes.Repeat(chunk, chunks)) {
		t.Errorf("client read %d bytes, %v, want all %d in order", len(got), err, chunks*len(chunk))
	}
	<-behind
	if err := <-watched; err != nil {
		t.Errorf("watch = %v, want nil at the end", err)
	}
	_ = r.Close()
}

func TestTapWhoseClientGoes(t *testing.T) {
	testutil.LeakCheck(t)
	for _, queued := range []bool{false, true} {
		tp, r := tapTo(t, time.Hour)
		watched := make(chan error)
		go func() { watched <- tp.watch() }()
		if queued {
			tp.give(make([]byte, 2*pipeSize))
		}
		_ = r.Close()
		if err := <-watched; !errors.Is(err, unix.EPIPE) {
			t.Errorf("queued %v: watch = %v, want EPIPE", queued, err)
		}
		if behind := tp.waiting(); behind != nil {
			<-behind
		}
		tp.give([]byte("x"))
		tp.end()
	}
}

func TestTapWhoseClientStalls(t *testing.T) {
	testutil.LeakCheck(t)
	tp, r := tapTo(t, time.Millisecond)
	defer r.Close()
	tp.give(make([]byte, 2*pipeSize))
	if err := tp.watch(); !errors.Is(err, errStalled) {
		t.Errorf("watch = %v, want that the client stalls", err)
	}
	if b, err := io.ReadAll(r); err != nil || len(b) == 0 || len(b) >= 2*pipeSize {
		t.Errorf("client read %d bytes, %v, want what had been written", len(b), err)
	}
}

// BenchmarkAttached is the way from a pipe to a file and to a client.
func BenchmarkAttached(b *testing.B) {
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
	tp, client := tapTo(b, time.Minute)
	go func() { _ = tp.watch() }()
	s.join(tp)
	go s.run(b.Context())
	read := make(chan int64)
	go func() {
		n, _ := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{client}, make([]byte, readSize))
		read <- n
	}()
	in := bytes.Repeat([]byte("a line of a log that has some length, as they have, about a hundred bytes, or a few more or less...\n"), 1300)
	b.SetBytes(int64(len(in)))
	written := int64(0)
	for b.Loop() {
		n, err := w.Write(in)
		if err != nil {
			b.Fatal(err)
		}
		if written += int64(n); written%(4096*int64(len(in))) == 0 {
			_ = os.Truncate(log.path, 0)
		}
	}
	w.Close()
	<-s.done
	if n := <-read; n != written {
		b.Errorf("client read %d bytes of %d", n, written)
	}
	log.close()
}
