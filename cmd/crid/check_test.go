package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/cridproject/crid/monitor"
)

// TestDifferences: each disagreement is told once, and agreement is silent.
func TestDifferences(t *testing.T) {
	holder := &struct{ PID int }{7}
	agreed := func() *view {
		return &view{
			config: Config{NetNSDir: "/n"}, bootID: "now",
			sandboxes:  map[string]sandboxFacts{"s": {BootID: "now", State: "ready", NetNS: "/n/crid-s", Holder: holder}},
			containers: map[string]containerFacts{"c": {BootID: "now", State: "running", Sandbox: "s"}},
			monitor:    map[string]monitor.ListItem{"s": {ID: "s", PID: 7, Holder: true}, "c": {ID: "c", PID: 8}},
			cgroups:    map[string]string{"c": "/cg/crid-c", "s": "/cg/crid-hold-s"},
			mounts:     map[string]bool{"/n/crid-s": true},
			netns:      []string{"s"},
			folders:    map[string]string{"c": "/r/c", "s": "/s/s"},
		}
	}
	if got := agreed().differences(); len(got) > 0 {
		t.Fatalf("differences where there are none: %v", got)
	}
	tests := []struct {
		name   string
		change func(*view)
		want   string // part of one difference; "" means none
	}{
		{"no namespace", func(v *view) { v.mounts = nil }, "its network namespace /n/crid-s is gone"},
		{"no holder", func(v *view) { delete(v.monitor, "s") }, "the holder of its PID namespace"},
		{"no monitor", func(v *view) { v.monitor = nil; v.sandboxes["s"] = sandboxFacts{} }, "the container is running, crid-monitor does not have it"},
		{"exit not taken", func(v *view) { v.monitor["c"] = monitor.ListItem{Exit: &monitor.Exit{Code: 3}} }, "ended with code 3"},
		{"exited", func(v *view) {
			v.containers["c"] = containerFacts{BootID: "now", State: "exited", Sandbox: "s"}
			delete(v.monitor, "c")
		}, ""},
		{"of another boot", func(v *view) {
			v.containers["c"] = containerFacts{BootID: "then", State: "running", Sandbox: "s"}
			delete(v.monitor, "c")
		}, ""},
		{"unknown to records", func(v *view) { v.monitor["x"] = monitor.ListItem{PID: 9} }, "x: crid-monitor has it (process 9)"},
		{"stray cgroup", func(v *view) { v.cgroups["x"] = "/cg/crid-x" }, "x: there is a cgroup /cg/crid-x"},
		{"stray namespace", func(v *view) { v.netns = append(v.netns, "x") }, "x: there is a network namespace /n/crid-x"},
		{"stray folder", func(v *view) { v.folders["x"] = "/r/x" }, "x: there is a folder /r/x"},
		{"folder of an image volume", func(v *view) { v.folders["c@0"] = "/r/c@0" }, ""},
		{"stray folder of an image volume", func(v *view) { v.folders["x@0"] = "/r/x@0" }, "x@0: there is a folder /r/x@0"},
		{"orphan", func(v *view) {
			v.containers["d"] = containerFacts{State: "exited", Sandbox: "gone"}
		}, "d: the container's sandbox gone has no record"},
		{"unreadable", func(v *view) { v.unreadable = []string{"record r cannot be read"} }, "record r cannot be read"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := agreed()
			tt.change(v)
			got := v.differences()
			has := slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, tt.want) })
			if tt.want == "" && len(got) > 0 || tt.want != "" && (len(got) != 1 || !has) {
				t.Errorf("differences = %q, want one with %q", got, tt.want)
			}
		})
	}
}
