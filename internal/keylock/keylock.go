// Package keylock is one lock per key, waited for with a context.
//
// An operation on one sandbox may sit in a CNI plugin for minutes; the others
// must not notice, and whoever waits for that sandbox must be able to give up.
package keylock

import (
	"context"
	"fmt"
	"sync"
)

// Map is a set of locks, one per key. Its zero value is ready. Keys that nobody
// holds or waits for take no memory. It must not be copied after first use.
type Map[K comparable] struct {
	mu    sync.Mutex
	locks map[K]*lock // +checklocks:mu
}

type lock struct {
	held  chan struct{} // holds one element while the lock is held
	users int           // +checklocks:Map.mu; holder and waiters
}

// Lock waits until nobody else holds key, and returns the function that gives
// it back; calling that a second time does nothing. When ctx ends first, the
// error wraps ctx's cause and the lock is not held. A free lock is taken
// even when ctx has ended, so that work begun in time can clean up.
//
// Waiters are served in the order in which they came. The lock is not
// reentrant.
func (m *Map[K]) Lock(ctx context.Context, key K) (unlock func(), err error) {
	l := m.use(key)
	select {
	case l.held <- struct{}{}:
	default:
		select {
		case l.held <- struct{}{}:
		case <-ctx.Done():
			m.leave(key, l)
			return nil, fmt.Errorf("wait for another operation on %v: %w", key, context.Cause(ctx))
		}
	}
	return sync.OnceFunc(func() {
		<-l.held
		m.leave(key, l)
	}), nil
}

// use counts the caller among the users of key's lock, which keeps it in the map.
func (m *Map[K]) use(key K) *lock {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.locks[key]
	if l == nil {
		if m.locks == nil {
			m.locks = make(map[K]*lock)
		}
		l = &lock{held: make(chan struct{}, 1)}
		m.locks[key] = l
	}
	l.users++
	return l
}

func (m *Map[K]) leave(key K, l *lock) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l.users--; l.users == 0 {
		delete(m.locks, key)
	}
}
