package cni

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cridproject/crid/cni/cnitest"
	"github.com/cridproject/crid/internal/testutil"
)

// abandon runs the first plugin's ADD as a crid would that is then killed, and
// returns when the plugin is at work. The process ends with the test.
func (l *lab) abandon(t *testing.T, id string, daemon bool) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(filepath.Join(l.bin, "first"))
	cmd.Env = append(os.Environ(), "CNI_COMMAND=ADD", "CNI_CONTAINERID="+id, markOf(l.cache))
	cmd.Stdin = strings.NewReader("{}")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: !daemon, Setsid: daemon}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
	})
	testutil.WaitFor(t, "the plugin is at work", func() bool { return len(l.trail(t)) == 1 })
	return cmd
}

// restart is a new Network on the lab's folders.
func (l *lab) restart(t *testing.T, limit time.Duration) {
	t.Helper()
	var err error
	if l.Network, err = New(Options{ConfDir: l.conf, BinDirs: []string{l.bin}, CacheDir: l.cache, Timeout: limit}); err != nil {
		t.Fatal(err)
	}
}

func TestDetachComesAfterAnAbandonedAttach(t *testing.T) {
	testutil.LeakCheck(t)
	t.Run("that ends", func(t *testing.T) {
		l := newLab(t, 0)
		a := l.plan(t, "abc")
		gate := l.first.Gate()
		l.first.Does("ADD", cnitest.Step{Gate: gate})
		l.abandon(t, "abc", false)
		l.restart(t, 0)
		done := make(chan error)
		go func() { done <- l.Detach(t.Context(), a) }()
		// Another sandbox does not wait.
		if err := l.Detach(t.Context(), l.plan(t, "other")); err != nil {
			t.Error(err)
		}
		cnitest.Open(t, gate)
		if err := <-done; err != nil {
			t.Error(err)
		}
		want := []string{"ADD first", "DEL second", "DEL first", "DEL second", "DEL first"}
		if got := l.trail(t); !slices.Equal(got, want) {
			t.Errorf("calls = %v, want %v", got, want)
		}
	})
	t.Run("that hangs", func(t *testing.T) {
		l := newLab(t, 0)
		l.first.Does("ADD", cnitest.Step{Hang: true})
		a := l.plan(t, "abc")
		p := l.abandon(t, "abc", false)
		l.restart(t, 2*time.Second)
		if err := l.Detach(t.Context(), a); err != nil {
			t.Error(err)
		}
		if alive(p.Process.Pid) {
			t.Error("the plugin is still at work after DEL")
		}
	})
	t.Run("not for a daemon", func(t *testing.T) {
		l := newLab(t, 0)
		l.first.Does("ADD", cnitest.Step{Hang: true})
		a := l.plan(t, "abc")
		p := l.abandon(t, "abc", true)
		l.restart(t, 0)
		if err := l.Detach(t.Context(), a); err != nil {
			t.Error(err)
		}
		if !alive(p.Process.Pid) {
			t.Error("what a plugin has left to stay was ended")
		}
	})
	t.Run("before GC", func(t *testing.T) {
		l := newLab(t, 0)
		l.first.Does("ADD", cnitest.Step{Hang: true})
		p := l.abandon(t, "abc", false)
		l.restart(t, 2*time.Second)
		if err := l.GC(t.Context(), nil); err != nil {
			t.Error(err)
		}
		if alive(p.Process.Pid) {
			t.Error("the plugin is still at work after GC")
		}
	})
}
