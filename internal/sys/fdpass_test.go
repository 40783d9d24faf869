package sys

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// socketPair is two ends of a unix stream connection, closed with the test.
func socketPair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		c, err := net.FileConn(f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = c.(*net.UnixConn)
		t.Cleanup(func() { _ = c.Close() })
	}
	return ends[0], ends[1]
}

// numbered is n files, each with its number in it.
func numbered(t *testing.T, n int) []*os.File {
	t.Helper()
	dir := t.TempDir()
	files := make([]*os.File, n)
	for i := range files {
		f, err := os.Create(fmt.Sprintf("%s/%d", dir, i))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		if _, err := fmt.Fprintf(f, "%d", i); err != nil {
			t.Fatal(err)
		}
		files[i] = f
	}
	return files
}

func openFDs(t *testing.T) int {
	t.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(e)
}

func TestWriteMsgCarriesDataAndFilesInOrder(t *testing.T) {
	for _, tt := range []struct{ bytes, files int }{
		{1, 0},
		{1, 1},
		{1, maxFDs},
		{2, maxFDs + 1},
		{100, 1000},
		{8, 2000},
		{1 << 20, 0},
		{4 << 20, 3},
		{4 << 20, 600},
	} {
		t.Run(fmt.Sprintf("%dB/%d", tt.bytes, tt.files), func(t *testing.T) {
			a, b := socketPair(t)
			want := make([]byte, tt.bytes)
			for i := range want {
				want[i] = byte(rand.Uint32())
			}
			files := numbered(t, tt.files)
			before := openFDs(t)

			sent := make(chan error, 1)
			go func() { sent <- WriteMsg(a, want, files...) }()
			r := NewMsgReader(b)
			got := make([]byte, tt.bytes)
			if _, err := io.ReadFull(r, got); err != nil {
				t.Fatalf("Read = %v, want all %d bytes", err, tt.bytes)
			}
			if err := <-sent; err != nil {
				t.Fatalf("WriteMsg = %v, want nil", err)
			}
			if !bytes.Equal(got, want) {
				t.Error("Read: other bytes than were written")
			}
			if got := r.Pending(); got != tt.files {
				t.Fatalf("Pending() = %d, want %d", got, tt.files)
			}
			checkNumbered(t, r, tt.files)
			if got := openFDs(t); got != before {
				t.Errorf("%d descriptors open afterwards, %d before", got, before)
			}
		})
	}
}

// checkNumbered takes n files from r, in two parts, and closes them.
func checkNumbered(t *testing.T, r *MsgReader, n int) {
	t.Helper()
	first, err := r.Take(n / 2)
	if err != nil {
		t.Fatal(err)
	}
	second, err := r.Take(n - n/2)
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range append(first, second...) {
		var b [8]byte
		m, _ := f.ReadAt(b[:], 0)
		if want := fmt.Sprint(i); string(b[:m]) != want {
			t.Errorf("file %d holds %q, want %q", i, b[:m], want)
		}
		flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("file %d: flags %#x, %v; want close-on-exec", i, flags, err)
		}
		_ = f.Close()
	}
}

func TestWriteMsgRefusesTooFewBytes(t *testing.T) {
	a, _ := socketPair(t)
	if err := WriteMsg(a, []byte{1}, numbered(t, maxFDs+1)...); err == nil {
		t.Error("WriteMsg of one byte and 254 files = nil, want an error")
	}
}

func TestWriteMsgOfClosedFile(t *testing.T) {
	a, _ := socketPair(t)
	files := numbered(t, 3)
	_ = files[1].Close()
	if err := WriteMsg(a, []byte("x"), files...); err == nil {
		t.Error("WriteMsg with a closed file = nil, want an error")
	}
}

func TestMsgReaderEndsWithEOF(t *testing.T) {
	a, b := socketPair(t)
	if err := WriteMsg(a, []byte("ab"), numbered(t, 2)...); err != nil {
		t.Fatal(err)
	}
	_ = a.Close()
	before := openFDs(t)
	r := NewMsgReader(b)
	got, err := io.ReadAll(r)
	if err != nil || string(got) != "ab" {
		t.Fatalf("ReadAll = %q, %v, want ab, nil", got, err)
	}
	if _, err := r.Take(3); err == nil {
		t.Error("Take(3) of 2 = nil, want an error")
	}
	if got := r.Pending(); got != 2 {
		t.Errorf("Pending() = %d, want 2", got)
	}
	r.Close()
	if got := openFDs(t); got != before {
		t.Errorf("%d descriptors open after Close, %d before", got, before)
	}
}

func TestMsgReaderSaysThatDescriptorsWereLost(t *testing.T) {
	a, b := socketPair(t)
	if err := WriteMsg(a, []byte("ab"), numbered(t, 100)...); err != nil {
		t.Fatal(err)
	}
	// Leave room for fewer than come.
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(openFDs(t) + 20), Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &old) }()
	r := NewMsgReader(b)
	defer r.Close()
	if _, err := r.Read(make([]byte, 2)); err == nil {
		t.Errorf("Read = nil with %d of 100 descriptors, want an error", r.Pending())
	}
}

func TestPassiveIsNotPolled(t *testing.T) {
	before := openFDs(t)
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	w := os.NewFile(uintptr(p[1]), "w")
	r, err := Passive(os.NewFile(uintptr(p[0]), "r"))
	if err != nil {
		t.Fatal(err)
	}
	// A file that the poller watches has deadlines.
	if err := r.SetReadDeadline(time.Time{}); err == nil {
		t.Error("SetReadDeadline = nil: the poller watches a passive file")
	}
	if err := w.SetWriteDeadline(time.Time{}); err != nil {
		t.Errorf("SetWriteDeadline = %v: the poller does not watch a file with O_NONBLOCK: is Passive still needed?", err)
	}
	if _, err := w.WriteString("x"); err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	raw, _ := r.SyscallConn()
	var n int
	_ = raw.Control(func(fd uintptr) { n, err = syscall.Read(int(fd), b[:]) })
	if n != 1 || err != nil {
		t.Errorf("read of the passive descriptor = %d, %v, want 1, nil", n, err)
	}
	_, _ = r.Close(), w.Close()
	if got := openFDs(t); got != before {
		t.Errorf("%d descriptors open afterwards, %d before", got, before)
	}
}

func TestPassiveOfClosedFile(t *testing.T) {
	f := numbered(t, 1)[0]
	_ = f.Close()
	before := openFDs(t)
	if _, err := Passive(f); err == nil {
		t.Error("Passive of a closed file = nil, want an error")
	}
	if got := openFDs(t); got != before {
		t.Errorf("%d descriptors open afterwards, %d before", got, before)
	}
}

func TestMsgReaderOfClosedConnection(t *testing.T) {
	_, b := socketPair(t)
	_ = b.Close()
	// io.Reader forbids the negative count that the net package gives.
	if n, err := NewMsgReader(b).Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("Read = %d, %v, want 0 and an error", n, err)
	}
}
