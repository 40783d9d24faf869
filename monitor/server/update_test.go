package server

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/monitor"
)

// cgroupFile is what the kernel has in a container's cgroup, in the file of the
// version that this machine has.
func (n *node) cgroupFile(id, controller, v1, v2 string) string {
	n.t.Helper()
	c, err := n.server.table.container(id)
	if err != nil {
		n.t.Fatal(err)
	}
	dir, file := c.cgroup.m.Path(controller), v1
	if cgroups.IsCgroup2UnifiedMode() {
		dir, file = c.cgroup.m.Path(""), v2
	}
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		n.t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func (n *node) memoryLimit(id string) string {
	return n.cgroupFile(id, "memory", "memory.limit_in_bytes", "memory.max")
}

func (n *node) cpuQuota(id string) string {
	return n.cgroupFile(id, "cpu", "cpu.cfs_quota_us", "cpu.max")
}

func update(t *testing.T, n *node, r monitor.UpdateRequest) specs.LinuxResources {
	t.Helper()
	reply, err := n.client.Update(t.Context(), r)
	if err != nil {
		t.Fatalf("Update(%s) = %v", r.Resources, err)
	}
	var got specs.LinuxResources
	if err := json.Unmarshal(reply.Applied.Resources, &got); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestUpdate(t *testing.T) {
	n := newNode(t)
	n.run("a", "sleep", "1000")
	// Not a multiple of a page: the kernel rounds it down.
	got := update(t, n, monitor.UpdateRequest{ID: "a", Resources: []byte(`{"memory":{"limit":67108865},"cpu":{"shares":512,"quota":50000,"period":100000}}`)})
	if limit := *got.Memory.Limit; limit != 67108864 || n.memoryLimit("a") != "67108864" {
		t.Errorf("memory limit = %d in the reply and %s in the kernel, want 67108864", limit, n.memoryLimit("a"))
	}
	if quota := *got.CPU.Quota; quota != 50000 || !strings.HasPrefix(n.cpuQuota("a"), "50000") {
		t.Errorf("quota = %d in the reply and %s in the kernel, want 50000", quota, n.cpuQuota("a"))
	}
	if *got.CPU.Shares != 512 {
		t.Errorf("shares in the reply = %d, want 512", *got.CPU.Shares)
	}
	if _, _, code, err := n.exec("a", "sh", "-c", "echo x >/dev/null && cat /dev/zero | head -c 1"); err != nil || code != 0 {
		t.Errorf("exec that uses devices after Update = %d, %v, want 0", code, err)
	}

	got = update(t, n, monitor.UpdateRequest{ID: "a", Resources: []byte(`{"memory":{"limit":-1},"cpu":{"quota":-1}}`)})
	if *got.Memory.Limit != -1 || *got.CPU.Quota != -1 {
		t.Errorf("after limits of -1 the reply has %d and %d", *got.Memory.Limit, *got.CPU.Quota)
	}
	if limit, quota := n.memoryLimit("a"), n.cpuQuota("a"); limit == "67108864" || strings.HasPrefix(quota, "50000") {
		t.Errorf("after limits of -1 the kernel has %s and %s", limit, quota)
	}
	_, err := n.client.Update(t.Context(), monitor.UpdateRequest{ID: "a", Resources: []byte(`[]`)})
	if !errkind.Is(err, errkind.Invalid) {
		t.Errorf("Update with no resources = %v, want invalid", err)
	}
}

// TestUpdateIsAllOrNothing changes what can be changed together with what cannot:
// there was no limit before, which libcontainer would not set back.
func TestUpdateIsAllOrNothing(t *testing.T) {
	n := newNode(t)
	n.run("a", "sleep", "1000")
	memory, quota := n.memoryLimit("a"), n.cpuQuota("a")
	// A quota beside a period that no kernel takes: with v2 one file, with v1 two.
	for _, bad := range []string{`"cpu":{"quota":50000,"period":7}`, `"cpu":{"quota":50000,"period":9000000}`} {
		_, err := n.client.Update(t.Context(), monitor.UpdateRequest{ID: "a", Resources: []byte(`{"memory":{"limit":67108864},` + bad + `}`)})
		if !errkind.Is(err, errkind.Invalid) {
			t.Errorf("Update(%s) = %v, want invalid", bad, err)
		}
		if m, q := n.memoryLimit("a"), n.cpuQuota("a"); m != memory || q != quota {
			t.Errorf("after Update(%s), which failed, memory and quota are %s and %s, want %s and %s", bad, m, q, memory, quota)
		}
	}
}

// TestUpdateBelowUsage: files in memory cannot be dropped, so the kernel would kill.
func TestUpdateBelowUsage(t *testing.T) {
	n := newNode(t)
	n.run("a", "sleep", "1000")
	update(t, n, monitor.UpdateRequest{ID: "a", Resources: []byte(`{"memory":{"limit":67108864}}`)})
	if _, text, code, err := n.exec("a", "sh", "-c", "head -c 40000000 /dev/zero >/dev/shm/x"); err != nil || code != 0 {
		t.Fatalf("exec that uses memory = %d, %q, %v", code, text, err)
	}
	_, err := n.client.Update(t.Context(), monitor.UpdateRequest{ID: "a", Resources: []byte(`{"memory":{"limit":16777216},"cpu":{"quota":50000}}`)})
	if !errkind.Is(err, errkind.BadState) {
		t.Errorf("Update to less than what is in use = %v, want bad state", err)
	}
	if limit, quota := n.memoryLimit("a"), n.cpuQuota("a"); limit != "67108864" || strings.HasPrefix(quota, "50000") {
		t.Errorf("after that the kernel has %s and %s, want 67108864 and no quota", limit, quota)
	}
	if _, text, code, err := n.exec("a", "true"); err != nil || code != 0 {
		t.Errorf("exec after that = %d, %q, %v: was it killed?", code, text, err)
	}
}

func TestUpdateOOMScore(t *testing.T) {
	n := newNode(t)
	spec := n.spec("sh", "-c", "sh -c 'echo 900 >/proc/self/oom_score_adj; >/ready; exec sleep 1000' & sleep 1000 & wait")
	score := 300
	spec.Process.OOMScoreAdj = &score
	n.runSpec("a", spec)
	if _, text, code, err := n.exec("a", "sh", "-c", "until [ -e /ready ]; do usleep 1000; done"); err != nil || code != 0 {
		t.Fatalf("wait for its processes = %d, %q, %v", code, text, err)
	}
	score = 500
	reply, err := n.client.Update(t.Context(), monitor.UpdateRequest{ID: "a", Resources: []byte("{}"), OOMScoreAdj: &score})
	if err != nil || reply.Applied.OOMScoreAdj == nil || *reply.Applied.OOMScoreAdj != 500 {
		t.Fatalf("Update(oom score 500) = %+v, %v", reply.Applied, err)
	}
	c, err := n.server.table.container("a")
	if err != nil {
		t.Fatal(err)
	}
	pids, err := c.cgroup.pids()
	if err != nil {
		t.Fatal(err)
	}
	got := map[int]int{}
	for _, pid := range pids {
		if now, err := oomScoreAdj(pid); err == nil {
			got[now]++
		}
	}
	if len(pids) != 3 || got[500] != 2 || got[900] != 1 {
		t.Errorf("scores of the %d processes = %v, want 500 twice, and 900 of the one that chose it", len(pids), got)
	}
	if out, _, _, err := n.exec("a", "cat", "/proc/self/oom_score_adj"); err != nil || strings.TrimSpace(out) != "500" {
		t.Errorf("score of an exec afterwards = %q, %v, want 500", out, err)
	}
	// Clamped where this process may not go lower.
	score = -1000
	reply, err = n.client.Update(t.Context(), monitor.UpdateRequest{ID: "a", Resources: []byte("{}"), OOMScoreAdj: &score})
	if err != nil {
		t.Fatal(err)
	}
	now, err := oomScoreAdj(c.pid)
	if want := n.server.runtime.limits.oom(-1000); err != nil || now != want || *reply.Applied.OOMScoreAdj != now {
		t.Errorf("score after asking for -1000 = %s, reply %d, want %d", strconv.Itoa(now), *reply.Applied.OOMScoreAdj, want)
	}
}
