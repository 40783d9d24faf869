package stream

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cridproject/crid/internal/testutil"
	"github.com/cridproject/crid/sandbox"
)

// A size that nobody takes is in nobody's way, and the last one is kept.
func TestSizesKeepTheLast(t *testing.T) {
	testutil.LeakCheck(t)
	messages, client := io.Pipe()
	got := sizes(t.Context(), messages)
	for i := range 1000 {
		if _, err := fmt.Fprintf(client, `{"Width":%d,"Height":40}`+"\n", i); err != nil {
			t.Fatal(err)
		}
	}
	_ = client.Close()
	var last sandbox.Size
	for last = range got {
	}
	if want := (sandbox.Size{Rows: 40, Columns: 999}); last != want {
		t.Errorf("last size = %v, want %v", last, want)
	}
}

// endlessMessage never ends. From stop on it waits until the sizes have ended.
type endlessMessage struct {
	begin string
	stop  int
	ended <-chan struct{}
	read  int
}

func (m *endlessMessage) Read(p []byte) (int, error) {
	if m.read >= m.stop {
		<-m.ended
		return 0, io.EOF
	}
	n := copy(p, m.begin[min(m.read, len(m.begin)):])
	for i := n; i < len(p); i++ {
		p[i] = 'a'
	}
	m.read += len(p)
	return len(p), nil
}

// A message that does not end is not kept in memory until it does.
func TestSizesOfAnEndlessMessage(t *testing.T) {
	testutil.LeakCheck(t)
	for _, begin := range []string{`{"Width":1,"x":"`, `{"Width":"`, `{"Width":80,"Height":25} {"Width":1,"x":"`} {
		ended := make(chan struct{})
		end := sync.OnceFunc(func() { close(ended) })
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		stop := context.AfterFunc(ctx, end)
		for range sizes(ctx, &endlessMessage{begin: begin, stop: 64 << 10, ended: ended}) { //nolint:revive // until its end
		}
		if !stop() {
			t.Errorf("%s…: after 64 KiB of one message it is still read", begin)
		}
		cancel()
		end()
	}
}

func FuzzSizes(f *testing.F) {
	f.Add(`{"Width":80,"Height":25}` + "\n" + `{"Width":100,"Height":30}`)
	f.Add(`{"Width":-1}`)
	f.Add(`{"Width":70000,"Height":1e3}`)
	f.Add(`[]]{"`)
	f.Fuzz(func(t *testing.T, messages string) {
		for range sizes(t.Context(), strings.NewReader(messages)) { //nolint:revive // until its end
		}
	})
}
