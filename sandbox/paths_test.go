package sandbox

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/cridproject/crid/internal/errkind"
)

// Of several paths the one that hangs is named, and those behind it are left alone.
func TestPathsOneAfterTheOther(t *testing.T) {
	var p pathProber
	dead, seen := make(chan struct{}), make(chan int, 3)
	ended := make(chan struct{})
	at, err := p.each(t.Context(), time.Second, []string{"/a", "/b", "/c"}, func(work func()) {
		go func() { defer close(ended); work() }()
	}, func(i int) error {
		seen <- i
		if i == 1 {
			<-dead
		}
		return nil
	})
	if at != 1 || !errkind.Is(err, errkind.Unavailable) {
		t.Errorf("each = %d, %v, want 1 of kind unavailable", at, err)
	}
	close(dead)
	<-ended
	if len(seen) != 2 {
		t.Errorf("%d paths were looked at, want two", len(seen))
	}
	wrong := errkind.Errorf(errkind.Invalid, "wrong")
	at, err = p.each(t.Context(), time.Hour, []string{"/x", "/y"}, func(work func()) { go work() }, func(i int) error {
		if i == 1 {
			return wrong
		}
		return nil
	})
	if at != 1 || !errors.Is(err, wrong) {
		t.Errorf("each = %d, %v, want 1 and its error", at, err)
	}
}

func TestDeadMountHangsNobody(t *testing.T) {
	var p pathProber
	dead := make(chan struct{})
	hang := func() error { <-dead; return nil }
	if err := p.do(t.Context(), time.Millisecond, "/dead", hang); !errkind.Is(err, errkind.Unavailable) {
		t.Errorf("do that hangs = %v, want kind unavailable", err)
	}
	called := false
	if err := p.do(t.Context(), time.Hour, "/dead", func() error { called = true; return nil }); !errkind.Is(err, errkind.Unavailable) || called {
		t.Errorf("do while another hangs = %v, called: %t, want kind unavailable without a call", err, called)
	}
	if err := p.do(t.Context(), time.Hour, "/alive", func() error { return nil }); err != nil {
		t.Errorf("do of another path = %v", err)
	}
	close(dead)
	for p.do(t.Context(), time.Hour, "/dead", func() error { return nil }) != nil {
		if t.Context().Err() != nil {
			t.Fatal("the path is never tried again")
		}
	}
	if len(p.stuck) != 0 {
		t.Errorf("stuck: %v, want none", p.stuck)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wait := make(chan struct{})
	defer close(wait)
	if err := p.do(ctx, time.Hour, "/x", func() error { <-wait; return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("do with its caller gone = %v, want canceled", err)
	}
}

// A call that was left because its caller went is no reason to refuse the next,
// which waits for it.
func TestAfterACallThatWasLeft(t *testing.T) {
	var p pathProber
	ctx, cancel := context.WithCancel(t.Context())
	going, goOn := make(chan struct{}), make(chan struct{})
	go func() {
		<-going
		cancel()
	}()
	err := p.do(ctx, time.Hour, "/a", func() error { close(going); <-goOn; return nil })
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("do = %v, want canceled", err)
	}
	next := make(chan error, 1)
	go func() { next <- p.do(t.Context(), time.Hour, "/a", func() error { return nil }) }()
	close(goOn)
	if err := <-next; err != nil {
		t.Errorf("the next do = %v, want success", err)
	}
}

// A caller may be gone before its call has begun.
func TestACallThatNeverBegan(t *testing.T) {
	var p pathProber
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var work func()
	late := func(f func()) { work = f }
	if _, err := p.each(ctx, time.Hour, []string{"/a"}, late, func(int) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Fatalf("each = %v, want canceled", err)
	}
	work()
	if err := p.do(t.Context(), time.Hour, "/a", func() error { return nil }); err != nil {
		t.Errorf("the next do = %v, want success", err)
	}
}
