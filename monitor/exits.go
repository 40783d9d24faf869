package monitor

import "sync"

// exitQueue is a queue between the reader, which must not wait for OnExit, and
// the goroutine that calls it. It holds at most a few exits per container.
type exitQueue struct {
	mu    sync.Mutex
	some  sync.Cond // signalled when exits or ended change
	exits []Exit
	ended bool
}

func (q *exitQueue) init() { q.some.L = &q.mu }

// put appends e, unless the queue has ended.
func (q *exitQueue) put(e Exit) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.ended {
		q.exits = append(q.exits, e)
		q.some.Signal()
	}
}

// take waits for the first exit and removes it. False when there is none left
// and none will come.
func (q *exitQueue) take() (Exit, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.exits) == 0 && !q.ended {
		q.some.Wait()
	}
	if len(q.exits) == 0 {
		q.exits = nil
		return Exit{}, false
	}
	e := q.exits[0]
	q.exits = q.exits[1:]
	return e, true
}

// end lets take return false once the queue is empty.
func (q *exitQueue) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	q.some.Broadcast()
}

// drop ends the queue and throws away what is in it.
func (q *exitQueue) drop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.exits, q.ended = nil, true
	q.some.Broadcast()
}
