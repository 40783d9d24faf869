package sandbox_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/sandbox"
	"github.com/cridproject/crid/sandbox/config"
	"github.com/cridproject/crid/sandbox/sandboxtest"
)

// podCache is what kubelet's cache does with one pod: of what events and its own
// questions say, it takes what has the time of the last or a later one, whenever it comes.
type podCache struct {
	mu       sync.Mutex
	modified time.Time                                     // +checklocks:mu
	states   map[config.ContainerID]sandbox.ContainerState // +checklocks:mu
	gone     map[config.ContainerID]bool                   // +checklocks:mu
	rank     map[sandbox.ContainerState]int                // immutable
	wrong    func(format string, args ...any)              // immutable
}

func (c *podCache) set(p *sandbox.PodStatus) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.modified.After(p.At) {
		return
	}
	states := make(map[config.ContainerID]sandbox.ContainerState)
	for _, st := range p.Containers {
		states[st.ID] = st.State
		if old, ok := c.states[st.ID]; c.gone[st.ID] || ok && c.rank[st.State] < c.rank[old] {
			c.wrong("a container that is %s and gone: %v is %s at %v, which is later", old, c.gone[st.ID], st.State, p.At)
		}
	}
	for id := range c.states {
		if _, ok := states[id]; !ok {
			c.gone[id] = true
		}
	}
	c.modified, c.states = p.At, states
}

// What has a later time is never older: a client that keeps the newest of events and of
// PodStatus goes through no state twice, and ends with what there is.
func TestEventsAndStatusesHaveAnOrder(t *testing.T) {
	n := sandboxtest.New(t)
	pod, err := n.Manager.Run(t.Context(), sandboxtest.Pod("pod"))
	if err != nil {
		t.Fatal(err)
	}
	cache := &podCache{
		gone: make(map[config.ContainerID]bool), wrong: t.Errorf,
		rank: map[sandbox.ContainerState]int{sandbox.ContainerCreated: 1, sandbox.ContainerRunning: 2, sandbox.ContainerExited: 3},
	}
	events, end := watch(t, n.Manager)
	var clients, work sync.WaitGroup
	stop, applied := make(chan struct{}), make(chan config.ContainerID, 1)
	clients.Go(func() {
		for {
			select {
			case e := <-events:
				cache.set(&e.PodStatus)
				if e.Kind == sandbox.EventCreated && len(e.Containers) == 1 && e.Containers[0].Config.Name == "last" {
					applied <- config.ContainerID(e.ID)
					return
				}
			case <-stop:
				return
			}
		}
	})
	for range 3 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				p, err := n.Manager.PodStatus(string(pod))
				if err != nil {
					t.Errorf("PodStatus = %v", err)
					return
				}
				cache.set(&p)
			}
		})
	}
	for g := range 4 {
		work.Go(func() {
			for i := range 25 {
				id, err := n.Manager.Create(t.Context(), string(pod), sandboxtest.Container(fmt.Sprintf("c-%d-%d", g, i)))
				if err == nil {
					err = n.Manager.Start(t.Context(), string(id))
				}
				if err == nil {
					n.Monitor.Exit(string(id), i)
					err = n.Manager.Remove(t.Context(), string(id))
				}
				if err != nil && !errkind.Is(err, errkind.NotFound) {
					t.Error(err)
				}
			}
		})
	}
	work.Wait()
	last := mustContainer(t, n, pod, "last")
	if got := <-applied; got != last {
		t.Errorf("the last event is of %s, want %s", got, last)
	}
	close(stop)
	clients.Wait()
	_ = end()
	cache.mu.Lock()
	defer cache.mu.Unlock()
	if len(cache.states) != 1 || cache.states[last] != sandbox.ContainerCreated || len(cache.gone) == 0 {
		t.Errorf("a client's view in the end is %v after %d that went, want the one container, and some that went", cache.states, len(cache.gone))
	}
}

func mustContainer(t *testing.T, n *sandboxtest.Node, pod config.SandboxID, name string) config.ContainerID {
	t.Helper()
	id, err := n.Manager.Create(t.Context(), string(pod), sandboxtest.Container(name))
	if err != nil {
		t.Fatal(err)
	}
	return id
}
