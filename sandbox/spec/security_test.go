package spec

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/sandbox/config"
)

func TestAppArmor(t *testing.T) {
	const problem = "no parser"
	tests := []struct {
		name    string
		profile config.Profile
		has     bool
		loaded  string // the default profile
		want    string
		wantErr string
		warns   bool
	}{
		{name: "none asked for", has: true, loaded: "crid-default", want: "crid-default"},
		{name: "default", profile: config.Profile{Kind: config.ProfileRuntimeDefault}, has: true, loaded: "crid-default", want: "crid-default"},
		{name: "unconfined", profile: config.Profile{Kind: config.ProfileUnconfined}, has: true, loaded: "crid-default"},
		{name: "localhost", profile: config.Profile{Kind: config.ProfileLocalhost, Ref: "web"}, has: true, want: "web"},
		{name: "no default, none asked for", has: true, warns: true},
		{name: "no default, asked for", profile: config.Profile{Kind: config.ProfileRuntimeDefault}, has: true, wantErr: "apparmor.profile_type: RuntimeDefault cannot be had"},
		{name: "no AppArmor, none asked for"},
		{name: "no AppArmor, default", profile: config.Profile{Kind: config.ProfileRuntimeDefault}, wantErr: "apparmor.profile_type: RuntimeDefault cannot be had"},
		{name: "no AppArmor, localhost", profile: config.Profile{Kind: config.ProfileLocalhost, Ref: "web"}, wantErr: `apparmor.localhost_ref: profile "web"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := readInput(t, "testdata/minimal.in.json")
			in.Container.Security.AppArmor = tt.profile
			in.Host.HasAppArmor, in.Host.AppArmorDefault, in.AppArmorLoaded, in.AppArmorProblem = tt.has, tt.loaded, true, problem
			r, err := Build(in)
			if tt.wantErr != "" {
				if !errkind.Is(err, errkind.Invalid) || !strings.Contains(err.Error(), tt.wantErr) {
					t.Errorf("Build = %v, want an Invalid one with %q", err, tt.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := r.Spec.Process.ApparmorProfile; got != tt.want {
				t.Errorf("profile %q, want %q", got, tt.want)
			}
			warned := slices.ContainsFunc(r.Warnings, func(w string) bool { return strings.Contains(w, problem) })
			if warned != tt.warns {
				t.Errorf("warnings %v, want one about the default profile: %v", r.Warnings, tt.warns)
			}
		})
	}
}

// TestFiltersKeep: what is kept is what would be made, for each profile and set
// of capabilities, and is not changed by who gets it.
func TestFiltersKeep(t *testing.T) {
	const deny = `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "includes": {"caps": ["CAP_SYS_ADMIN"]}}]}`
	withCaps := func(caps ...string) *specs.Spec {
		return &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}}
	}
	profiles := [][]byte{nil, []byte(deny), []byte(strings.Replace(deny, "mkdir", "rmdir", 1))}
	sets := [][]string{nil, {"CAP_SYS_ADMIN"}, {"CAP_SYS_ADMIN", "CAP_CHOWN"}}
	var f Filters
	for range 2 {
		for i, profile := range profiles {
			for _, caps := range sets {
				want, err := translate(profile, withCaps(caps...))
				if err != nil {
					t.Fatal(err)
				}
				got, err := f.filter(profile, withCaps(caps...))
				if err != nil || !reflect.DeepEqual(got, want) {
					t.Errorf("filter(profile %d, %v) = %+v, %v, want %+v", i, caps, got, err, want)
				}
				got.Syscalls = nil // a caller's copy
			}
		}
	}
	if len(f.kept) != len(profiles)*len(sets) {
		t.Errorf("%d filters kept, want %d", len(f.kept), len(profiles)*len(sets))
	}
	if _, err := f.filter(nil, withCaps("CAP_CHOWN", "CAP_SYS_ADMIN")); err != nil || len(f.kept) != len(profiles)*len(sets) {
		t.Errorf("the same capabilities in another order: %v, %d kept", err, len(f.kept))
	}
}

func TestFiltersAreBounded(t *testing.T) {
	var f Filters
	s := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}}
	for i := range 3 * maxFilters {
		if _, err := f.filter([]byte(`{"defaultAction": "SCMP_ACT_ALLOW"`+strings.Repeat(" ", i)+`}`), s); err != nil {
			t.Fatal(err)
		}
	}
	if len(f.kept) > maxFilters {
		t.Errorf("%d filters kept, want at most %d", len(f.kept), maxFilters)
	}
}

// TestSeccompProfileRefused: the error says what is wrong in which file.
func TestSeccompProfileRefused(t *testing.T) {
	for profile, want := range map[string]string{
		`{"defaultAction": `:                 "unexpected end of JSON",
		`[]`:                                 "cannot unmarshal array",
		`{}`:                                 "says nothing",
		`{"defaultAction": "SCMP_ACT_DENY"}`: `unknown action "SCMP_ACT_DENY"`,
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "ERRNO"}]}`:                                                       `[mkdir] (number 0 that applies): unknown action "ERRNO"`,
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "op": "EQ"}]}]}`:          `unknown operator "EQ"`,
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 6, "op": "SCMP_CMP_EQ"}]}]}`: "argument 6",
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [""], "action": "SCMP_ACT_ERRNO"}]}`:                                                   "empty name",
	} {
		in := readInput(t, "testdata/minimal.in.json")
		in.Container.Security.Seccomp = config.Profile{Kind: config.ProfileLocalhost, Ref: "/profiles/x.json"}
		in.SeccompProfile = []byte(profile)
		_, err := Build(in)
		if !errkind.Is(err, errkind.Invalid) || !strings.Contains(err.Error(), "seccomp.localhost_ref: /profiles/x.json: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("Build with %s = %v, want an Invalid error with %q", profile, err, want)
		}
	}
}
