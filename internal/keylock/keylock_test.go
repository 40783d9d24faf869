package keylock

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
)

// take takes a lock that is free, or becomes so.
func take(t *testing.T, m *Map[string], key string) func() {
	t.Helper()
	unlock, err := m.Lock(t.Context(), key)
	if err != nil {
		t.Errorf("Lock(%q): %v", key, err)
		return func() {}
	}
	return unlock
}

func TestOneHolderPerKey(t *testing.T) {
	var m Map[string]
	counts := map[string]*int{"a": new(int), "b": new(int)} // guarded by the locks
	var wg sync.WaitGroup
	for range 8 {
		for key, n := range counts {
			wg.Go(func() {
				for range 500 {
					unlock := take(t, &m, key)
					*n++
					unlock()
				}
			})
		}
	}
	wg.Wait()
	for key, n := range counts {
		if *n != 8*500 {
			t.Errorf("count under lock %q = %d, want %d", key, *n, 8*500)
		}
	}
	if len(m.locks) != 0 {
		t.Errorf("%d keys are left in the map when nobody holds any, want 0", len(m.locks))
	}
}

func TestKeysDoNotWaitForEachOther(t *testing.T) {
	var m Map[string]
	defer take(t, &m, "stuck")()
	take(t, &m, "free")()
}

func TestWaiterGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m Map[string]
		unlock := take(t, &m, "a")
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("client went away")
		got := make(chan error)
		go func() {
			_, err := m.Lock(ctx, "a")
			got <- err
		}()
		synctest.Wait() // until the goroutine waits for the lock
		cancel(why)
		if err := <-got; !errors.Is(err, why) {
			t.Errorf("Lock with ended context: %v, want one that wraps %q", err, why)
		}
		unlock()
		if len(m.locks) != 0 {
			t.Errorf("%d keys are left in the map, want 0", len(m.locks))
		}
	})
}

func TestFreeLockIsTakenWithEndedContext(t *testing.T) {
	var m Map[string]
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	unlock, err := m.Lock(ctx, "a")
	if err != nil {
		t.Fatalf("Lock of a free key: %v", err)
	}
	unlock()
}

func TestWaitersInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m Map[string]
		unlock := take(t, &m, "a")
		var order []int // guarded by the lock
		want := []int{0, 1, 2, 3, 4}
		for _, i := range want {
			go func() {
				defer take(t, &m, "a")()
				order = append(order, i)
			}()
			synctest.Wait() // until it has queued up
		}
		unlock()
		synctest.Wait()
		if !slices.Equal(order, want) {
			t.Errorf("lock was given in the order %v, want %v", order, want)
		}
	})
}

func TestUnlockTwiceDoesNothing(t *testing.T) {
	var m Map[string]
	first := take(t, &m, "a")
	first()
	defer take(t, &m, "a")()
	first() // must not take the lock from its new holder
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if unlock, err := m.Lock(ctx, "a"); err == nil {
		unlock()
		t.Error("a second unlock by the first holder has unlocked the second holder's lock")
	}
}
