package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
	"github.com/cridproject/crid/monitor"
	"github.com/cridproject/crid/sandbox"
	"github.com/cridproject/crid/sandbox/config"
	"github.com/cridproject/crid/sandbox/sandboxtest"
)

// watch subscribes, and returns a function that ends that and returns what was told.
func watch(t *testing.T, m *sandbox.Manager) (events chan sandbox.Event, end func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	events = make(chan sandbox.Event, 100)
	go func() {
		done <- m.WatchEvents(ctx, func() error { close(ready); return nil }, func(e *sandbox.Event) error {
			events <- *e
			return nil
		})
	}()
	<-ready
	return events, func() error { cancel(); return <-done }
}

var kinds = map[sandbox.EventKind]string{
	sandbox.EventCreated: "created", sandbox.EventStarted: "started", sandbox.EventStopped: "stopped", sandbox.EventDeleted: "deleted",
}

// take reads n events, and names them.
func take(t *testing.T, events chan sandbox.Event, names map[string]string, n int) (told []string, all []sandbox.Event) {
	t.Helper()
	for range n {
		e := <-events
		told, all = append(told, names[e.ID]+" "+kinds[e.Kind]), append(all, e)
	}
	return told, all
}

func TestEvents(t *testing.T) {
	n, _ := figuresNode(t) // time does not pass, and events are told apart all the same
	first, endFirst := watch(t, n.Manager)
	second, endSecond := watch(t, n.Manager)
	pod, err := n.Manager.Run(t.Context(), sandboxtest.Pod("pod"))
	if err != nil {
		t.Fatal(err)
	}
	id, err := n.Manager.Create(t.Context(), string(pod), sandboxtest.Container("main"))
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		n.Manager.Start(t.Context(), string(id)),
		n.Manager.Stop(t.Context(), string(id), 0),
		n.Manager.Remove(t.Context(), string(id)),
		n.Manager.StopSandbox(t.Context(), string(pod)),
		n.Manager.RemoveSandbox(t.Context(), string(pod)),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	names := map[string]string{string(pod): "pod", string(id): "main"}
	want := []string{
		"pod created", "pod started", "main created", "main started", "main stopped", "main deleted", "pod stopped", "pod deleted",
	}
	got, all := take(t, first, names, len(want))
	if !slices.Equal(got, want) {
		t.Errorf("events are\n%v\nwant\n%v", got, want)
	}
	if got, _ := take(t, second, names, len(want)); !slices.Equal(got, want) {
		t.Errorf("another subscriber is told\n%v\nwant\n%v", got, want)
	}
	states := []sandbox.ContainerState{"", "", sandbox.ContainerCreated, sandbox.ContainerRunning, sandbox.ContainerExited, "", "", ""}
	for i, e := range all {
		if i > 0 && !e.At.After(all[i-1].At) {
			t.Errorf("%s at %v is not after what was before", got[i], e.At)
		}
		if (e.Sandbox == nil) != (i == len(all)-1) {
			t.Errorf("%s has the sandbox %+v", got[i], e.Sandbox)
		}
		switch {
		case states[i] == "" && len(e.Containers) > 0:
			t.Errorf("%s has containers: %+v", got[i], e.Containers)
		case states[i] != "" && (len(e.Containers) != 1 || e.Containers[0].State != states[i]):
			t.Errorf("%s has containers %+v, want one that is %s", got[i], e.Containers, states[i])
		}
	}
	if st := all[6].Sandbox; st != nil && st.State != sandbox.SandboxNotReady {
		t.Errorf("pod stopped: it is %s", st.State)
	}
	for _, end := range []func() error{endFirst, endSecond} {
		if err := end(); !errors.Is(err, context.Canceled) {
			t.Errorf("WatchEvents = %v, want that it was cancelled", err)
		}
	}
}

// A pod that is removed as it runs goes in the same order; one that crid finds at
// its start has no past.
func TestEventsOfRemoval(t *testing.T) {
	n := sandboxtest.New(t)
	pod, err := n.Manager.Run(t.Context(), sandboxtest.Pod("pod"))
	if err != nil {
		t.Fatal(err)
	}
	id, err := n.Manager.Create(t.Context(), string(pod), sandboxtest.Container("main"))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Manager.Start(t.Context(), string(id)); err != nil {
		t.Fatal(err)
	}
	n.Restart()
	events, end := watch(t, n.Manager)
	before, err := n.Manager.PodStatus(string(pod))
	if err != nil || before.Sandbox.ID != pod || len(before.Containers) != 1 || before.Containers[0].State != sandbox.ContainerRunning {
		t.Errorf("PodStatus = %+v, %v", before, err)
	}
	if err := n.Manager.RemoveSandbox(t.Context(), string(pod)); err != nil {
		t.Fatal(err)
	}
	got, all := take(t, events, map[string]string{string(pod): "pod", string(id): "main"}, 4)
	if want := []string{"main stopped", "main deleted", "pod stopped", "pod deleted"}; !slices.Equal(got, want) {
		t.Errorf("events are %v, want %v", got, want)
	}
	if !all[0].At.After(before.At) || all[2].Sandbox == nil {
		t.Errorf("events %+v do not follow %+v", all, before)
	}
	if _, err := n.Manager.PodStatus(string(pod)); !errkind.Is(err, errkind.NotFound) {
		t.Errorf("PodStatus of what is gone = %v, want NotFound", err)
	}
	_ = end()
}

// A container that crid finds half removed at its start has told of its life.
func TestEventsOfInterruptedRemoval(t *testing.T) {
	n := sandboxtest.New(t)
	pod, id := mustLive(t, n, sandboxtest.Pod("pod"), sandboxtest.Container("main"))
	n.Monitor.FailAt(monitor.OpDelete, errors.New("the disk is full"))
	if err := n.Manager.Remove(t.Context(), string(id)); err == nil {
		t.Fatal("Remove = nil, want the error of the monitor")
	}
	n.Restart()
	events, end := watch(t, n.Manager)
	n.Monitor.FailAt(monitor.OpDelete, nil)
	if err := n.Manager.RemoveSandbox(t.Context(), string(pod)); err != nil {
		t.Fatal(err)
	}
	got, _ := take(t, events, map[string]string{string(pod): "pod", string(id): "main"}, 3)
	if want := []string{"main deleted", "pod stopped", "pod deleted"}; !slices.Equal(got, want) {
		t.Errorf("events are %v, want %v", got, want)
	}
	_ = end()
}

// Who does not listen is given up, with a reason, and keeps nobody waiting: another
// subscriber is told of everything. What waited for it is not kept.
func TestEventsTooSlow(t *testing.T) {
	n, _ := figuresNode(t) // an end stays new
	blocked, ready, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	seen := 0
	go func() {
		done <- n.Manager.WatchEvents(t.Context(), func() error { close(ready); return nil }, func(*sandbox.Event) error {
			seen++
			<-blocked
			return nil
		})
	}()
	<-ready
	events, end := watch(t, n.Manager)
	const pods = 520
	last, stopped := make(map[string]string), []string{}
	told := make(chan struct{})
	go func() {
		defer close(told)
		for range 4 * pods {
			e := <-events
			last[e.ID] += kinds[e.Kind] + " "
			if e.Kind == sandbox.EventStopped {
				stopped = append(stopped, e.ID)
			}
		}
	}()
	ids := make([]config.SandboxID, pods)
	parallel(t, pods, func(i int) error { // four events each, in the end
		pod, err := n.Manager.Run(t.Context(), sandboxtest.Pod(fmt.Sprint(i)))
		ids[i] = pod
		return errors.Join(err, n.Manager.StopSandbox(t.Context(), string(pod)))
	})
	// Who subscribes now is told of the newest ends, and has room for what comes.
	lateEvents, endLate := watch(t, n.Manager)
	var late []string
	for range 512 {
		e := <-lateEvents
		late = append(late, e.ID)
	}
	_ = endLate()
	parallel(t, pods, func(i int) error { return n.Manager.RemoveSandbox(t.Context(), string(ids[i])) })
	<-told
	for id, got := range last {
		if got != "created started stopped deleted " {
			t.Errorf("the other subscriber was told of %s: %s", id, got)
		}
	}
	if !slices.Equal(late, stopped[pods-512:]) {
		t.Errorf("a new subscriber was told of other ends than the newest, or in another order")
	}
	if now, dropped := n.Manager.Subscribers(); now != 1 || dropped != 1 {
		t.Errorf("Subscribers = %d, %d, want one that is left and one that was dropped, while it is still busy", now, dropped)
	}
	close(blocked)
	if err := <-done; !errkind.Is(err, errkind.Unavailable) || !strings.Contains(err.Error(), "too slow") {
		t.Errorf("WatchEvents of a slow client = %v, want Unavailable because it is too slow", err)
	}
	if seen != 1 {
		t.Errorf("it was told of %d events, want none after it was given up", seen)
	}
	_ = end()
}

// parallel calls do with 0 to n-1, eight at a time.
func parallel(t *testing.T, n int, do func(int) error) {
	t.Helper()
	var wg sync.WaitGroup
	next := make(chan int)
	for range 8 {
		wg.Go(func() {
			for i := range next {
				if err := do(i); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}

func TestEndEvents(t *testing.T) {
	testutil.LeakCheck(t)
	n := sandboxtest.New(t)
	_, end := watch(t, n.Manager)
	n.Manager.EndEvents()
	if err := end(); !errkind.Is(err, errkind.Unavailable) && !errors.Is(err, context.Canceled) {
		t.Errorf("WatchEvents when crid ends = %v", err)
	}
	nothing := func() error { return nil }
	if err := n.Manager.WatchEvents(t.Context(), nothing, nil); !errkind.Is(err, errkind.Unavailable) {
		t.Errorf("WatchEvents after the end = %v, want Unavailable", err)
	}
}
