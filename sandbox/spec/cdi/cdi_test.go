//lint:file-ignore SA1019 vendors still write prestart hooks

package cdi

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/errkind"
)

const vendor = `cdiVersion: "0.7.0"
kind: vendor.com/thing
devices:
- name: one
  containerEdits:
    env: ["THING=one"]
    deviceNodes: [{path: /dev/thing, hostPath: /dev/null, permissions: r}]
    mounts: [{hostPath: /etc, containerPath: /thing, options: [ro, rbind]}]
    additionalGids: [4321]
    hooks: [{hookName: createContainer, path: /bin/true, args: ["true"]}]
- name: two
  containerEdits:
    env: ["OTHER=two"]
`

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func empty() *specs.Spec { return &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{}} }

func TestInject(t *testing.T) {
	dir, later := t.TempDir(), t.TempDir()
	f := New([]string{dir, later, filepath.Join(dir, "absent")})
	log := klog.Background()
	inject := func(devices ...string) (*specs.Spec, error) {
		s := empty()
		return s, f.Inject(log, s, devices)
	}
	if _, err := inject("vendor.com/thing=one"); !errkind.Is(err, errkind.Invalid) || !strings.Contains(err.Error(), "vendor.com/thing=one") || !strings.Contains(err.Error(), dir) {
		t.Errorf("Inject without files = %v, want Invalid that names the device and the folders", err)
	}

	write(t, dir, "vendor.yaml", vendor)
	s, err := inject("vendor.com/thing=one", "vendor.com/thing=two")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(s.Process.Env, []string{"THING=one", "OTHER=two"}) || !slices.Equal(s.Process.User.AdditionalGids, []uint32{4321}) {
		t.Errorf("Inject: process %+v", s.Process)
	}
	if d := s.Linux.Devices; len(d) != 1 || d[0].Path != "/dev/thing" || d[0].Type != "c" || d[0].Major != 1 || d[0].Minor != 3 {
		t.Errorf("Inject: devices %+v, want /dev/thing as c 1:3", d)
	}
	if r := s.Linux.Resources; r == nil || len(r.Devices) != 1 || r.Devices[0].Access != "r" || !r.Devices[0].Allow {
		t.Errorf("Inject: device rules %+v, want one that allows to read", r)
	}
	if len(s.Mounts) != 1 || s.Mounts[0].Destination != "/thing" || s.Hooks == nil || len(s.Hooks.CreateContainer) != 1 {
		t.Errorf("Inject: mounts %+v, hooks %+v", s.Mounts, s.Hooks)
	}

	// The next container gets what the file says by then, and a later folder counts.
	write(t, dir, "vendor.yaml", strings.ReplaceAll(vendor, "THING=one", "THING=new"))
	if s, err := inject("vendor.com/thing=one"); err != nil || s.Process.Env[0] != "THING=new" {
		t.Errorf("Inject after a change = %v, %v", s.Process.Env, err)
	}
	write(t, later, "vendor.yaml", strings.ReplaceAll(vendor, "THING=one", "THING=later"))
	if s, err := inject("vendor.com/thing=one"); err != nil || s.Process.Env[0] != "THING=later" {
		t.Errorf("Inject with a file in a later folder = %v, %v", s.Process.Env, err)
	}

	// A broken file does not keep others from being used, and is named where it may
	// be the cause.
	write(t, dir, "broken.json", "{")
	if _, err := inject("vendor.com/thing=one"); err != nil {
		t.Errorf("Inject beside a broken file = %v", err)
	}
	if _, err := inject("broken.com/thing=one"); err == nil || !strings.Contains(err.Error(), "broken.json") {
		t.Errorf("Inject of a device from a broken file = %v, want the file named", err)
	}
	st := f.Status(log)
	if !slices.Equal(st.Devices, []string{"vendor.com/thing=one", "vendor.com/thing=two"}) || len(st.Broken) != 1 || st.Broken[filepath.Join(dir, "broken.json")] == "" {
		t.Errorf("Status = %+v", st)
	}
	write(t, later, "vendor.yaml", strings.ReplaceAll(vendor, "/dev/null", "/dev/absent"))
	if _, err := inject("vendor.com/thing=one"); !errkind.Is(err, errkind.Invalid) || !strings.Contains(err.Error(), "/dev/absent") {
		t.Errorf("Inject of a device without its node = %v, want Invalid that names the node", err)
	}
}

// What cannot be used costs nothing but its own devices.
func TestBroken(t *testing.T) {
	for name, text := range map[string]string{
		"empty":           "",
		"null":            "null",
		"no list":         "devices: {}",
		"null mount":      strings.Replace(vendor, "mounts: [", "mounts: [null, ", 1),
		"null node":       strings.Replace(vendor, "deviceNodes: [", "deviceNodes: [null, ", 1),
		"null hook":       strings.Replace(vendor, "hooks: [", "hooks: [null, ", 1),
		"null for all":    vendor + "containerEdits: {mounts: [null]}\n",
		"a later version": strings.Replace(vendor, "0.7.0", "99.0.0", 1),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "bad.yaml", strings.Replace(text, "vendor.com", "other.com", 1))
			write(t, dir, "good.yaml", vendor)
			notFolder := filepath.Join(dir, "bad.yaml")
			f := New([]string{notFolder, dir})
			if err := f.Inject(klog.Background(), empty(), []string{"vendor.com/thing=one"}); err != nil {
				t.Errorf("Inject beside what is broken = %v", err)
			}
			err := f.Inject(klog.Background(), empty(), []string{"other.com/thing=one"})
			if !errkind.Is(err, errkind.Invalid) || !strings.Contains(err.Error(), filepath.Join(dir, "bad.yaml")+" cannot be used: ") {
				t.Errorf("Inject of what is broken = %v, want Invalid that names the file", err)
			}
			if broken := f.Status(klog.Background()).Broken; len(broken) == 0 {
				t.Errorf("Status says of nothing that it is broken")
			}
		})
	}
}

// A hook that hangs must not hang its container.
func TestHooksHaveTimeouts(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "vendor.yaml", strings.Replace(vendor, "hooks: [", "hooks: [{hookName: poststop, path: /bin/true, timeout: 5}, {hookName: prestart, path: /bin/true}, ", 1))
	s := empty()
	if err := New([]string{dir}).Inject(klog.Background(), s, []string{"vendor.com/thing=one"}); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		hooks []specs.Hook
		want  int
	}{
		{s.Hooks.Poststop, 5},
		{s.Hooks.Prestart, hookLimit}, //nolint:staticcheck // it is deprecated, and in vendors' files
		{s.Hooks.CreateContainer, hookLimit},
	} {
		if len(test.hooks) != 1 || test.hooks[0].Timeout == nil || *test.hooks[0].Timeout != test.want {
			t.Errorf("hooks = %+v, want one with a timeout of %d s", test.hooks, test.want)
		}
	}
}

func TestInjectNothing(t *testing.T) {
	f := New(nil)
	if err := f.Inject(klog.Background(), empty(), nil); err != nil {
		t.Errorf("Inject of nothing = %v", err)
	}
	if err := f.Inject(klog.Background(), empty(), []string{"a.b/c=d"}); !errkind.Is(err, errkind.Invalid) || !strings.Contains(err.Error(), "cdi_spec_dirs") {
		t.Errorf("Inject without folders = %v, want Invalid that names the key", err)
	}
}

func TestInjectConcurrently(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "vendor.yaml", vendor)
	f := New([]string{dir})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := f.Inject(klog.Background(), empty(), []string{"vendor.com/thing=one"}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}
