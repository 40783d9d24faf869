package server

import (
	"os"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

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
		if got := loggedSince([]byte(tt.record), tt.start) && oomVictim([]byte(tt.record), tt.pid); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestOOMCgroup(t *testing.T) {
	const record = "6,1234,5678901,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=x,mems_allowed=0," +
		"oom_memcg=/pod1,task_memcg=/pod1/crid-abc.scope,task=sh,pid=42,uid=0\n SUBSYSTEM=x\n"
	for _, tt := range []struct {
		name, record, path string
		want               bool
	}{
		{"the container's", record, "/pod1/crid-abc.scope", true},
		{"in a cgroup below it", record, "/pod1", true}, // as the container's own
		{"a sibling's", record, "/pod1/crid-abd.scope", false},
		{"a sibling's whose name is longer", record, "/pod1/crid-abc", false},
		{"the pod's limit, of another container", record, "/pod1/crid-other.scope", false},
		{"not known", record, "", false},
		{"of the root", record, "/", false},
		{"another record", "6,1,2,-;something task_memcg=/pod1,x", "/pod1", false},
		{"cut", "6,1,2,-;oom-kill:constraint=X,task_memcg=/pod1", "/pod1", false},
	} {
		if got := oomCgroup([]byte(tt.record), tt.path); got != tt.want {
			t.Errorf("%s: oomCgroup = %v, want %v", tt.name, got, tt.want)
		}
	}
}

// The kernel's log says what a cgroup would that is gone: of the container whose process
// was killed, whether that was its first or a child, and not of its neighbour.
func TestOOMInTheKernelsLog(t *testing.T) {
	n := newNode(t)
	if f, err := os.Open("/dev/kmsg"); err != nil {
		t.Skipf("this machine does not show the kernel's log: %v", err)
	} else {
		_ = f.Close()
	}
	limit := int64(64 << 20)
	for name, script := range map[string]string{
		"logged-first": "x=y; while :; do x=$x$x; done",
		"logged-child": "sh -c 'x=y; while :; do x=$x$x; done'; exit 3",
	} {
		spec := n.spec("sh", "-c", script)
		spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &limit}
		n.runSpec(name, spec)
		c, err := n.server.table.container(name)
		if err != nil {
			t.Fatal(err)
		}
		if e := n.exit(name); !e.OOMKilled {
			t.Fatalf("%s: exit = %+v, want OOM killed", name, e)
		}
		path := c.cgroup.path()
		if !oomKilledInLog(c.pid, c.began, path) {
			t.Errorf("%s: the kernel's log does not say that a process of %s was killed", name, path)
		}
		if oomKilledInLog(1<<30, c.began, path+"-neighbour") {
			t.Errorf("%s: the kernel's log says so of a neighbour", name)
		}
	}
}
