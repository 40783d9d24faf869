package sandbox_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/monitor"
	"github.com/cridproject/crid/sandbox/config"
	"github.com/cridproject/crid/sandbox/sandboxtest"
)

// limited is a container with limits.
func limited() config.Container {
	c := sandboxtest.Container("main")
	c.Resources = config.Resources{MemoryLimit: 64 << 20, CPUShares: 512, OOMScoreAdj: 100}
	return c
}

// inKernel is the limits that a container has in the fake monitor.
func inKernel(t *testing.T, n *sandboxtest.Node, id config.ContainerID) (memory, quota int64) {
	t.Helper()
	var r specs.LinuxResources
	if err := json.Unmarshal(n.Monitor.Applied(string(id)).Resources, &r); err != nil {
		t.Fatal(err)
	}
	if r.Memory != nil && r.Memory.Limit != nil {
		memory = *r.Memory.Limit
	}
	if r.CPU != nil && r.CPU.Quota != nil {
		quota = *r.CPU.Quota
	}
	return memory, quota
}

func TestUpdateContainer(t *testing.T) {
	n := sandboxtest.New(t)
	pod, id := mustLive(t, n, sandboxtest.Pod("web"), limited())
	update := func(r config.Resources) {
		t.Helper()
		if err := n.Manager.UpdateContainer(t.Context(), string(id), r); err != nil {
			t.Fatalf("UpdateContainer(%+v) = %v", r, err)
		}
	}
	update(config.Resources{CPUQuota: 50000})
	want := config.Resources{MemoryLimit: 64 << 20, CPUShares: 512, OOMScoreAdj: 100, CPUQuota: 50000}
	if got := status(t, n, id).Resources; !reflect.DeepEqual(got, want) {
		t.Errorf("resources after an update of the quota = %+v, want %+v", got, want)
	}
	if memory, quota := inKernel(t, n, id); memory != 64<<20 || quota != 50000 {
		t.Errorf("the kernel has %d and %d, want %d and 50000", memory, quota, 64<<20)
	}
	update(config.Resources{CPUQuota: -1, MemoryLimit: -1, OOMScoreAdj: 200})
	want.CPUQuota, want.MemoryLimit, want.OOMScoreAdj = -1, -1, 200
	if memory, quota := inKernel(t, n, id); memory != -1 || quota != -1 {
		t.Errorf("the kernel has %d and %d, want -1 twice", memory, quota)
	}
	n.Restart()
	if got := status(t, n, id).Resources; !reflect.DeepEqual(got, want) {
		t.Errorf("resources after a restart = %+v, want %+v", got, want)
	}
	if score := n.Monitor.Applied(string(id)).OOMScoreAdj; score == nil || *score != 200 {
		t.Errorf("oom_score_adj in the monitor = %v, want 200", score)
	}
	// A retry of Create compares with what was asked for then.
	if st := status(t, n, id); st.Config.Resources.MemoryLimit != 64<<20 {
		t.Errorf("Config.Resources = %+v, want those of Create", st.Config.Resources)
	}
	mustRemove(t, n, pod)
	mustBeClean(t, n)
}

func TestUpdateContainerRefused(t *testing.T) {
	n := sandboxtest.New(t)
	pod, id := mustLive(t, n, sandboxtest.Pod("web"), limited())
	before := status(t, n, id).Resources
	try := func(name, id string, r config.Resources, kind errkind.Kind) {
		t.Helper()
		if err := n.Manager.UpdateContainer(t.Context(), id, r); !errkind.Is(err, kind) {
			t.Errorf("UpdateContainer of %s = %v, want %v", name, err, kind)
		}
	}
	try("none", "none", config.Resources{CPUQuota: 1 << 20}, errkind.NotFound)
	try("what this node has not", string(id), config.Resources{Unified: map[string]string{"memory.high": "1"}}, errkind.Invalid)
	n.Monitor.FailAt(monitor.OpUpdate, errkind.Errorf(errkind.BadState, "more is in use"))
	try("what the kernel refuses", string(id), config.Resources{MemoryLimit: 32 << 20}, errkind.BadState)
	n.Monitor.FailAt(monitor.OpUpdate, nil)
	if got := status(t, n, id).Resources; !reflect.DeepEqual(got, before) {
		t.Errorf("resources after failed updates = %+v, want %+v", got, before)
	}
	n.Restart()
	if memory, _ := inKernel(t, n, id); memory != 64<<20 {
		t.Errorf("the kernel has %d after a restart: a refused update was carried out", memory)
	}
	n.Monitor.Exit(string(id), 0)
	awaitExit(t, n, id)
	try("what has exited", string(id), config.Resources{CPUQuota: 1 << 20}, errkind.BadState)
	mustRemove(t, n, pod)
	mustBeClean(t, n)
}

// TestUpdateContainerCrash: wherever crid dies, what it shows afterwards is what
// the kernel has, and asking again does what was asked.
func TestUpdateContainerCrash(t *testing.T) {
	for _, step := range []string{"container.update.record", "container.update.monitor", "container.update.done"} {
		t.Run(step, func(t *testing.T) {
			n := sandboxtest.New(t)
			pod, id := mustLive(t, n, sandboxtest.Pod("web"), limited())
			n.CrashAt(step)
			change := config.Resources{MemoryLimit: 32 << 20, CPUQuota: 50000}
			if err := n.Manager.UpdateContainer(t.Context(), string(id), change); err == nil || !n.Crashed() {
				t.Fatalf("UpdateContainer = %v, want a crash at %s", err, step)
			}
			n.Restart()
			memory, quota := inKernel(t, n, id)
			if st := status(t, n, id); st.Resources.MemoryLimit != memory || st.Resources.CPUQuota != quota {
				t.Errorf("after a crash at %s resources are %+v, the kernel has %d and %d", step, st.Resources, memory, quota)
			}
			if memory != 32<<20 {
				t.Errorf("after a crash at %s the kernel has %d: the update was not carried out", step, memory)
			}
			if err := n.Manager.UpdateContainer(t.Context(), string(id), change); err != nil {
				t.Errorf("the same again = %v", err)
			}
			mustRemove(t, n, pod)
			mustBeClean(t, n)
		})
	}
}

// TestUpdateContainerMonitorCrash: the monitor dies with the update, and nobody
// knows whether it was carried out.
func TestUpdateContainerMonitorCrash(t *testing.T) {
	n := sandboxtest.New(t)
	pod, id := mustLive(t, n, sandboxtest.Pod("web"), limited())
	n.Monitor.FailAt(monitor.OpUpdate, errkind.Errorf(errkind.Unavailable, "the connection was lost"))
	if err := n.Manager.UpdateContainer(t.Context(), string(id), config.Resources{CPUQuota: 50000}); !errkind.Is(err, errkind.Unavailable) {
		t.Fatalf("UpdateContainer = %v, want unavailable", err)
	}
	n.Monitor.FailAt(monitor.OpUpdate, nil)
	// What comes next knows of it.
	if err := n.Manager.UpdateContainer(t.Context(), string(id), config.Resources{MemoryLimit: 32 << 20}); err != nil {
		t.Fatal(err)
	}
	if memory, quota := inKernel(t, n, id); memory != 32<<20 || quota != 50000 {
		t.Errorf("the kernel has %d and %d, want %d and 50000", memory, quota, 32<<20)
	}
	mustRemove(t, n, pod)
	mustBeClean(t, n)
}

// A refused update does not make crid forget that it never heard what became of
// the one before.
func TestUpdateContainerRefusedAfterLostReply(t *testing.T) {
	n := sandboxtest.New(t)
	pod, id := mustLive(t, n, sandboxtest.Pod("web"), limited())
	n.Monitor.FailAfter(monitor.OpUpdate, errkind.Errorf(errkind.Unavailable, "the connection was lost"))
	if err := n.Manager.UpdateContainer(t.Context(), string(id), config.Resources{CPUQuota: 50000}); !errkind.Is(err, errkind.Unavailable) {
		t.Fatalf("UpdateContainer = %v, want unavailable", err)
	}
	n.Monitor.FailAfter(monitor.OpUpdate, nil)
	const tooLittle = 32 << 20
	n.Monitor.RefuseUpdates(func(r monitor.UpdateRequest) error {
		if strings.Contains(string(r.Resources), fmt.Sprint(tooLittle)) {
			return errkind.Errorf(errkind.BadState, "more is in use")
		}
		return nil
	})
	if err := n.Manager.UpdateContainer(t.Context(), string(id), config.Resources{MemoryLimit: tooLittle}); !errkind.Is(err, errkind.BadState) {
		t.Fatalf("UpdateContainer = %v, want that the monitor refuses it", err)
	}
	memory, quota := inKernel(t, n, id)
	if st := status(t, n, id).Resources; quota != 50000 || st.CPUQuota != quota || st.MemoryLimit != memory {
		t.Errorf("resources are %+v, the kernel has %d and %d, want a quota of 50000 in both", st, memory, quota)
	}
	mustRemove(t, n, pod)
	mustBeClean(t, n)
}

func TestUpdateSandbox(t *testing.T) {
	n := sandboxtest.New(t)
	pod, _ := mustLive(t, n, sandboxtest.Pod("web"), limited())
	sum := &config.Resources{CPUShares: 2048}
	for range 2 { // idempotent
		if err := n.Manager.UpdateSandbox(t.Context(), string(pod), nil, sum); err != nil {
			t.Fatal(err)
		}
	}
	n.Restart()
	st, err := n.Manager.Sandbox(string(pod))
	if err != nil || !reflect.DeepEqual(st.Config.Resources, sum) || st.Config.Overhead != nil {
		t.Errorf("Sandbox = %+v, %v, want resources %+v and no overhead", st.Config, err, sum)
	}
	// A retry of Run is one of the wish as it was.
	if again, err := n.Manager.Run(t.Context(), sandboxtest.Pod("web")); err != nil || again != pod {
		t.Errorf("Run of the same = %s, %v, want %s", again, err, pod)
	}
	if err := n.Manager.StopSandbox(t.Context(), string(pod)); err != nil {
		t.Fatal(err)
	}
	if err := n.Manager.UpdateSandbox(t.Context(), string(pod), sum, nil); err != nil {
		t.Errorf("UpdateSandbox of what is stopped = %v", err)
	}
	mustRemove(t, n, pod)
	if err := n.Manager.UpdateSandbox(t.Context(), string(pod), sum, nil); !errkind.Is(err, errkind.NotFound) {
		t.Errorf("UpdateSandbox of what is gone = %v, want not found", err)
	}
	mustBeClean(t, n)
}
