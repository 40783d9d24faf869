package monitortest

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"testing"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
	"github.com/cridproject/crid/monitor"
)

func (f *Fake) runs(t *testing.T, fr *Front, id string) {
	t.Helper()
	_, h, err := fr.Create(t.Context(), monitor.CreateRequest{ID: id})
	if err != nil {
		t.Fatal(err)
	}
	h.Close()
	if err := fr.Start(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}

func TestFakeFailsWhereTold(t *testing.T) {
	testutil.LeakCheck(t)
	fake := New(t, Options{})
	fr := fake.Connect(monitor.ClientOptions{})
	boom := errors.New("boom")

	fake.FailAt(monitor.OpCreate, boom)
	if _, _, err := fr.Create(t.Context(), monitor.CreateRequest{ID: "a"}); !errors.Is(err, boom) {
		t.Errorf("Create = %v, want boom", err)
	}
	if left := fake.Residue(); len(left) > 0 {
		t.Errorf("a Create that failed before left %v", left)
	}
	fake.FailAt(monitor.OpCreate, nil)

	fake.FailAfter(monitor.OpCreate, boom)
	if _, h, err := fr.Create(t.Context(), monitor.CreateRequest{ID: "a"}); !errors.Is(err, boom) || h != nil {
		t.Errorf("Create = %v, %v, want boom", h, err)
	}
	if left := fake.Residue(); !slices.Equal(left, []string{"container a (created)"}) {
		t.Errorf("a Create whose reply was lost left %v, want the container", left)
	}
}

func TestFakeBlocks(t *testing.T) {
	testutil.LeakCheck(t)
	fake := New(t, Options{})
	fr := fake.Connect(monitor.ClientOptions{})
	reached, release := fake.Block(monitor.OpCreate)
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan error)
	create := func(ctx context.Context, id string) {
		_, h, err := fr.Create(ctx, monitor.CreateRequest{ID: id})
		h.Close()
		got <- err
	}
	go create(ctx, "gives-up")
	<-reached
	cancel()
	if err := <-got; !errors.Is(err, context.Canceled) {
		t.Errorf("Create = %v, want context.Canceled", err)
	}
	go create(t.Context(), "waits")
	if _, ok := fake.Created("gives-up"); ok {
		t.Error("a blocked Create was carried out before the release")
	}
	release()
	release()
	if err := <-got; err != nil {
		t.Errorf("Create = %v, want nil", err)
	}
	// As by a real monitor, what was given up is carried out; no descriptor of it stays.
	testutil.WaitFor(t, "the late Create", func() bool {
		return slices.Equal(fake.Residue(), []string{"container gives-up (created)", "container waits (created)"})
	})
}

func TestFakeBlockedAtTheEnd(t *testing.T) {
	testutil.LeakCheck(t)
	fake := New(t, Options{})
	fr := fake.Connect(monitor.ClientOptions{})
	reached, _ := fake.Block(monitor.OpStart)
	got := make(chan error, 1)
	go func() { got <- fr.Start(context.Background(), "a") }()
	<-reached
	fake.Disconnect()
	if err := <-got; !errkind.Is(err, errkind.Unavailable) {
		t.Errorf("Start on a lost front = %v, want kind unavailable", err)
	}
}

func TestFakeRestartOfTheDaemon(t *testing.T) {
	testutil.LeakCheck(t)
	fake := New(t, Options{})
	first := fake.Connect(monitor.ClientOptions{})
	fake.runs(t, first, "a")
	fake.runs(t, first, "b")
	first.Close()
	fake.Exit("a", 3)
	fake.OOM("b")

	var got []monitor.Exit
	second := fake.Connect(monitor.ClientOptions{OnExit: func(e monitor.Exit) { got = append(got, e) }})
	fake.Settle()
	if len(got) != 2 || got[0].Code != 3 || got[1].Code != 137 || !got[1].OOMKilled || !slices.Equal(got, fake.Journal()) {
		t.Errorf("exits after the restart: %+v, want 3 of a, then OOM of b", got)
	}
	want := []string{"container a (exited)", "container b (exited)", "unacknowledged exit of a", "unacknowledged exit of b"}
	if left := fake.Residue(); !slices.Equal(left, want) {
		t.Errorf("Residue() = %q, want %q", left, want)
	}
	for _, id := range []string{"a", "b"} {
		if err := second.Delete(t.Context(), monitor.DeleteRequest{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	if left := fake.Residue(); len(left) > 0 {
		t.Errorf("Residue() = %q, want none", left)
	}
	wantCalls := []string{"create a", "start a", "create b", "start b", "delete a", "delete b"}
	if calls := fake.Calls(); !slices.Equal(calls, wantCalls) {
		t.Errorf("Calls() = %q, want %q", calls, wantCalls)
	}
}

func TestFakeSeesOpenDescriptors(t *testing.T) {
	testutil.LeakCheck(t)
	fake := New(t, Options{})
	fr := fake.Connect(monitor.ClientOptions{})
	_, pidfd, err := fr.Hold(t.Context(), monitor.HoldRequest{ID: "s"})
	if err != nil {
		t.Fatal(err)
	}
	if err := fr.Release(t.Context(), monitor.ReleaseRequest{ID: "s"}); err != nil {
		t.Fatal(err)
	}
	if left := fake.Residue(); !slices.Equal(left, []string{"open pidfd of s"}) {
		t.Errorf("Residue() = %q, want the open pidfd", left)
	}
	_ = pidfd.Close()
	if left := fake.Residue(); len(left) > 0 {
		t.Errorf("Residue() = %q, want none", left)
	}
}

func TestFakeSignals(t *testing.T) {
	fake := New(t, Options{})
	fr := fake.Connect(monitor.ClientOptions{})
	fake.runs(t, fr, "a")
	fake.IgnoreSignals("a")
	for _, n := range []int{15, 28, 9, 9} {
		if err := fr.Signal(t.Context(), monitor.SignalRequest{ID: "a", Signal: n}); err != nil {
			t.Fatal(err)
		}
	}
	if got := fake.Signals("a"); !slices.Equal(got, []int{15, 28, 9}) {
		t.Errorf("Signals() = %v, want 15 28 9", got)
	}
	if j := fake.Journal(); len(j) != 1 || j[0].Code != 137 {
		t.Errorf("Journal() = %+v, want one exit of code 137", j)
	}
}

func TestFakeExecThatWaitsForStdin(t *testing.T) {
	testutil.LeakCheck(t)
	fake := New(t, Options{Exec: func(x *Exec) int {
		_, _ = io.Copy(x.Stdout, x.Stdin)
		return 0
	}})
	fr := fake.Connect(monitor.ClientOptions{})
	fake.runs(t, fr, "a")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	p, err := fr.Exec(t.Context(), monitor.ExecRequest{ID: "a", ExecID: "e"}, [3]*os.File{r})
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	// Its container ends: so does it, although its stdin stays open.
	fake.Exit("a", 0)
	if e := <-p.Done; e.Code != 137 || e.Lost {
		t.Errorf("Done = %+v, want code 137", e)
	}
	if err := fr.Delete(t.Context(), monitor.DeleteRequest{ID: "a"}); err != nil {
		t.Fatal(err)
	}
}

func TestFakeCrash(t *testing.T) {
	testutil.LeakCheck(t)
	fake := New(t, Options{Exec: BusyboxExec})
	fr := fake.Connect(monitor.ClientOptions{})
	_, h, err := fr.Create(t.Context(), monitor.CreateRequest{ID: "a"})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := fr.Start(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	p, err := fr.Exec(t.Context(), monitor.ExecRequest{ID: "a", ExecID: "e", Args: []string{"sleep", "1"}}, [3]*os.File{})
	if err != nil {
		t.Fatal(err)
	}
	fake.Crash()
	<-fr.Done()
	if e := <-p.Done; !e.Lost {
		t.Errorf("Done = %+v, want lost", e)
	}
	fake.Exit("a", 3) // nobody sees it
	fr = fake.Connect(monitor.ClientOptions{})
	if err := fr.Adopt(t.Context(), monitor.AdoptRequest{ID: "a", Started: true}, h); err != nil {
		t.Errorf("Adopt = %v, want nil", err)
	}
	if j := fake.Journal(); len(j) != 1 || !j[0].Lost || j[0].Code != -1 {
		t.Errorf("Journal() = %+v, want one lost exit", j)
	}
}
