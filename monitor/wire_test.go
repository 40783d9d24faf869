package monitor

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/sys"
)

func TestFramesArriveAsWritten(t *testing.T) {
	for _, f := range []Frame{
		{ID: 1, Op: OpStart},
		{Op: OpExit, Body: json.RawMessage(`{"ID":"a"}`)},
		{ID: 1 << 63, Op: OpCreate, Error: &WireError{"invalid", "täxt <&>\n"}},
		{ID: 2, Op: OpCreate, Body: json.RawMessage(`"` + strings.Repeat("x", MaxFrame-100) + `"`)},
		{ID: 3, Op: OpList, Body: json.RawMessage(`[]`), Files: nulls(t, 700)},
		{ID: 4, Op: OpCreate, Body: json.RawMessage(`"` + strings.Repeat("x", 100_000) + `"`), Files: nulls(t, 3)},
	} {
		t.Run(fmt.Sprintf("%s/%dB/%d", f.Op, len(f.Body), len(f.Files)), func(t *testing.T) {
			before := openFDs(t)
			a, b := socketPair(t)
			from, to := NewConn(a), NewConn(b)
			// Twice, so that the second follows at once.
			wrote := make(chan error, 1)
			go func() { wrote <- errors.Join(from.Write(f), from.Write(f)) }()
			for range 2 {
				got, err := to.Read()
				if err != nil {
					t.Fatalf("Read = %v, want nil", err)
				}
				if len(got.Files) != len(f.Files) {
					t.Errorf("Read: %d files, want %d", len(got.Files), len(f.Files))
				}
				got.CloseFiles()
				want := f
				want.Files = nil
				if !reflect.DeepEqual(got, want) {
					t.Errorf("Read = %.200v, want %.200v", got, want)
				}
			}
			if err := <-wrote; err != nil {
				t.Errorf("Write = %v, want nil", err)
			}
			_ = from.Close()
			if _, err := to.Read(); !errors.Is(err, io.EOF) {
				t.Errorf("Read at the end = %v, want io.EOF", err)
			}
			_ = to.Close()
			if got := openFDs(t); got != before {
				t.Errorf("%d descriptors open in the end, %d before", got, before)
			}
			closeAll(f.Files)
		})
	}
}

func TestConcurrentWritesKeepFramesApart(t *testing.T) {
	const writers, each = 8, 50
	a, b := socketPair(t)
	from, to := NewConn(a), NewConn(b)
	defer from.Close()
	files := nulls(t, 3)
	defer closeAll(files)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				n := (w + i) % 4
				f, err := NewFrame(uint64(n), OpExec, strings.Repeat("x", n*5000), files[:n]...)
				if err == nil {
					err = from.Write(f)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range writers * each {
		f, err := to.Read()
		if err != nil {
			t.Fatal(err)
		}
		if n := int(f.ID); len(f.Files) != n || len(f.Body) != n*5000+2 {
			t.Errorf("frame %d came with %d files and %d bytes, want %d and %d", n, len(f.Files), len(f.Body), n, n*5000+2)
		}
		f.CloseFiles()
	}
	wg.Wait()
}

func TestReadRefuses(t *testing.T) {
	frame := func(payload string) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(payload))), payload...)
	}
	for _, tt := range []struct {
		name string
		in   []byte
		want string
	}{
		{"empty frame", frame(""), "0 bytes"},
		{"too long", []byte{0xff, 0xff, 0xff, 0xff}, "4294967295 bytes"},
		{"cut prefix", []byte{0, 0}, "unexpected EOF"},
		{"cut frame", frame(`{"op":"ack"}`)[:8], "unexpected EOF"},
		{"no frame after prefix", []byte{0, 0, 0, 1}, "unexpected EOF"},
		{"no JSON", frame(`hello`), "decode"},
		{"no op", frame(`{"id":1}`), "without op"},
		{"descriptors that did not come", frame(`{"op":"ack","fds":1}`), "1 announced, 0 came"},
		{"too many descriptors", frame(`{"op":"ack","fds":99999}`), "99999"},
		{"negative descriptors", frame(`{"op":"ack","fds":-1}`), "-1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := socketPair(t)
			if _, err := a.Write(tt.in); err != nil {
				t.Fatal(err)
			}
			_ = a.Close()
			if f, err := NewConn(b).Read(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Read = %+v, %v, want an error with %q", f, err, tt.want)
			}
		})
	}
}

func TestReadRefusesStrayDescriptors(t *testing.T) {
	before := openFDs(t)
	a, b := socketPair(t)
	to := NewConn(b)
	files := nulls(t, 2)
	// As Write does it, but announcing one of two.
	payload := `{"op":"ack","fds":1}`
	if err := sys.WriteMsg(a, append([]byte{0, 0, 0, byte(len(payload))}, payload...), files...); err != nil {
		t.Fatal(err)
	}
	if _, err := to.Read(); err == nil {
		t.Error("Read with a descriptor too many = nil, want an error")
	}
	closeAll(files)
	_, _ = a.Close(), to.Close()
	if got := openFDs(t); got != before {
		t.Errorf("%d descriptors open in the end, %d before", got, before)
	}
}

func TestWriteRefuses(t *testing.T) {
	a, b := socketPair(t)
	from, to := NewConn(a), NewConn(b)
	defer from.Close()
	for name, f := range map[string]Frame{
		"long":    {Op: OpCreate, Body: json.RawMessage(`"` + strings.Repeat("x", MaxFrame) + `"`)},
		"no JSON": {Op: OpCreate, Body: json.RawMessage(`{`)},
		"files":   {Op: OpList, Files: make([]*os.File, MaxFiles+1)},
	} {
		if err := from.Write(f); !errors.Is(err, ErrFrame) {
			t.Errorf("Write of %s = %v, want ErrFrame", name, err)
		}
	}
	if err := from.Write(Frame{Op: OpAck}); err != nil {
		t.Errorf("Write thereafter = %v, want nil", err)
	}
	if f, err := to.Read(); err != nil || f.Op != OpAck {
		t.Errorf("Read = %q, %v, want %q", f.Op, err, OpAck)
	}
	_ = to.Close()
	if err := from.Write(Frame{Op: OpAck}); err == nil || errors.Is(err, ErrFrame) {
		t.Errorf("Write to nobody = %v, want an error of the connection", err)
	}
}

func TestErrorsKeepTheirKind(t *testing.T) {
	for _, k := range errkind.Kinds {
		in := fmt.Errorf("start: %w", errkind.Errorf(k, "because of %v", k))
		b, err := json.Marshal(ErrorToWire(in))
		if err != nil {
			t.Fatal(err)
		}
		var w WireError
		if err := json.Unmarshal(b, &w); err != nil {
			t.Fatal(err)
		}
		if out := w.Err(); errkind.Of(out) != k || out.Error() != in.Error() {
			t.Errorf("%v (%v) arrives as %v (%v)", in, k, out, errkind.Of(out))
		}
	}
	if got := ErrorToWire(nil).Err(); got != nil {
		t.Errorf("nil arrives as %v, want nil", got)
	}
	if got := ErrorToWire(context.DeadlineExceeded).Err(); !errkind.Is(got, errkind.Timeout) {
		t.Errorf("a deadline arrives as %v, want kind timeout", errkind.Of(got))
	}
	if got := (&WireError{"of tomorrow", "x"}).Err(); !errkind.Is(got, errkind.Other) || got.Error() != "x" {
		t.Errorf("an unknown kind arrives as %v (%v), want x (other)", got, errkind.Of(got))
	}
}

// FuzzFrame holds the reader of frames to three things on any input: no panic,
// what is read obeys the limits, and what is read again after writing is equal.
func FuzzFrame(f *testing.F) {
	for _, s := range []string{
		``, `{}`, `{"op":"ack"}`, `{"id":1,"op":"create","body":{"ID":"a"},"fds":3}`,
		`{"id":18446744073709551615,"op":"exit","error":{"kind":"x","text":"y"}}`, `{"op":"a","fds":-1}`, `[1]`,
	} {
		f.Add(append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...))
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, in []byte) {
		payload, err := readPayload(bytes.NewReader(in), nil)
		if err != nil {
			return
		}
		if len(payload) > MaxFrame || len(payload) > len(in) {
			t.Fatalf("a payload of %d bytes out of %d", len(payload), len(in))
		}
		e, err := decode(payload)
		if err != nil {
			return
		}
		if e.Op == "" || e.FDs < 0 || e.FDs > MaxFiles {
			t.Fatalf("decode = %+v", e)
		}
		_ = e.Error.Err()
		again, err := json.Marshal(e)
		if err != nil {
			t.Fatalf("encode %+v: %v", e, err)
		}
		e2, err := decode(again)
		if err != nil {
			t.Fatalf("decode again: %v", err)
		}
		// Encoding may change the spelling of the body, and nothing else.
		e.Body, e2.Body = nil, nil
		if !reflect.DeepEqual(e, e2) {
			t.Errorf("%+v was read as %+v", e, e2)
		}
	})
}
