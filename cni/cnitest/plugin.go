// Package cnitest has a CNI plugin for tests: the test binary itself, which
// does per verb what the test has written down for it.
//
// The test's TestMain calls Main first; New then puts a link to the test binary
// where plugins are looked for.
package cnitest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// envGrandchild marks the process that a plugin leaves behind.
const envGrandchild = "CNITEST_GRANDCHILD"

// Step is what the plugin does when it is called.
type Step struct {
	// Result is printed to stdout. For an ADD it may leave out cniVersion.
	Result string
	// Stderr is printed to stderr.
	Stderr string
	// Exit is the exit code. A failure's Result is the specification's error object.
	Exit int
	// Hang makes it stay for ever after it has printed.
	Hang bool
	// Leave makes it start a process which stays for ever with its stdout and
	// stderr open.
	Leave bool
	// Gate is the path of a named pipe. The plugin opens it for writing and so
	// waits, after it has noted the call, until the test opens it for reading.
	Gate string
}

// Call is one call of a plugin as the plugin saw it.
type Call struct {
	Plugin string
	Verb   string
	Env    map[string]string // CNI_* only
	Conf   json.RawMessage   // stdin
	PID    int
	Child  int // PID of the process it left behind; 0 when there is none
}

// Plugin is one plugin program.
type Plugin struct {
	t    testing.TB
	path string
}

// Main runs the plugin, and ends the program, when the program was started as
// one. Otherwise it does nothing. It comes first in TestMain.
func Main() {
	if os.Getenv(envGrandchild) != "" {
		forever()
	}
	if os.Getenv("CNI_COMMAND") == "" {
		// Programs with the race detector in them sleep a second before they exit.
		_ = os.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=0")
		return
	}
	if err := run(os.Args[0], os.Getenv("CNI_COMMAND")); err != nil {
		fmt.Fprintln(os.Stderr, "cnitest:", err)
		os.Exit(99)
	}
	os.Exit(0)
}

// New makes the plugin name in dir. Without a script its ADD answers one
// address, 192.0.2.2/24 on eth0, and its other verbs succeed.
func New(t testing.TB, dir, name string) *Plugin {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &Plugin{t, filepath.Join(dir, name)}
	if err := os.Symlink(self, p.path); err != nil {
		t.Fatal(err)
	}
	return p
}

// Does sets what the plugin does at a verb from now on.
func (p *Plugin) Does(verb string, s Step) {
	p.t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(scriptOf(p.path, verb), b, 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// Gate makes a named pipe for a Step.
func (p *Plugin) Gate() string {
	p.t.Helper()
	path := filepath.Join(p.t.TempDir(), "gate")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		p.t.Fatal(err)
	}
	return path
}

// Open opens a gate, and returns when a plugin has come to it.
func Open(t testing.TB, gate string) {
	t.Helper()
	f, err := os.Open(gate)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
}

// Calls is all calls of the plugins in dir so far, in order.
func Calls(t testing.TB, dir string) []Call {
	t.Helper()
	f, err := os.Open(callsOf(dir))
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var calls []Call
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var c Call
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			t.Fatal(err)
		}
		calls = append(calls, c)
	}
	return calls
}

func scriptOf(plugin, verb string) string { return plugin + "." + verb + ".script" }
func callsOf(dir string) string           { return filepath.Join(dir, "calls.json") }

// run is the plugin's main.
func run(self, verb string) error {
	if verb == "VERSION" {
		_, err := fmt.Println(`{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0","1.1.0"]}`)
		return err
	}
	conf, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	var step Step
	b, err := os.ReadFile(scriptOf(self, verb))
	switch {
	case err == nil:
		if err := json.Unmarshal(b, &step); err != nil {
			return err
		}
	case !os.IsNotExist(err):
		return err
	case verb == "ADD":
		step.Result = `{"interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"address":"192.0.2.2/24","interface":0}]}`
	}
	call := Call{Plugin: filepath.Base(self), Verb: verb, Env: map[string]string{}, Conf: conf, PID: os.Getpid()}
	for _, kv := range os.Environ() {
		if k, v, _ := strings.Cut(kv, "="); strings.HasPrefix(k, "CNI_") {
			call.Env[k] = v
		}
	}
	if step.Leave {
		if call.Child, err = leave(); err != nil {
			return err
		}
	}
	if err := note(filepath.Dir(self), call); err != nil {
		return err
	}
	if step.Gate != "" {
		gate, err := os.OpenFile(step.Gate, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer func() { _ = gate.Close() }()
	}
	fmt.Fprint(os.Stderr, step.Stderr)
	fmt.Print(step.Result)
	if step.Hang {
		forever()
	}
	if step.Exit != 0 {
		os.Exit(step.Exit)
	}
	return nil
}

// leave starts a process that holds this one's stdout and stderr.
func leave() (pid int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), envGrandchild+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	return cmd.Process.Pid, nil
}

// note appends a call to the list of calls.
func note(dir string, c Call) error {
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(callsOf(dir), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	return errors.Join(err, f.Close())
}

// forever is not select{}, which Go takes for a deadlock and ends.
func forever() {
	for {
		time.Sleep(time.Hour)
	}
}
