package sandbox

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/cridproject/crid/internal/errkind"
)

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
