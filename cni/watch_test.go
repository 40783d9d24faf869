package cni

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/cridproject/crid/cni/cnitest"
	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
)

func itoa(n int) string { return strconv.Itoa(n) }

const plain04 = `{"cniVersion": "0.4.0", "name": "NAME", "type": "first"}`

func conf(name string) string { return strings.Replace(plain04, "NAME", name, 1) }

func TestLoadDir(t *testing.T) {
	const list = `{"name": "l", "cniVersion": "1.0.0", "plugins": [{"type": "a"}, {"type": "b"}]}`
	for _, tt := range []struct {
		name    string
		files   map[string]string
		network string
		want    []string // parts of the configuration, or without a network of the error
	}{
		{"missing", nil, "", []string{"no CNI configuration in"}},
		{"nothing of ours", map[string]string{"README": "x", "a.conflist.bak": "x", ".a.conf": conf("hidden")}, "", []string{"no CNI configuration in"}},
		{"list", map[string]string{"a.conflist": list}, "l", []string{`"type":"a"`, `"type":"b"`}},
		{"single", map[string]string{"a.conf": conf("s")}, "s", []string{`"cniVersion":"0.4.0"`, `"plugins":[{`}},
		{"json", map[string]string{"a.json": conf("j")}, "j", nil},
		{"list in a .conf", map[string]string{"a.conf": list}, "l", []string{`"type":"b"`}},
		{"lowest name", map[string]string{"20.conf": conf("b"), "10.conflist": list, "30.json": conf("c")}, "l", nil},
		{"newest of versions", map[string]string{"a.conflist": `{"name": "v", "cniVersions": ["0.4.0", "1.0.0"], "plugins": [{"type": "a"}]}`}, "v", []string{`"cniVersion":"1.0.0"`}},
		{
			"plugins beside it",
			map[string]string{"a.conflist": `{"name": "s", "cniVersion": "1.1.0", "plugins": [{"type": "a"}]}`, "s/x.conf": `{"type": "beside"}`},
			"s",
			[]string{`"type":"a"`, `"type":"beside"`, `"loadOnlyInlinedPlugins":true`},
		},
		{"flags", map[string]string{"a.conflist": `{"name": "f", "cniVersion": "1.1.0", "disableGC": true, "plugins": [{"type": "a"}]}`}, "f", []string{`"disableGC":true`}},
		{"broken is not passed over", map[string]string{"10.conf": "{", "20.conf": conf("b")}, "", []string{"10.conf: parse JSON"}},
		{"empty file", map[string]string{"10.conf": ""}, "", []string{"10.conf"}},
		{"no type", map[string]string{"10.conf": `{"name": "x"}`}, "", []string{"10.conf"}},
		{"no plugins", map[string]string{"10.conflist": `{"name": "x", "plugins": []}`}, "", []string{"10.conflist", "no plugins"}},
		{"no name", map[string]string{"10.conflist": `{"plugins": [{"type": "a"}]}`}, "", []string{"10.conflist", "no name"}},
		{"bad name", map[string]string{"10.conf": conf("a/b")}, "", []string{"a/b"}},
		{"bad type", map[string]string{"10.conf": `{"name": "x", "type": "../../bin/sh"}`}, "", []string{"../../bin/sh"}},
		{"bad version", map[string]string{"10.conf": `{"name": "x", "type": "a", "cniVersion": "one"}`}, "", []string{`"one"`}},
		{"future version", map[string]string{"10.conf": `{"name": "x", "type": "a", "cniVersion": "7.0.0"}`}, "", []string{"7.0.0 is not supported"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "net.d")
			for name, text := range tt.files {
				if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
					t.Fatal(err)
				}
				write(t, filepath.Join(dir, name), text)
			}
			_, list, err := loadDir(dir)
			if tt.network == "" {
				if !errkind.Is(err, errkind.Unavailable) || !strings.Contains(err.Error(), dir) {
					t.Fatalf("loadDir = %v, want Unavailable naming %s", err, dir)
				}
				for _, part := range tt.want {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("loadDir = %q, want %q in it", err, part)
					}
				}
				return
			}
			if err != nil || list.Name != tt.network {
				t.Fatalf("loadDir = %+v, %v, want network %s", list, err, tt.network)
			}
			for _, part := range tt.want {
				if !strings.Contains(string(list.Bytes), part) {
					t.Errorf("configuration = %s, want %s in it", list.Bytes, part)
				}
			}
			again, err := parseList(list.Bytes)
			if err != nil || len(again.Plugins) != len(list.Plugins) || again.DisableGC != list.DisableGC {
				t.Errorf("parsed again = %+v, %v, want the same", again, err)
			}
		})
	}
}

// watched starts Watch for the time of the test.
func watched(t *testing.T, n *Network) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Watch(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Watch = %v, want context.Canceled", err)
		}
	})
}

func TestWatchFollowsTheFolder(t *testing.T) {
	testutil.LeakCheck(t)
	top, bin := t.TempDir(), t.TempDir()
	dir := filepath.Join(top, "etc", "cni", "net.d")
	cnitest.New(t, bin, "first")
	n, err := New(Options{ConfDir: dir, BinDirs: []string{bin}, CacheDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	watched(t, n)
	becomes := func(what string, cond func(State) bool) {
		t.Helper()
		testutil.WaitFor(t, what, func() bool { return cond(n.State()) })
	}
	uses := func(name string) {
		t.Helper()
		becomes("network "+name, func(s State) bool { return s.Name == name && s.Err == nil && s.Problem == nil })
	}
	if err := n.Status(); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("Status without a folder = %v, want an error naming %s", err, dir)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "20.conf"), conf("twenty"))
	uses("twenty")
	write(t, filepath.Join(dir, "10.conf"), conf("ten"))
	uses("ten")

	// Broken: named, and what worked is kept.
	write(t, filepath.Join(dir, "10.conf"), "{")
	becomes("the broken file is reported", func(s State) bool {
		return s.Name == "ten" && s.Err == nil && s.Problem != nil && strings.Contains(s.Problem.Error(), "10.conf")
	})
	if a, err := n.Plan(Attachment{ID: "a"}); err != nil || !strings.Contains(string(a.Config), `"ten"`) {
		t.Errorf("Plan with a broken file = %s, %v, want the network read before", a.Config, err)
	}
	if err := os.Remove(filepath.Join(dir, "10.conf")); err != nil {
		t.Fatal(err)
	}
	uses("twenty")

	// The folder is replaced as a whole.
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	becomes("no network", func(s State) bool { return s.Name == "" && s.Err != nil })
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "x.tmp"), conf("renamed"))
	if err := os.Rename(filepath.Join(dir, "x.tmp"), filepath.Join(dir, "x.conf")); err != nil {
		t.Fatal(err)
	}
	uses("renamed")
}

func TestStatusNamesAMissingPlugin(t *testing.T) {
	l := newLab(t, 0)
	remove(t, filepath.Join(l.bin, "second"))
	l.load()
	if err := l.Status(); !errkind.Is(err, errkind.Unavailable) || !strings.Contains(err.Error(), `"second"`) || !strings.Contains(err.Error(), l.bin) {
		t.Errorf("Status = %v, want Unavailable naming plugin second and %s", err, l.bin)
	}
}

func TestStatusAsksPlugins(t *testing.T) {
	testutil.LeakCheck(t)
	l := newLab(t, 0)
	l.first.Does("STATUS", cnitest.Step{Exit: 1, Result: `{"code":1,"msg":"plugin version does not allow STATUS"}`})
	l.second.Does("STATUS", cnitest.Step{Exit: 1, Result: `{"code":50,"msg":"agent is not running"}`})
	watched(t, l.Network)
	testutil.WaitFor(t, "the plugin's verdict", func() bool { return l.Status() != nil })
	err := l.Status()
	if !errkind.Is(err, errkind.Unavailable) || !strings.Contains(err.Error(), "network lab is not ready: CNI plugin second, STATUS") || !strings.Contains(err.Error(), "agent is not running") {
		t.Errorf("Status = %v, want Unavailable with the plugin's words", err)
	}
	l.second.Does("STATUS", cnitest.Step{})
	l.refresh <- struct{}{} // as an old verdict would
	testutil.WaitFor(t, "the new verdict", func() bool { return l.Status() == nil })
}

// A plugin that hangs at STATUS holds up neither Status nor Plan nor changes.
func TestStatusDoesNotWait(t *testing.T) {
	testutil.LeakCheck(t)
	l := newLab(t, 0)
	l.first.Does("STATUS", cnitest.Step{Hang: true})
	watched(t, l.Network)
	testutil.WaitFor(t, "STATUS is called", func() bool { return len(l.trail(t)) == 1 })
	if err := l.Status(); err != nil {
		t.Errorf("Status = %v, want the verdict so far", err)
	}
	write(t, filepath.Join(l.conf, "00.conf"), conf("zero"))
	testutil.WaitFor(t, "the new network", func() bool { return l.State().Name == "zero" })
}
