package sandbox_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/sandbox"
	"github.com/cridproject/crid/sandbox/sandboxtest"
)

// TestRandom has 100 goroutines make, start, stop and remove the same few pods
// and containers. Whatever each of them gets, the node is consistent, and clean
// in the end. CRID_VERIFY looks after each operation.
func TestRandom(t *testing.T) {
	const pods, goroutines, operations = 8, 100, 30
	n := sandboxtest.New(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(g)))
			for range operations {
				randomOperation(t, n, rnd, fmt.Sprintf("pod-%d", rnd.IntN(pods)))
			}
		})
	}
	wg.Wait()
	for _, s := range n.Manager.Sandboxes() {
		mustRemove(t, n, s.ID)
	}
	mustBeClean(t, n)
}

func randomOperation(t *testing.T, n *sandboxtest.Node, rnd *rand.Rand, pod string) {
	m, ctx := n.Manager, t.Context()
	var s sandbox.SandboxStatus
	for _, st := range m.Sandboxes() {
		if st.Config.Name == pod {
			s = st
		}
	}
	var c sandbox.ContainerStatus
	for _, st := range m.Containers() {
		if st.Sandbox == s.ID && (c.ID == "" || rnd.IntN(2) == 0) {
			c = st
		}
	}
	var err error
	switch op := rnd.IntN(10); {
	case op < 3 || s.ID == "":
		_, err = m.Run(ctx, sandboxtest.Pod(pod))
	case op < 5 || c.ID == "" && op < 8:
		_, err = m.Create(ctx, string(s.ID), sandboxtest.Container(fmt.Sprint(rnd.IntN(3))))
	case op == 5:
		err = m.Start(ctx, string(c.ID))
	case op == 6:
		err = m.Stop(ctx, string(c.ID), time.Duration(rnd.IntN(2))*time.Hour)
	case op == 7:
		err = m.Remove(ctx, string(c.ID))
	case op == 8:
		err = m.StopSandbox(ctx, string(s.ID))
	default:
		err = m.RemoveSandbox(ctx, string(s.ID))
	}
	switch errkind.Of(err) {
	case errkind.BadState, errkind.Exists, errkind.NotFound: // somebody else was faster
	default:
		if err != nil {
			t.Errorf("kind %v: %v", errkind.Of(err), err)
		}
	}
}
