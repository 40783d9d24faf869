package sys

import (
	"os"
	"testing"
)

func TestSysctlPath(t *testing.T) {
	tests := []struct{ name, want string }{
		{"net.ipv4.ip_forward", "/proc/sys/net/ipv4/ip_forward"},
		{"net/ipv4/ip_forward", "/proc/sys/net/ipv4/ip_forward"},
		{"net.ipv4.conf.eth0/1.rp_filter", "/proc/sys/net/ipv4/conf/eth0.1/rp_filter"},
		{"net/ipv4/conf/eth0.1/rp_filter", "/proc/sys/net/ipv4/conf/eth0.1/rp_filter"},
		{"kernel.shm_rmid_forced", "/proc/sys/kernel/shm_rmid_forced"},
		{"..", ""},
		{"net/../../../etc/passwd", ""},
		{"net.//.//.etc", ""},
		{"/etc/passwd", ""},
		{"kernel", ""},
		{"kernel..x", ""},
		{"", ""},
	}
	for _, tt := range tests {
		got, err := sysctlPath(tt.name)
		if got != tt.want || (err != nil) != (tt.want == "") {
			t.Errorf("sysctlPath(%q) = %q, %v, want %q", tt.name, got, err, tt.want)
		}
	}
}

func TestHost(t *testing.T) {
	if id := BootID(); len(id) != 36 || id != BootID() {
		t.Errorf("BootID() = %q, want the same 36 letters each time", id)
	}
	_, err := os.Lstat("/run/systemd/system")
	if got, want := SystemdBooted(), err == nil; got != want {
		t.Errorf("SystemdBooted() = %v, want %v", got, want)
	}
}
