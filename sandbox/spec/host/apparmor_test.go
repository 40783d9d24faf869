package host

import (
	"errors"
	"strings"
	"testing"

	"github.com/cridproject/crid/sandbox/config"
	"github.com/cridproject/crid/sandbox/spec"
)

// TestAppArmorIsLoadedWhenNeeded: once, again when it has gone, and not for
// containers that it does not confine.
func TestAppArmorIsLoadedWhenNeeded(t *testing.T) {
	loaded := "other (enforce)"
	installs := 0
	a := AppArmor{
		list: func() string { return loaded },
		install: func(name string) error {
			installs++
			loaded += "\n" + name + " (enforce)"
			return nil
		},
	}
	input := func(kind config.ProfileKind, privileged bool) *spec.Input {
		in := &spec.Input{Host: spec.Host{HasAppArmor: true}}
		in.Container.Security.AppArmor.Kind, in.Container.Security.Privileged = kind, privileged
		return in
	}
	for _, in := range []*spec.Input{
		input(config.ProfileUnconfined, false), input(config.ProfileLocalhost, false), input("", true), {},
	} {
		if a.Fill(in); installs != 0 || in.Host.AppArmorDefault != "" {
			t.Errorf("Fill(%+v): %d installs, profile %q, want none", in.Container.Security, installs, in.Host.AppArmorDefault)
		}
	}
	for _, want := range []int{1, 1, 2} {
		if want == 2 {
			loaded = "" // somebody has removed it
		}
		in := input("", false)
		if a.Fill(in); in.Host.AppArmorDefault != AppArmorDefault || installs != want {
			t.Errorf("Fill: profile %q after %d installs, want %q after %d", in.Host.AppArmorDefault, installs, AppArmorDefault, want)
		}
	}
}

func TestAppArmorProblem(t *testing.T) {
	for want, install := range map[string]func(string) error{
		"no parser":                   func(string) error { return errors.New("no parser") },
		"the kernel does not list it": func(string) error { return nil },
	} {
		a := AppArmor{list: func() string { return "" }, install: install}
		in := &spec.Input{Host: spec.Host{HasAppArmor: true}}
		if a.Fill(in); in.Host.AppArmorDefault != "" || !strings.Contains(in.AppArmorProblem, want) {
			t.Errorf("Fill: profile %q, problem %q, want none and %q", in.Host.AppArmorDefault, in.AppArmorProblem, want)
		}
	}
}

func TestReadProfileRefuses(t *testing.T) {
	for _, path := range []string{"/dev/zero", t.TempDir()} {
		if data, err := readProfile(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("readProfile(%s) = %d bytes, %v, want an error that names it", path, len(data), err)
		}
	}
}
