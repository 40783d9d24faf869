package cni

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cridproject/crid/cni/cnitest"
	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
)

func TestMain(m *testing.M) {
	cnitest.Main()
	os.Exit(m.Run())
}

// lab is a Network on folders of its own with the fake plugins first and second.
type lab struct {
	*Network
	bin, conf, cache string
	first, second    *cnitest.Plugin
}

const twoPlugins = `{"name": "lab", "cniVersion": "1.1.0", "plugins": [
	{"type": "first", "ipam": {"keep": "me"}},
	{"type": "second", "capabilities": {"portMappings": true, "bandwidth": true, "cgroupPath": true, "dns": true,
		"io.kubernetes.cri.pod-annotations": true, "unheard-of": true}}]}`

func newLab(t *testing.T, limit time.Duration) *lab {
	t.Helper()
	l := &lab{bin: t.TempDir(), conf: t.TempDir(), cache: filepath.Join(t.TempDir(), "cache")}
	l.first, l.second = cnitest.New(t, l.bin, "first"), cnitest.New(t, l.bin, "second")
	write(t, filepath.Join(l.conf, "10-lab.conflist"), twoPlugins)
	var err error
	l.Network, err = New(Options{ConfDir: l.conf, BinDirs: []string{l.bin}, CacheDir: l.cache, Timeout: limit})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// plan is an attachment in a namespace that is the test's own.
func (l *lab) plan(t *testing.T, id string) Attachment {
	t.Helper()
	a, err := l.Plan(Attachment{ID: id, NetNS: "/proc/self/ns/net", Name: "web", Namespace: "shop", UID: "u-1"})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// trail is the calls so far in one word each: "ADD first".
func (l *lab) trail(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, c := range cnitest.Calls(t, l.bin) {
		out = append(out, c.Verb+" "+c.Plugin)
	}
	return out
}

func TestAttachTellsPluginsWhoAndWhat(t *testing.T) {
	testutil.LeakCheck(t)
	l := newLab(t, 0)
	a, err := l.Plan(Attachment{
		ID: "abc", NetNS: "/proc/self/ns/net", Name: "web", Namespace: "shop", UID: "u-1",
		Ports: []Port{
			{Protocol: "TCP", Container: 80, Host: 8080, HostIP: "127.0.0.1"},
			{Protocol: "udp", Container: 53},
			{Protocol: "Sctp", Container: 9, Host: 9},
		},
		IngressBits: 5000, CgroupPath: "/kube/pod", Annotations: map[string]string{"a": "b"},
		DNS: &DNS{Servers: []string{"192.0.2.53"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	l.second.Does("ADD", cnitest.Step{Result: `{"cniVersion": "1.0.0",
		"interfaces": [{"name": "br0"}, {"name": "eth0", "sandbox": "x"}],
		"ips": [{"address": "10.0.0.1/24", "interface": 0}, {"address": "192.0.2.2/24", "interface": 1}, {"address": "2001:db8::2/64", "interface": 1}]}`})
	r, err := l.Attach(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	want := []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")}
	if !slices.Equal(r.IPs, want) {
		t.Errorf("Attach's addresses = %v, want %v", r.IPs, want)
	}
	if !json.Valid(r.Raw) || !strings.Contains(string(r.Raw), "2001:db8::2") {
		t.Errorf("Attach's raw result = %s, want the plugin's", r.Raw)
	}
	if err := l.Detach(t.Context(), a); err != nil {
		t.Fatal(err)
	}

	calls := cnitest.Calls(t, l.bin)
	if got, want := l.trail(t), []string{"ADD first", "ADD second", "DEL second", "DEL first"}; !slices.Equal(got, want) {
		t.Fatalf("calls = %v, want %v", got, want)
	}
	for _, c := range calls {
		for k, want := range map[string]string{
			"CNI_CONTAINERID": "abc", "CNI_IFNAME": "eth0", "CNI_NETNS": "/proc/self/ns/net", "CNI_PATH": l.bin,
			"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u-1",
		} {
			if c.Env[k] != want {
				t.Errorf("%s %s: %s = %q, want %q", c.Verb, c.Plugin, k, c.Env[k], want)
			}
		}
		var conf struct {
			Name, CNIVersion string
			IPAM             map[string]string
			RuntimeConfig    json.RawMessage
			PrevResult       json.RawMessage
		}
		if err := json.Unmarshal(c.Conf, &conf); err != nil {
			t.Fatal(err)
		}
		if conf.Name != "lab" || conf.CNIVersion != "1.1.0" {
			t.Errorf("%s %s: name and version = %q %q, want lab 1.1.0", c.Verb, c.Plugin, conf.Name, conf.CNIVersion)
		}
		if c.Plugin == "first" {
			if conf.RuntimeConfig != nil || conf.IPAM["keep"] != "me" {
				t.Errorf("%s first: runtimeConfig %s, ipam %v, want nothing it did not ask for and its own settings", c.Verb, conf.RuntimeConfig, conf.IPAM)
			}
			continue
		}
		const want = `{"bandwidth":{"ingressBurst":4294967295,"ingressRate":5000},"cgroupPath":"/kube/pod",` +
			`"dns":{"servers":["192.0.2.53"]},"io.kubernetes.cri.pod-annotations":{"a":"b"},` +
			`"portMappings":[{"containerPort":80,"hostIP":"127.0.0.1","hostPort":8080,"protocol":"tcp"},{"containerPort":9,"hostPort":9,"protocol":"sctp"}]}`
		if got := sorted(t, conf.RuntimeConfig); got != want {
			t.Errorf("%s second: runtimeConfig =\n%s, want\n%s", c.Verb, got, want)
		}
		if conf.PrevResult == nil {
			t.Errorf("%s second: no prevResult", c.Verb)
		}
	}
}

// sorted is JSON with its keys in order.
func sorted(t *testing.T, b []byte) string {
	t.Helper()
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestAttachSaysWhatWentWrong(t *testing.T) {
	for _, tt := range []struct {
		name string
		step cnitest.Step
		kind errkind.Kind
		want []string // parts of the message
	}{
		{
			"error object",
			cnitest.Step{Result: `{"code":7,"msg":"no such bridge","details":"br9"}`, Exit: 1},
			errkind.Unavailable,
			[]string{"sandbox abc", "network lab", "CNI plugin second, ADD, after", "no such bridge; br9"},
		},
		{
			"stderr only",
			cnitest.Step{Stderr: "panic: oh", Exit: 2},
			errkind.Unavailable,
			[]string{"CNI plugin second, ADD", "exit status 2", `"panic: oh"`},
		},
		{"silent", cnitest.Step{Exit: 3}, errkind.Unavailable, []string{"CNI plugin second, ADD", "exit status 3"}},
		{
			"hangs",
			cnitest.Step{Stderr: "waiting for etcd", Hang: true},
			errkind.Timeout,
			[]string{"CNI plugin second, ADD, after", "not done within", "killed", "waiting for etcd"},
		},
		{"hangs in a child", cnitest.Step{Leave: true, Hang: true}, errkind.Timeout, []string{"not done within"}},
		{
			"no address",
			cnitest.Step{Result: `{"interfaces":[{"name":"net1"}],"ips":[{"address":"192.0.2.2/24","interface":0}]}`},
			errkind.Unavailable,
			[]string{"interface eth0 no address"},
		},
		{"bad index", cnitest.Step{Result: `{"ips":[{"address":"192.0.2.2/24","interface":4}]}`}, errkind.Unavailable, []string{"interface 4 of 0"}},
		{"not JSON", cnitest.Step{Result: `hello`}, errkind.Other, []string{"second"}},
		{"too much", cnitest.Step{Result: strings.Repeat("x", maxResult+1)}, errkind.Unavailable, []string{"longer than"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			testutil.LeakCheck(t)
			limit := time.Duration(0)
			if tt.step.Hang {
				limit = 5 * time.Second // enough for the test binary to start, also under the race detector
			}
			l := newLab(t, limit)
			l.second.Does("ADD", tt.step)
			a := l.plan(t, "abc")
			_, err := l.Attach(t.Context(), a)
			if errkind.Of(err) != tt.kind || err == nil {
				t.Errorf("Attach = %v, of kind %v, want kind %v", err, errkind.Of(err), tt.kind)
			}
			for _, part := range tt.want {
				if err != nil && !strings.Contains(err.Error(), part) {
					t.Errorf("Attach = %q, want %q in it", err, part)
				}
			}
			for _, c := range cnitest.Calls(t, l.bin) {
				gone(t, c.PID)
				gone(t, c.Child)
			}
			if err := l.Detach(t.Context(), a); err != nil {
				t.Errorf("Detach after a failed Attach = %v, want nil", err)
			}
			if got, want := l.trail(t), []string{"ADD first", "ADD second", "DEL second", "DEL first"}; !slices.Equal(got, want) {
				t.Errorf("calls = %v, want %v", got, want)
			}
		})
	}
}

// gone waits until a process has ended; the one that reaps it may be slow.
func gone(t *testing.T, pid int) {
	t.Helper()
	if pid == 0 {
		return
	}
	testutil.WaitFor(t, "a plugin's process has ended", func() bool { return !alive(pid) })
}

func alive(pid int) bool {
	b, err := os.ReadFile(filepath.Join("/proc", itoa(pid), "stat"))
	return err == nil && !strings.Contains(string(b), ") Z ")
}

func TestAttachEndsWithItsContext(t *testing.T) {
	testutil.LeakCheck(t)
	l := newLab(t, 0)
	gate := l.first.Gate()
	l.first.Does("ADD", cnitest.Step{Gate: gate, Hang: true})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error)
	go func() {
		_, err := l.Attach(ctx, l.plan(t, "abc"))
		done <- err
	}()
	cnitest.Open(t, gate)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "CNI plugin first, ADD") {
		t.Errorf("Attach with its context cancelled = %v, want context.Canceled of plugin first", err)
	}
	gone(t, cnitest.Calls(t, l.bin)[0].PID)
	if _, err := l.Attach(ctx, l.plan(t, "abc")); !errors.Is(err, context.Canceled) || len(l.trail(t)) != 1 {
		t.Errorf("Attach with a context cancelled before = %v after %v, want no plugin called", err, l.trail(t))
	}
}

// A plugin that starts a daemon without closing its stdout must not hold up
// the pod, nor leave us its pipe.
func TestAttachDoesNotWaitForWhatAPluginLeaves(t *testing.T) {
	testutil.LeakCheck(t)
	l := newLab(t, 0)
	l.second.Does("ADD", cnitest.Step{Leave: true, Result: `{"ips":[{"address":"192.0.2.2/24"}]}`})
	if _, err := l.Attach(t.Context(), l.plan(t, "abc")); err != nil {
		t.Fatal(err)
	}
	child := cnitest.Calls(t, l.bin)[1].Child
	if !alive(child) {
		t.Errorf("the plugin's daemon was killed, want it left alone")
	}
	if err := syscall.Kill(child, syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	gone(t, child)
}

func TestDetachNeedsNothingButTheAttachment(t *testing.T) {
	for _, tt := range []struct {
		name  string
		lose  func(t *testing.T, l *lab, a *Attachment)
		netns string
	}{
		{"nothing lost", func(*testing.T, *lab, *Attachment) {}, "/proc/self/ns/net"},
		{"configuration", func(t *testing.T, l *lab, _ *Attachment) { remove(t, l.conf); l.load() }, "/proc/self/ns/net"},
		{"cache", func(t *testing.T, l *lab, _ *Attachment) { remove(t, l.cache) }, "/proc/self/ns/net"},
		{"namespace", func(_ *testing.T, _ *lab, a *Attachment) { a.NetNS = "/run/netns/gone" }, ""},
		{"mount of the namespace", func(t *testing.T, l *lab, a *Attachment) { a.NetNS = filepath.Join(l.conf, "10-lab.conflist") }, ""},
		{"everything", func(t *testing.T, l *lab, a *Attachment) {
			a.NetNS = ""
			remove(t, l.conf)
			remove(t, l.cache)
		}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t, 0)
			a := l.plan(t, "abc")
			if _, err := l.Attach(t.Context(), a); err != nil {
				t.Fatal(err)
			}
			tt.lose(t, l, &a)
			for range 2 {
				if err := l.Detach(t.Context(), a); err != nil {
					t.Fatalf("Detach = %v, want nil", err)
				}
			}
			calls := cnitest.Calls(t, l.bin)[2:]
			if len(calls) != 4 {
				t.Fatalf("calls = %v, want DEL of both plugins, twice", l.trail(t))
			}
			for _, c := range calls {
				if c.Verb != "DEL" || c.Env["CNI_NETNS"] != tt.netns {
					t.Errorf("%s %s with CNI_NETNS %q, want DEL with %q", c.Verb, c.Plugin, c.Env["CNI_NETNS"], tt.netns)
				}
			}
		})
	}
	t.Run("never planned", func(t *testing.T) {
		l := newLab(t, 0)
		if err := l.Detach(t.Context(), Attachment{ID: "abc"}); err != nil || len(l.trail(t)) > 0 {
			t.Errorf("Detach of what was never planned = %v after %v, want nil and no call", err, l.trail(t))
		}
	})
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

func TestDetachKeepsFailing(t *testing.T) {
	l := newLab(t, 0)
	a := l.plan(t, "abc")
	l.first.Does("DEL", cnitest.Step{Exit: 1, Result: `{"code":11,"msg":"later"}`})
	if err := l.Detach(t.Context(), a); !errkind.Is(err, errkind.Unavailable) || !strings.Contains(err.Error(), "CNI plugin first, DEL") {
		t.Errorf("Detach with a failing plugin = %v, want Unavailable naming it", err)
	}
	l.first.Does("DEL", cnitest.Step{})
	if err := l.Detach(t.Context(), a); err != nil {
		t.Errorf("Detach again = %v, want nil", err)
	}
}

// While a plugin works for one sandbox, the next call for the same one waits
// and a call for another does not.
func TestCallsForOneSandboxAreSerialised(t *testing.T) {
	l := newLab(t, 0)
	one, other := l.plan(t, "one"), l.plan(t, "other")
	if _, err := l.Attach(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	gate := l.first.Gate()
	l.first.Does("ADD", cnitest.Step{Gate: gate, Result: `{"ips":[{"address":"192.0.2.2/24"}]}`})
	done := make(chan error, 2)
	go func() {
		_, err := l.Attach(t.Context(), one)
		done <- err
	}()
	testutil.WaitFor(t, "the plugin is called", func() bool { return len(l.trail(t)) == 3 })
	go func() { done <- l.Detach(t.Context(), one) }()
	if err := l.Detach(t.Context(), other); err != nil {
		t.Error(err)
	}
	cnitest.Open(t, gate)
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	want := []string{"ADD first", "ADD second", "ADD first", "DEL second", "DEL first", "ADD second", "DEL second", "DEL first"}
	if got := l.trail(t); !slices.Equal(got, want) {
		t.Errorf("calls = %v, want %v", got, want)
	}
}

func TestPlan(t *testing.T) {
	l := newLab(t, 0)
	for _, tt := range []struct {
		name string
		a    Attachment
		want string // part of the error; "" is none
	}{
		{"default interface", Attachment{ID: "a"}, ""},
		{"no ID", Attachment{}, "container ID"},
		{"ID with a slash", Attachment{ID: "a/b"}, "container ID"},
		{"interface", Attachment{ID: "a", IfName: "much-too-long-a-name"}, "interface name"},
		{"separator in a name", Attachment{ID: "a", Name: "x;CNI_X=1"}, "x;CNI_X=1"},
		{"host IP", Attachment{ID: "a", Ports: []Port{{Host: 80, HostIP: "localhost"}}}, "host IP"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, err := l.Plan(tt.a)
			if tt.want == "" {
				if err != nil || a.IfName != "eth0" || !strings.Contains(string(a.Config), `"lab"`) {
					t.Errorf("Plan(%+v) = %+v, %v, want eth0 on network lab", tt.a, a, err)
				}
				return
			}
			if !errkind.Is(err, errkind.Invalid) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Plan(%+v) = %v, want Invalid with %q", tt.a, err, tt.want)
			}
		})
	}
	t.Run("no network", func(t *testing.T) {
		remove(t, filepath.Join(l.conf, "10-lab.conflist"))
		l.load()
		if _, err := l.Plan(Attachment{ID: "a"}); !errkind.Is(err, errkind.Unavailable) || !strings.Contains(err.Error(), l.conf) {
			t.Errorf("Plan without a network = %v, want Unavailable naming %s", err, l.conf)
		}
	})
	t.Run("not planned", func(t *testing.T) {
		if _, err := l.Attach(t.Context(), Attachment{ID: "a"}); !errkind.Is(err, errkind.BadState) {
			t.Errorf("Attach of what was not planned = %v, want BadState", err)
		}
	})
}

func TestGC(t *testing.T) {
	l := newLab(t, 0)
	live, stale := l.plan(t, "live"), l.plan(t, "stale")
	for _, a := range []Attachment{live, stale} {
		if _, err := l.Attach(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	// An older plugin does not know the verb, which is no harm.
	l.first.Does("GC", cnitest.Step{Exit: 1, Result: `{"code":4,"msg":"unknown CNI_COMMAND: GC"}`})
	before := len(l.trail(t))
	if err := l.GC(t.Context(), []Attachment{live}); err != nil {
		t.Fatal(err)
	}
	if got, want := l.trail(t)[before:], []string{"DEL second", "DEL first", "GC first", "GC second"}; !slices.Equal(got, want) {
		t.Fatalf("calls = %v, want %v", got, want)
	}
	calls := cnitest.Calls(t, l.bin)[before:]
	if id := calls[0].Env["CNI_CONTAINERID"]; id != "stale" {
		t.Errorf("GC detached %q, want stale", id)
	}
	if conf := string(calls[3].Conf); !strings.Contains(conf, `"cni.dev/valid-attachments":[{"containerID":"live","ifname":"eth0"}]`) {
		t.Errorf("GC told the plugin %s, want the live attachment", conf)
	}
	// Plugins of one network that fail do not keep those of another from it.
	other := live
	other.ID, other.Config = "other", []byte(strings.Replace(string(live.Config), `"lab"`, `"former"`, 1))
	l.first.Does("GC", cnitest.Step{Exit: 1, Result: `{"code":100,"msg":"no"}`})
	if err := l.GC(t.Context(), []Attachment{live, other}); err == nil || !strings.Contains(err.Error(), "network lab") || !strings.Contains(err.Error(), "network former") {
		t.Errorf("GC of two networks that both fail = %v, want an error naming both", err)
	}
	l.first.Does("GC", cnitest.Step{})
	l.second.Does("GC", cnitest.Step{Exit: 1, Result: `{"code":100,"msg":"no"}`})
	if err := l.GC(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "CNI plugin second, GC") {
		t.Errorf("GC with a failing plugin = %v, want an error naming it", err)
	}
}

func TestNewRefuses(t *testing.T) {
	good := Options{ConfDir: "/c", BinDirs: []string{"/b"}, CacheDir: "/d"}
	for _, tt := range []struct {
		name   string
		change func(*Options)
	}{
		{"relative folder of configurations", func(o *Options) { o.ConfDir = "c" }},
		{"no cache", func(o *Options) { o.CacheDir = "" }},
		{"no plugins", func(o *Options) { o.BinDirs = nil }},
		{"plugins in two folders in one", func(o *Options) { o.BinDirs = []string{"/a:/b"} }},
		{"limit", func(o *Options) { o.Timeout = -1 }},
	} {
		o := good
		tt.change(&o)
		if _, err := New(o); !errkind.Is(err, errkind.Invalid) {
			t.Errorf("%s: New = %v, want Invalid", tt.name, err)
		}
	}
}
