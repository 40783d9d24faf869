package sandbox_test

import (
	"slices"
	"testing"
	"time"

	"github.com/cridproject/crid/sandbox"
	"github.com/cridproject/crid/sandbox/config"
	"github.com/cridproject/crid/sandbox/sandboxtest"
)

// told is what is told at once to who subscribes now.
func told(t *testing.T, n *sandboxtest.Node, names map[string]string) (list []string, all []sandbox.Event) {
	t.Helper()
	events, end := watch(t, n.Manager)
	// What is told to whom has an order: all that was there before the mark comes before it.
	mark, err := n.Manager.Run(t.Context(), sandboxtest.Pod("mark"))
	if err != nil {
		t.Fatal(err)
	}
	for {
		e := <-events
		if e.ID == string(mark) {
			break
		}
		list, all = append(list, names[e.ID]+" "+kinds[e.Kind]), append(all, e)
	}
	_ = end()
	mustRemove(t, n, mark)
	return list, all
}

// What ended while nobody could be told is told to all who subscribe in the next minute,
// with how the pod is then: while crid was away, just before it went, and since.
func TestEventsOfThePast(t *testing.T) {
	clock := &clock{at: time.Now()} // the monitor's too, nearly
	n := sandboxtest.New(t, func(o *sandbox.Options) { o.Now = clock.now })
	pod, old := mustLive(t, n, sandboxtest.Pod("pod"), sandboxtest.Container("long ago"))
	exit := func(id config.ContainerID) {
		t.Helper()
		n.Monitor.Exit(string(id), 7)
		n.Monitor.Settle()
	}
	exit(old)
	awaitExit(t, n, old)
	clock.add(2 * time.Minute)
	more := make(map[string]config.ContainerID)
	names := map[string]string{string(pod): "pod", string(old): "long ago"}
	for _, name := range []string{"first", "second", "third", "stays"} {
		more[name], _ = runs(t, n, pod, "/crid", name, 1)
		names[string(more[name])] = name
	}
	exit(more["first"])
	awaitExit(t, n, more["first"])
	before, err := n.Manager.PodStatus(string(pod))
	if err != nil || names[string(before.Containers[0].ID)] != "stays" || before.Containers[4].ID != old {
		t.Fatalf("PodStatus = %+v, %v, want five containers, the newest first", before, err)
	}
	n.Kill()
	clock.add(time.Second)
	exit(more["second"])
	n.Restart()
	clock.add(time.Second)
	exit(more["third"])
	awaitExit(t, n, more["third"])

	want := []string{"first stopped", "second stopped", "third stopped"}
	for range 2 { // whoever comes
		got, all := told(t, n, names)
		if !slices.Equal(got, want) {
			t.Fatalf("who subscribes is told %q, want %q", got, want)
		}
		for i, e := range all {
			if !e.At.After(before.At) || len(e.Containers) != 5 || e.Sandbox == nil || e.Sandbox.ID != pod {
				t.Errorf("%s at %v has %d containers of %v, want the pod with five, after %v", got[i], e.At, len(e.Containers), e.Sandbox, before.At)
			}
			// As kubelet needs them: it takes the first of those with one name.
			if !slices.IsSortedFunc(e.Containers, func(a, b *sandbox.ContainerStatus) int { return b.CreatedAt.Compare(a.CreatedAt) }) {
				t.Errorf("%s: containers are not the newest first", got[i])
			}
			for _, c := range e.Containers { // all of them as they are now, not as they were
				if exited := c.ID != more["stays"]; exited != (c.State == sandbox.ContainerExited) || exited && c.ExitCode != 7 {
					t.Errorf("%s: %s is %s with code %d", got[i], names[string(c.ID)], c.State, c.ExitCode)
				}
			}
		}
	}
	// What is gone is not told of, and neither is what is old.
	if err := n.Manager.Remove(t.Context(), string(more["second"])); err != nil {
		t.Fatal(err)
	}
	if got, _ := told(t, n, names); !slices.Equal(got, []string{"first stopped", "third stopped"}) {
		t.Errorf("after one was removed: %q", got)
	}
	clock.add(time.Minute + time.Second)
	if got, _ := told(t, n, names); len(got) > 0 {
		t.Errorf("a minute later: %q, want nothing", got)
	}
}
