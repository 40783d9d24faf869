package stream

import "testing"

// A request that HTTP's server begins while it is being closed is not served: nobody
// would wait for it.
func TestGate(t *testing.T) {
	var g gate
	if !g.enter() {
		t.Fatal("an open gate lets nobody in")
	}
	closed := make(chan struct{})
	go func() {
		g.close()
		close(closed)
	}()
	for g.enter() { // until it has begun to close
		g.leave()
	}
	select {
	case <-closed:
		t.Error("close has returned before all have left")
	default:
	}
	g.leave()
	<-closed
	if g.enter() {
		t.Error("a closed gate lets somebody in")
	}
}
