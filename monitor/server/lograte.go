package server

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"
)

// logNotice is how long after the first record that a stream lost to the limit
// its log says so at the latest.
const logNotice = time.Second

// logLimit is how much a container may log, with both streams. Nil is no limit.
//
// It lets through what one second allows at once. Then nothing, until half of
// that is free again: so what is lost is lost in pieces, each with one notice.
type logLimit struct {
	rate   int64 // bytes a second, of the file
	counts *logCounts

	mu   sync.Mutex
	left int64     // +checklocks:mu; bytes; below 0 after a record that was longer
	at   time.Time // +checklocks:mu; when left was right
	over bool      // +checklocks:mu
}

// newLogLimit is nil for a rate of 0.
func newLogLimit(rate int64, counts *logCounts) *logLimit {
	if rate <= 0 {
		return nil
	}
	return &logLimit{rate: rate, counts: counts, left: rate}
}

// take says how many bytes of records, which are whole ones, may be written.
func (l *logLimit) take(records []byte, now time.Time) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if passed := now.Sub(l.at); passed >= time.Second {
		l.left, l.at = l.rate, now
	} else if more := int64(float64(l.rate) * passed.Seconds()); more > 0 {
		l.left, l.at = min(l.left+more, l.rate), now
	}
	if l.over && l.left < l.rate/2 {
		return 0
	}
	l.over = false
	if l.left >= int64(len(records)) {
		l.left -= int64(len(records))
		return len(records)
	}
	for n < len(records) && l.left > 0 {
		next := bytes.IndexByte(records[n:], '\n') + 1
		n += next
		l.left -= int64(next)
	}
	l.over = n < len(records)
	return n
}

// lost is what the limit has taken from a stream and its log has not said yet.
type lost struct {
	bytes, records int
	timer          *time.Timer // nil until the first
}

// put writes records, as far as the limit allows. Preconditions: mu is held.
func (s *stream) put(ctx context.Context, records []byte) {
	l := s.log.limit
	if l == nil {
		s.log.write(ctx, records)
		return
	}
	n := l.take(records, time.Now())
	if n > 0 {
		s.confess(ctx)
		s.log.write(ctx, records[:n])
	}
	rest := records[n:]
	if len(rest) == 0 {
		return
	}
	over := bytes.Count(rest, []byte{'\n'})
	l.counts.limited.Add(uint64(len(rest)))
	l.counts.limitedRecords.Add(uint64(over))
	if s.lost.bytes == 0 {
		s.confessLater(ctx)
	}
	s.lost.bytes += len(rest)
	s.lost.records += over
}

// confess writes what was lost into the log, as a record that also ends a line
// of which the limit has let only a part through. Preconditions: mu is held.
func (s *stream) confess(ctx context.Context) {
	if s.lost.bytes == 0 {
		return
	}
	record := s.rec.header(nil, time.Now())
	record = fmt.Appendf(record, "F [crid: dropped %d bytes of this log, %d records, over the limit of %d bytes a second]\n",
		s.lost.bytes, s.lost.records, s.log.limit.rate)
	s.lost.bytes, s.lost.records = 0, 0
	s.lost.timer.Stop()
	s.log.write(ctx, record)
}

// confessLater is for a container that is silent after it has written too much.
// Preconditions: mu is held.
func (s *stream) confessLater(ctx context.Context) {
	if s.lost.timer != nil {
		s.lost.timer.Reset(logNotice)
		return
	}
	s.lost.timer = time.AfterFunc(logNotice, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.closed {
			s.confess(ctx)
		}
	})
}
