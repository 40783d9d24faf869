package server

import "testing"

func TestOOMVictim(t *testing.T) {
	const record = "3,1234,5000000,-;Memory cgroup out of memory: Killed process 42 (sh) total-vm:1kB, anon-rss:2kB"
	for _, tt := range []struct {
		name, record string
		pid          int
		start        uint64
		want         bool
	}{
		{"victim", record, 42, 400, true},
		{"another", record, 4, 400, false},
		{"earlier life of the pid", record, 42, 9000, false},
		{"out of all memory", "3,1,5000000,-;Out of memory: Killed process 42 (a b) total-vm", 42, 100, true},
		{"something else", "6,1,5000000,-;usb 1-1: new device", 42, 100, false},
		{"no record", "", 42, 100, false},
		{"no time", "3,1;Memory cgroup out of memory: Killed process 42 (sh)", 42, 100, false},
	} {
		if got := oomVictim([]byte(tt.record), tt.pid, tt.start); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}
