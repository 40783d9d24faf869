package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// maxRecord is how many bytes of a line go into one record of a CRI log. Longer
// lines are cut, and all pieces but the last are tagged P (partial).
const maxRecord = 16384

// logBatch is the room for records between two writes to the file.
const logBatch = 128 << 10

// headerLen is the longest that precedes the text of a record.
const headerLen = len("2016-10-06T00:17:09.669794202Z stdout F ")

// recorder turns what a process writes to one stream into records of a CRI log:
//
//	2016-10-06T00:17:09.669794202Z stdout F text
//
// Its output does not depend on how the input is cut into calls. Like containerd
// it takes a carriage return before a newline for part of the line's end.
type recorder struct {
	stream string // "stdout" or "stderr"
	rest   []byte // of a line that has not ended; at most maxRecord+1 bytes
}

// add appends the records that p completes to out and returns it. When the
// next record might not fit into out's capacity, it calls flush with what there
// is and starts again at out's beginning.
func (r *recorder) add(out, p []byte, now time.Time, flush func([]byte)) []byte {
	var buf [headerLen]byte
	head := r.header(buf[:0], now)
	for {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			break
		}
		a, b := r.rest, p[:i]
		if n := len(b); n > 0 && b[n-1] == '\r' {
			b = b[:n-1]
		} else if m := len(a); n == 0 && m > 0 && a[m-1] == '\r' {
			a = a[:m-1]
		}
		for len(a)+len(b) > maxRecord {
			out, a, b = record(out, head, 'P', a, b, flush)
		}
		out, _, _ = record(out, head, 'F', a, b, flush)
		r.rest = r.rest[:0]
		p = p[i+1:]
	}
	// A piece is cut only once it is certain that the line's text is longer: the
	// byte after it may be the carriage return of the line's end.
	a, b := r.rest, p
	for {
		n := len(a) + len(b)
		if n <= maxRecord || n == maxRecord+1 && last(a, b) == '\r' {
			break
		}
		out, a, b = record(out, head, 'P', a, b, flush)
	}
	if len(a) != len(r.rest) {
		r.rest = append(r.rest[:0], a...) // a is its tail
	}
	r.rest = append(r.rest, b...)
	return out
}

// end appends what is left of a line that nothing will end, tagged P as both
// containerd and CRI-O do.
func (r *recorder) end(out []byte, now time.Time, flush func([]byte)) []byte {
	if len(r.rest) == 0 {
		return out
	}
	var buf [headerLen]byte
	head := r.header(buf[:0], now)
	a := r.rest
	var b []byte
	for len(a) > 0 {
		out, a, b = record(out, head, 'P', a, b, flush)
	}
	r.rest = nil
	return out
}

// idle gives back the memory that is worth giving back between bursts.
func (r *recorder) idle() {
	if len(r.rest) == 0 {
		r.rest = nil
	}
}

func last(a, b []byte) byte {
	if len(b) > 0 {
		return b[len(b)-1]
	}
	return a[len(a)-1]
}

// header is the part of a record before its tag. The time is written with all
// nine digits, in UTC, so that records sort and have one length.
func (r *recorder) header(dst []byte, now time.Time) []byte {
	dst = now.UTC().AppendFormat(dst, "2006-01-02T15:04:05.000000000Z")
	dst = append(dst, ' ')
	dst = append(dst, r.stream...)
	return append(dst, ' ')
}

// record appends one record with at most maxRecord bytes of a and then b, and
// returns what is left of them.
func record(out, head []byte, tag byte, a, b []byte, flush func([]byte)) (o, restA, restB []byte) {
	na := min(len(a), maxRecord)
	nb := min(len(b), maxRecord-na)
	if len(out)+headerLen+na+nb+1 > cap(out) {
		flush(out)
		out = out[:0]
	}
	out = append(out, head...)
	out = append(out, tag, ' ')
	out = append(out, a[:na]...)
	out = append(out, b[:nb]...)
	out = append(out, '\n')
	return out, a[na:], b[nb:]
}

// logCounts is what becomes of all that containers write, in bytes of log files
// where nothing else is said.
type logCounts struct {
	written, dropped, limited atomic.Uint64
	failed                    atomic.Uint64 // writes
	limitedRecords            atomic.Uint64
}

// criLog is the log file of one container. Both streams write to it.
//
// A log that cannot be written does not stop the container: what cannot be
// written is dropped and counted, and the next batch is tried again. The first that
// can be written comes after a record that says how much is missing.
type criLog struct {
	path   string // "" means that there is no log
	counts *logCounts
	limit  *logLimit // nil without

	mu      sync.Mutex // held across write(2): it keeps batches whole and reopen exact
	f       *os.File   // +checklocks:mu; nil while it cannot be opened, and after close
	closed  bool       // +checklocks:mu
	failing bool       // +checklocks:mu; the last write or open failed, which has been said
	torn    bool       // +checklocks:mu; the file ends within a record
	missing int        // +checklocks:mu; bytes that were lost and that the log does not tell of yet
	cause   error      // +checklocks:mu; of the last of them
}

// openLog opens the log for appending and makes the folders above it. It says
// whether it made the file. On error l may be used all the same: it is tried
// again with what is written next.
func openLog(path string, counts *logCounts) (l *criLog, made bool, err error) {
	l = &criLog{path: path, counts: counts}
	if path == "" {
		return l, false, nil
	}
	_, statErr := os.Lstat(path)
	l.f, err = openLogFile(path)
	l.failing = err != nil
	return l, os.IsNotExist(statErr) && err == nil, err
}

// openLogFile follows no link at path and waits for nobody to read: pods that
// collect logs may be able to write to the folder, and this program writes as root.
func openLogFile(path string) (*os.File, error) {
	const flags = os.O_WRONLY | os.O_CREATE | os.O_APPEND | unix.O_NOFOLLOW | unix.O_NONBLOCK
	f, err := os.OpenFile(path, flags, 0o640)
	if os.IsNotExist(err) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, fmt.Errorf("make folder of log file: %w", err)
		}
		f, err = os.OpenFile(path, flags, 0o640)
	}
	if err != nil {
		return nil, fmt.Errorf("open log file: %w", err)
	}
	if st, err := f.Stat(); err != nil || st.Mode()&os.ModeNamedPipe != 0 {
		return nil, errors.Join(fmt.Errorf("open log file: %s is a pipe", path), err, f.Close())
	}
	return f, nil
}

// write appends whole records to the file with one write(2).
func (l *criLog) write(ctx context.Context, records []byte) {
	if len(records) == 0 || l.path == "" {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	if l.f == nil {
		f, err := openLogFile(l.path)
		if err != nil {
			l.lost(ctx, len(records), err)
			return
		}
		l.f = f
	}
	if err := l.confess(ctx, records); err != nil {
		l.lost(ctx, len(records), err)
		return
	}
	n, err := l.f.Write(records)
	l.counts.written.Add(uint64(max(n, 0)))
	if err == nil {
		l.failing = false
		return
	}
	l.torn = n > 0 && records[n-1] != '\n'
	l.lost(ctx, len(records)-n, err)
}

// confess writes what has to precede next: the end of a record that was cut, so that
// readers find the next one, and how much is missing. Preconditions: mu is held, the
// file is open.
func (l *criLog) confess(ctx context.Context, next []byte) error {
	var text []byte
	if l.torn {
		text = append(text, '\n')
	}
	if l.missing > 0 {
		text = append(text, next[:prefixLen(next)]...)
		text = fmt.Appendf(text, "F [crid: lost %d bytes of this log: %v]\n", l.missing, l.cause)
	}
	if len(text) == 0 {
		return nil
	}
	n, err := l.f.Write(text)
	if err != nil {
		l.torn = l.torn && n == 0 || n > 0 && text[n-1] != '\n'
		return err
	}
	if l.missing > 0 {
		klog.FromContext(ctx).Info("Could write a container's log again", "path", l.path, "lost", l.missing)
	}
	l.torn, l.missing, l.cause = false, 0, nil
	return nil
}

// prefixLen is the length of what a record has before its tag.
func prefixLen(record []byte) int {
	first := bytes.IndexByte(record, ' ') + 1
	return first + bytes.IndexByte(record[first:], ' ') + 1
}

// lost counts what could not be written, and says so once. Preconditions: mu is held.
func (l *criLog) lost(ctx context.Context, n int, err error) {
	l.counts.dropped.Add(uint64(n))
	l.counts.failed.Add(1)
	l.missing, l.cause = l.missing+n, err
	if path := (*os.PathError)(nil); errors.As(err, &path) {
		l.cause = path.Err // the node's paths are not for who reads the log
	}
	if !l.failing {
		l.failing = true
		klog.FromContext(ctx).Error(err, "Lost log of a container, will try again with what it writes next", "path", l.path)
	}
}

// reopen opens the path anew and lets go of the old file. On error the old file
// stays in use. Nothing is written to the old file once there is a new one: who
// follows a log, as kubelet does, leaves the old file as soon as the new one appears.
func (l *criLog) reopen() error {
	if l.path == "" {
		return nil
	}
	old, err := l.replace()
	if old != nil {
		_ = old.Close()
	}
	return err
}

// replace opens the path anew and returns the file that it had before.
func (l *criLog) replace() (old *os.File, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, nil
	}
	f, err := openLogFile(l.path)
	if err != nil {
		return nil, err
	}
	old, l.f, l.failing, l.torn = l.f, f, false, false
	return old, nil
}

// close ends the log; later writes do nothing.
func (l *criLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.f != nil {
		_ = l.f.Close()
		l.f = nil
	}
}
