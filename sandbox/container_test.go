package sandbox_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
	"github.com/cridproject/crid/monitor"
	"github.com/cridproject/crid/monitor/monitortest"
	"github.com/cridproject/crid/sandbox"
	"github.com/cridproject/crid/sandbox/config"
	"github.com/cridproject/crid/sandbox/sandboxtest"
)

func TestCreateAgain(t *testing.T) {
	n := sandboxtest.New(t)
	pod, err := n.Manager.Run(t.Context(), sandboxtest.Pod("web"))
	if err != nil {
		t.Fatal(err)
	}
	id, err := n.Manager.Create(t.Context(), string(pod), sandboxtest.Container("main"))
	if err != nil {
		t.Fatal(err)
	}
	if again, err := n.Manager.Create(t.Context(), string(pod), sandboxtest.Container("main")); again != id || err != nil {
		t.Errorf("Create again = %s, %v, want %s", again, err, id)
	}
	other := sandboxtest.Container("main")
	other.Args = []string{"x"}
	if _, err := n.Manager.Create(t.Context(), string(pod), other); !errkind.Is(err, errkind.Exists) || !strings.Contains(err.Error(), string(id)) {
		t.Errorf("Create with another config = %v, want kind exists and %s named", err, id)
	}
	if err := n.Manager.Remove(t.Context(), string(id)); err != nil {
		t.Fatal(err)
	}
	if next, err := n.Manager.Create(t.Context(), string(pod), other); err != nil || next == id {
		t.Errorf("Create after removal = %s, %v, want a new container", next, err)
	}
	if err := n.Manager.StopSandbox(t.Context(), string(pod)); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Manager.Create(t.Context(), string(pod), sandboxtest.Container("late")); !errkind.Is(err, errkind.BadState) {
		t.Errorf("Create in a stopped sandbox = %v, want kind bad state", err)
	}
	mustRemove(t, n, pod)
	if _, err := n.Manager.Create(t.Context(), string(pod), sandboxtest.Container("late")); !errkind.Is(err, errkind.NotFound) {
		t.Errorf("Create in no sandbox = %v, want kind not found", err)
	}
	mustBeClean(t, n)
}

func TestCreateWithoutImage(t *testing.T) {
	n := sandboxtest.New(t)
	pod, err := n.Manager.Run(t.Context(), sandboxtest.Pod("web"))
	if err != nil {
		t.Fatal(err)
	}
	c := sandboxtest.Container("main")
	c.Image.Ref = "registry.k8s.io/nothing:1"
	if _, err := n.Manager.Create(t.Context(), string(pod), c); !errkind.Is(err, errkind.NotFound) || !strings.Contains(err.Error(), "pull it first") {
		t.Errorf("Create = %v, want kind not found and what to do", err)
	}
	mustRemove(t, n, pod)
	mustBeClean(t, n)
}

func TestStart(t *testing.T) {
	cause := errors.New("exec: no such file")
	n := sandboxtest.NewWith(t, monitortest.Options{Container: func(args []string) monitortest.Outcome {
		switch args[0] {
		case "missing":
			return monitortest.Outcome{Err: cause}
		case "true":
			return monitortest.Outcome{Ends: true}
		case "false":
			return monitortest.Outcome{Ends: true, Code: 1}
		}
		return monitortest.Outcome{}
	}})
	pod, err := n.Manager.Run(t.Context(), sandboxtest.Pod("web"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		command, reason string
		code            int
		fails           bool
	}{
		{"missing", sandbox.ReasonStartError, 128, true},
		{"true", sandbox.ReasonCompleted, 0, false},
		{"false", sandbox.ReasonError, 1, false},
	} {
		t.Run(tc.command, func(t *testing.T) {
			c := sandboxtest.Container(tc.command)
			c.Command = []string{tc.command}
			id, err := n.Manager.Create(t.Context(), string(pod), c)
			if err != nil {
				t.Fatal(err)
			}
			err = n.Manager.Start(t.Context(), string(id))
			if tc.fails != (err != nil) || tc.fails && !strings.Contains(err.Error(), cause.Error()) {
				t.Errorf("Start = %v, want failure: %t", err, tc.fails)
			}
			if err := n.Manager.Stop(t.Context(), string(id), time.Minute); err != nil {
				t.Errorf("Stop = %v", err)
			}
			awaitExit(t, n, id)
			st := status(t, n, id)
			if st.State != sandbox.ContainerExited || st.Reason != tc.reason || st.ExitCode != tc.code || st.StartedAt.IsZero() || st.FinishedAt.Before(st.StartedAt) {
				t.Errorf("status = %+v, want exited, %s, %d", st, tc.reason, tc.code)
			}
			if tc.fails && !strings.Contains(st.Message, cause.Error()) {
				t.Errorf("message = %q, want the cause", st.Message)
			}
			if err := n.Manager.Start(t.Context(), string(id)); !errkind.Is(err, errkind.BadState) {
				t.Errorf("Start again = %v, want kind bad state", err)
			}
		})
	}
	mustRemove(t, n, pod)
	mustBeClean(t, n)
}

// awaitExit waits until id is seen to have exited: the monitor may tell it
// after Start has returned.
func awaitExit(t *testing.T, n *sandboxtest.Node, id config.ContainerID) {
	t.Helper()
	// A grace that never ends: it returns with the exit, or with the test.
	var err error
	testutil.WaitFor(t, "the exit of "+id.Short(), func() bool {
		err = n.Manager.Stop(t.Context(), string(id), never)
		return !errkind.Is(err, errkind.Unavailable) // while crid connects to the monitor again
	})
	if err != nil {
		t.Fatalf("wait for exit = %v", err)
	}
}

func TestExits(t *testing.T) {
	for _, tc := range []struct {
		name   string
		end    func(*sandboxtest.Node, string)
		code   int
		reason string
	}{
		{"zero", func(n *sandboxtest.Node, id string) { n.Monitor.Exit(id, 0) }, 0, sandbox.ReasonCompleted},
		{"error", func(n *sandboxtest.Node, id string) { n.Monitor.Exit(id, 3) }, 3, sandbox.ReasonError},
		{"killed", func(n *sandboxtest.Node, id string) { n.Monitor.Exit(id, 137) }, 137, sandbox.ReasonError},
		{"oom", func(n *sandboxtest.Node, id string) { n.Monitor.OOM(id) }, 137, sandbox.ReasonOOMKilled},
	} {
		for _, down := range []bool{false, true} {
			name := tc.name
			if down {
				name += " while crid was down"
			}
			t.Run(name, func(t *testing.T) {
				n := sandboxtest.New(t)
				pod, id := mustLive(t, n, sandboxtest.Pod("web"), sandboxtest.Container("main"))
				if down {
					n.Kill()
				}
				tc.end(n, string(id))
				if down {
					n.Restart()
				}
				awaitExit(t, n, id)
				if st := status(t, n, id); st.ExitCode != tc.code || st.Reason != tc.reason {
					t.Errorf("status = %+v, want %d %s", st, tc.code, tc.reason)
				}
				n.Restart() // all that was to be done after the exit is done
				if j := n.Monitor.Journal(); len(j) > 0 {
					t.Errorf("not acknowledged: %v", j)
				}
				if st := status(t, n, id); st.ExitCode != tc.code || st.Reason != tc.reason {
					t.Errorf("status after a restart = %+v, want %d %s", st, tc.code, tc.reason)
				}
				mustRemove(t, n, pod)
				mustBeClean(t, n)
			})
		}
	}
}

// The monitor's clock may be behind: a finish is still not before the start.
func TestFinishIsNotBeforeStart(t *testing.T) {
	at := time.Unix(1_800_000_000, 0)
	n := sandboxtest.NewWith(t, monitortest.Options{Now: func() time.Time { return at.Add(-time.Hour) }},
		func(o *sandbox.Options) { o.Now = func() time.Time { return at } })
	_, id := mustLive(t, n, sandboxtest.Pod("web"), sandboxtest.Container("main"))
	n.Monitor.Exit(string(id), 0)
	awaitExit(t, n, id)
	if st := status(t, n, id); st.FinishedAt.Before(st.StartedAt) {
		t.Errorf("finished %v, started %v", st.FinishedAt, st.StartedAt)
	}
}

func TestSharedPIDsDieWithTheContainer(t *testing.T) {
	for mode, want := range map[config.NamespaceMode]bool{config.NamespaceContainer: false, config.NamespacePod: true, config.NamespaceNode: true} {
		t.Run(string(mode), func(t *testing.T) {
			n := sandboxtest.New(t)
			c := sandboxtest.Container("main")
			c.Security.Namespaces.PID = mode
			_, id := mustLive(t, n, sandboxtest.Pod("web"), c)
			before := len(n.Monitor.Calls())
			n.Monitor.Exit(string(id), 0)
			awaitExit(t, n, id)
			killed := false
			for _, call := range n.Monitor.Calls()[before:] {
				killed = killed || call == monitor.OpSignal+" "+string(id)
			}
			if want && !killed {
				t.Error("the container's other processes were not killed")
			}
		})
	}
}

func TestMountSources(t *testing.T) {
	for _, strict := range []bool{false, true} {
		n := sandboxtest.New(t, func(o *sandbox.Options) { o.StrictMounts = strict })
		pod, err := n.Manager.Run(t.Context(), sandboxtest.Pod("web"))
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if err := os.Symlink(dir, filepath.Join(dir, "link")); err != nil {
			t.Fatal(err)
		}
		missing := filepath.Join(dir, "a/b")
		c := sandboxtest.Container("main")
		c.Mounts = []config.Mount{
			{ContainerPath: "/link", HostPath: config.HostPath(filepath.Join(dir, "link"))},
			{ContainerPath: "/missing", HostPath: config.HostPath(missing)},
		}
		id, err := n.Manager.Create(t.Context(), string(pod), c)
		if strict {
			if !errkind.Is(err, errkind.Invalid) || !strings.Contains(err.Error(), "config.mounts[1].host_path") {
				t.Errorf("strict: Create = %v, want kind invalid and the field", err)
			}
			mustRemove(t, n, pod)
			mustBeClean(t, n)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if fi, err := os.Stat(missing); err != nil || !fi.IsDir() || fi.Mode().Perm() != 0o755 {
			t.Errorf("missing source: %v, %v, want a folder of mode 0755", fi, err)
		}
		if got := status(t, n, id).Config.Mounts[0].HostPath; got != c.Mounts[0].HostPath {
			t.Errorf("status' host path = %s, want it as requested", got)
		}
		r, _ := n.Monitor.Created(string(id))
		if !strings.Contains(string(r.Spec), `"source":"`+dir+`"`) {
			t.Errorf("spec does not mount %s, where the link leads:\n%s", dir, r.Spec)
		}
	}
}

func TestLogPath(t *testing.T) {
	n := sandboxtest.New(t)
	logs := filepath.Join(t.TempDir(), "logs")
	outside := t.TempDir()
	pod := sandboxtest.Pod("web")
	pod.LogDirectory = config.HostPath(logs)
	id, err := n.Manager.Run(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(logs, "out")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(outside, "file"), filepath.Join(logs, "file")); err != nil {
		t.Fatal(err)
	}
	for path, ok := range map[string]bool{"main/0.log": true, "plain.log": true, "../x.log": false, "/x.log": false, "out/x.log": false, "file": false} {
		c := sandboxtest.Container(path)
		c.LogPath = path
		cid, err := n.Manager.Create(t.Context(), string(id), c)
		if ok != (err == nil) {
			t.Errorf("Create with log path %q = %v, want success: %t", path, err, ok)
		}
		if ok {
			if got := status(t, n, cid).LogPath; got != filepath.Join(logs, path) {
				t.Errorf("LogPath = %s", got)
			}
		}
	}
	if left, _ := os.ReadDir(outside); len(left) > 0 {
		t.Errorf("outside of the log folder: %v", left)
	}
}

func TestPIDTarget(t *testing.T) {
	n := sandboxtest.New(t)
	pod, main := mustLive(t, n, sandboxtest.Pod("web"), sandboxtest.Container("main"))
	_, foreign := mustLive(t, n, sandboxtest.Pod("other"), sandboxtest.Container("main"))
	c := sandboxtest.Container("debug")
	c.Security.Namespaces.PID = config.NamespaceTarget
	for _, tc := range []struct {
		name string
		id   config.ContainerID
		ok   bool
	}{{"its own", main, true}, {"another pod's", foreign, false}, {"none", "x", false}} {
		c.Name = "debug-" + tc.name
		c.Security.Namespaces.Target = tc.id
		if _, err := n.Manager.Create(t.Context(), string(pod), c); tc.ok != (err == nil) || !tc.ok && !errkind.Is(err, errkind.Invalid) {
			t.Errorf("%s: Create = %v, want success: %t", tc.name, err, tc.ok)
		}
	}
	n.Monitor.Exit(string(main), 0)
	awaitExit(t, n, main)
	c.Name, c.Security.Namespaces.Target = "late", main
	if _, err := n.Manager.Create(t.Context(), string(pod), c); !errkind.Is(err, errkind.BadState) {
		t.Errorf("Create with a target that has exited = %v, want kind bad state", err)
	}
}
