package sandbox

import (
	"testing"
	"time"
)

func TestCgroupOf(t *testing.T) {
	for in, want := range map[string]string{
		"/crid/crid-1":                         "/crid/crid-1",
		"kubepods/pod1/crid-1":                 "/kubepods/pod1/crid-1",
		"crid.slice:crid:1":                    "/crid.slice/crid-1.scope",
		"kubepods-burstable-pod1.slice:crid:1": "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/crid-1.scope",
		"-.slice:crid:1":                       "/crid-1.scope",
		"":                                     "/",
	} {
		if got := cgroupOf(in); got != want {
			t.Errorf("cgroupOf(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestCPURate(t *testing.T) {
	var r cpuRate
	at := time.Unix(100, 0)
	v := func(n uint64) Value { return Value{N: n, Known: true} }
	for _, step := range []struct {
		name  string
		after time.Duration
		used  Value
		want  Value
	}{
		{"first", 0, v(1e9), Value{}},
		{"too soon", time.Second / 2, v(2e9), Value{}},
		{"two seconds after the first", 3 * time.Second / 2, v(3e9), v(1e9)},
		{"too soon: what it was", time.Second / 2, v(3e9), v(1e9)},
		{"over the whole window", time.Second / 2, v(5e9), v(2e9)},
		{"not known", time.Second, Value{}, Value{}},
		{"idle", 2 * time.Second, v(5e9), v(0)},
		{"nobody asked for long", time.Hour, v(6e9), Value{}},
		{"again", time.Second, v(6e9 + 7), v(7)},
		{"another cgroup", time.Second, v(1), Value{}},
		{"its own", 2 * time.Second, v(5), v(2)},
		{"the clock was set back", -time.Hour, v(6), Value{}},
		{"and goes on", time.Second, v(7), v(1)},
		{"overtaken by another caller", -time.Millisecond, v(6), v(1)},
		{"which changes nothing", time.Second + time.Millisecond, v(8), v(1)},
	} {
		at = at.Add(step.after)
		if got := r.sample(at, step.used); got != step.want {
			t.Errorf("%s: %v, want %v", step.name, got, step.want)
		}
	}
}
