package sandbox_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/sandbox"
	"github.com/cridproject/crid/sandbox/config"
	"github.com/cridproject/crid/sandbox/sandboxtest"
)

func known(n uint64) sandbox.Value { return sandbox.Value{N: n, Known: true} }

// clock is a time that tests move.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// figuresNode is a node on which time does not pass by itself.
func figuresNode(t *testing.T, tweak ...func(*sandbox.Options)) (*sandboxtest.Node, *clock) {
	c := &clock{at: time.Unix(1000, 0)}
	return sandboxtest.New(t, append(tweak, func(o *sandbox.Options) { o.Now = c.now })...), c
}

// runs starts a container in pod that has used n of everything, and returns its
// ID and cgroup.
func runs(t *testing.T, node *sandboxtest.Node, pod config.SandboxID, parent, name string, n uint64) (config.ContainerID, string) {
	t.Helper()
	id, err := node.Manager.Create(t.Context(), string(pod), sandboxtest.Container(name))
	if err != nil {
		t.Fatal(err)
	}
	if err := node.Manager.Start(t.Context(), string(id)); err != nil {
		t.Fatal(err)
	}
	cgroup := filepath.Join(parent, "crid-"+string(id))
	node.Figures.Set(cgroup, uses(n))
	return id, cgroup
}

func uses(n uint64) sandbox.Details {
	return sandbox.Details{Usage: sandbox.Usage{
		CPUNanoseconds: known(n), MemoryBytes: known(n), WorkingSetBytes: known(n), RSSBytes: known(n), PageFaults: known(n),
		MajorPageFaults: known(n), SwapBytes: known(n), Tasks: known(n), MemoryLimitBytes: known(10 * n), CPUPressure: sandbox.Pressure{Known: true},
	}}
}

func all[T any](T) bool { return true }

func TestContainerStats(t *testing.T) {
	n, clock := figuresNode(t)
	pod, err := n.Manager.Run(t.Context(), sandboxtest.Pod("pod"))
	if err != nil {
		t.Fatal(err)
	}
	id, cgroup := runs(t, n, pod, "/crid", "main", 5)
	created, err := n.Manager.Create(t.Context(), string(pod), sandboxtest.Container("created"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := n.Manager.ContainerStats(string(id[:9]))
	if err != nil || got.Status.ID != id || got.Usage != uses(5).Usage || !got.At.Equal(clock.now()) || got.CPUNanocores.Known || got.Written.UsedBytes != 4096 {
		t.Errorf("ContainerStats = %+v, %v", got, err)
	}
	clock.add(2 * time.Second)
	n.Figures.Set(cgroup, uses(1005))
	if got, err := n.Manager.ContainerStats(string(id)); err != nil || got.CPUNanocores != known(500) {
		t.Errorf("rate = %v, %v, want 1000 in two seconds", got.CPUNanocores, err)
	}
	if got, err := n.Manager.ContainerStats(string(created)); err != nil || !got.At.IsZero() || got.Written.Mountpoint == "" {
		t.Errorf("ContainerStats of one that does not run = %+v, %v, want what it has written", got, err)
	}
	if _, err := n.Manager.ContainerStats("none"); !errkind.Is(err, errkind.NotFound) {
		t.Errorf("ContainerStats of none = %v, want NotFound", err)
	}
	if got := slices.Collect(n.Manager.AllContainerStats(all)); len(got) != 1 || got[0].Status.ID != id {
		t.Errorf("AllContainerStats = %+v, want the running one", got)
	}
	if got := slices.Collect(n.Manager.AllContainerStats(func(st *sandbox.ContainerStatus) bool { return st.ID != id })); len(got) > 0 {
		t.Errorf("AllContainerStats of others = %+v", got)
	}
	// The cgroup goes before crid hears of the exit.
	n.Figures.Unset(cgroup)
	clock.add(time.Second)
	if got := slices.Collect(n.Manager.AllContainerStats(all)); len(got) > 0 {
		t.Errorf("AllContainerStats when the cgroup has gone = %+v", got)
	}
	if got, err := n.Manager.ContainerStats(string(id)); err != nil || !got.At.IsZero() {
		t.Errorf("ContainerStats when the cgroup has gone = %+v, %v", got, err)
	}
	if got := slices.Collect(n.Manager.AllSandboxStats(all)); len(got) != 1 || len(got[0].Containers) > 0 {
		t.Errorf("AllSandboxStats when the container's cgroup has gone = %+v, want the pod without it", got)
	}
	if got := slices.Collect(n.Manager.AllMetrics()); len(got) != 1 || len(got[0].Containers) > 0 {
		t.Errorf("AllMetrics when the container's cgroup has gone = %+v, want the pod without it", got)
	}
}

// A pod's figures are those of its own cgroup if it has one, else the sum.
func TestSandboxStats(t *testing.T) {
	uid := "8a32e1d4-0000-4000-8000-000000000001"
	for _, tc := range []struct {
		name, parent string
		systemd      bool
		containers   string // where their cgroups are
		pod          string // the cgroup that is the pod's own
	}{
		{"cgroupfs, kubelet's", "/kubepods/burstable/pod" + uid, false, "/kubepods/burstable/pod" + uid, "/kubepods/burstable/pod" + uid},
		{
			"systemd, kubelet's", "/kubepods.slice/kubepods-pod8a32e1d4_0000_4000_8000_000000000001.slice", true,
			"/kubepods.slice/kubepods-pod8a32e1d4_0000_4000_8000_000000000001.slice", "/kubepods.slice/kubepods-pod8a32e1d4_0000_4000_8000_000000000001.slice",
		},
		{"everybody's", "/system", false, "/system", ""},
		{"none", "", false, "/crid", ""},
		{"systemd, none", "", true, "/crid.slice", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, clock := figuresNode(t, func(o *sandbox.Options) { o.SystemdCgroup = tc.systemd })
			w := sandboxtest.Pod("pod")
			w.UID, w.CgroupParent = uid, tc.parent
			pod, err := n.Manager.Run(t.Context(), w)
			if err != nil {
				t.Fatal(err)
			}
			n.Figures.Set(tc.containers, uses(100))
			for _, use := range []uint64{1, 2} {
				id, cgroup := runs(t, n, pod, tc.containers, fmt.Sprint("c", use), use)
				if tc.systemd {
					n.Figures.Unset(cgroup)
					n.Figures.Set(cgroup+".scope", uses(use))
				}
				_ = id
			}
			st, err := n.Manager.Sandbox(string(pod))
			if err != nil {
				t.Fatal(err)
			}
			n.Figures.SetInterfaces(st.NetNS, sandbox.NetInterface{Name: "lo", RxBytes: 1},
				sandbox.NetInterface{Name: "net1", RxBytes: 2}, sandbox.NetInterface{Name: "eth0", RxBytes: 3, TxErrors: 4})
			want := sandbox.Usage{
				CPUNanoseconds: known(3), MemoryBytes: known(3), WorkingSetBytes: known(3), RSSBytes: known(3), PageFaults: known(3),
				MajorPageFaults: known(3), SwapBytes: known(3), Tasks: known(3),
			}
			if tc.pod != "" {
				want = uses(100).Usage
			}
			got, err := n.Manager.SandboxStats(string(pod))
			if err != nil || got.Usage != want || len(got.Containers) != 2 || !got.At.Equal(clock.now()) {
				t.Errorf("SandboxStats =\n%+v, %v\nwant %+v of two containers", got, err, want)
			}
			if net := got.Network; net == nil || net.Default == nil || net.Default.RxBytes != 3 || len(net.Others) != 1 || net.Others[0].Name != "net1" {
				t.Errorf("network = %+v, want eth0 and net1", net)
			}
			clock.add(time.Second)
			for got := range n.Manager.AllSandboxStats(all) {
				if got.CPUNanocores != known(0) || got.Network == nil || len(got.Containers) != 2 {
					t.Errorf("AllSandboxStats has %+v, want a rate of 0", got)
				}
			}
			for got := range n.Manager.AllMetrics() {
				if got.Cgroup != tc.pod || len(got.Containers) != 2 || got.Network == nil {
					t.Errorf("AllMetrics has %+v", got)
				}
			}
		})
	}
}

// Who asks soon after another gets the same figures, with the time at which they were
// read, unless limits have been changed, or more is asked for, or there is no rate yet.
func TestStatsOfTheSameSecond(t *testing.T) {
	n, clock := figuresNode(t)
	pod, err := n.Manager.Run(t.Context(), sandboxtest.Pod("pod"))
	if err != nil {
		t.Fatal(err)
	}
	id, cgroup := runs(t, n, pod, "/crid", "main", 1)
	st, err := n.Manager.Sandbox(string(pod))
	if err != nil {
		t.Fatal(err)
	}
	n.Figures.SetInterfaces(st.NetNS, sandbox.NetInterface{Name: "eth0", RxBytes: 1})
	read := clock.now()
	check := func(what string, use uint64, at time.Time) {
		t.Helper()
		one, err := n.Manager.ContainerStats(string(id))
		if err != nil || one.Usage.MemoryBytes != known(use) || !one.At.Equal(at) {
			t.Errorf("%s: ContainerStats = %v at %v, %v, want %d at %v", what, one.Usage.MemoryBytes, one.At, err, use, at)
		}
		for all := range n.Manager.AllSandboxStats(all[*sandbox.SandboxStatus]) {
			got, network := all.Containers[0], all.Network
			if got.Usage.MemoryBytes != known(use) || !got.At.Equal(at) || network.Default.RxBytes != use || !network.At.Equal(at) {
				t.Errorf("%s: AllSandboxStats has %v at %v and %v at %v, want %d at %v", what,
					got.Usage.MemoryBytes, got.At, network.Default.RxBytes, network.At, use, at)
			}
		}
	}
	use := func(amount uint64) {
		n.Figures.Set(cgroup, uses(amount))
		n.Figures.SetInterfaces(st.NetNS, sandbox.NetInterface{Name: "eth0", RxBytes: amount})
	}
	check("first", 1, read)
	clock.add(time.Second)
	read = clock.now()
	check("when there is a rate", 1, read)
	use(2)
	clock.add(999 * time.Millisecond)
	check("in the same second", 1, read)
	clock.add(time.Millisecond)
	check("a second later", 2, clock.now())
	use(3)
	if err := n.Manager.UpdateContainer(t.Context(), string(id), config.Resources{MemoryLimit: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	check("after an update", 3, clock.now())
	use(4)
	clock.add(-time.Hour)
	check("when the clock was set back", 4, clock.now())
}

// Sandboxes that are not ready have no figures and are in no list, but are no error.
func TestSandboxStatsOfStopped(t *testing.T) {
	n, _ := figuresNode(t)
	w := sandboxtest.Pod("pod")
	pod, err := n.Manager.Run(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	runs(t, n, pod, "/crid", "main", 1)
	if got := slices.Collect(n.Manager.AllSandboxStats(func(*sandbox.SandboxStatus) bool { return false })); len(got) > 0 {
		t.Errorf("AllSandboxStats of none = %+v", got)
	}
	if err := n.Manager.StopSandbox(t.Context(), string(pod)); err != nil {
		t.Fatal(err)
	}
	if got, err := n.Manager.SandboxStats(string(pod)); err != nil || !got.At.IsZero() || got.Network != nil || len(got.Containers) > 0 {
		t.Errorf("SandboxStats of a stopped one = %+v, %v", got, err)
	}
	if got := slices.Collect(n.Manager.AllSandboxStats(all)); len(got) > 0 {
		t.Errorf("AllSandboxStats = %+v, want none", got)
	}
	if got := slices.Collect(n.Manager.AllMetrics()); len(got) > 0 {
		t.Errorf("AllMetrics = %+v, want none", got)
	}
	if _, err := n.Manager.SandboxStats("none"); !errkind.Is(err, errkind.NotFound) {
		t.Errorf("SandboxStats of none = %v, want NotFound", err)
	}
}

// Figures ask neither the monitor nor the network's plugins, and a list that is
// left halfway leaves nothing behind.
func TestStatsWaitForNobody(t *testing.T) {
	n, clock := figuresNode(t)
	const pods = 150
	for i := range pods {
		pod, err := n.Manager.Run(t.Context(), sandboxtest.Pod(fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		runs(t, n, pod, "/crid", "main", 1)
	}
	n.Monitor.Disconnect()
	seen := make(map[config.SandboxID]bool)
	for s := range n.Manager.AllSandboxStats(all) {
		seen[s.Status.ID] = true
	}
	if len(seen) != pods {
		t.Errorf("AllSandboxStats has %d pods, want %d, each once", len(seen), pods)
	}
	for what, first := range map[string]func(){
		"sandbox stats": func() {
			for range n.Manager.AllSandboxStats(all) {
				break
			}
		},
		"container stats": func() {
			for range n.Manager.AllContainerStats(all) {
				break
			}
		},
		"metrics": func() {
			for range n.Manager.AllMetrics() {
				break
			}
		},
	} {
		clock.add(2 * time.Second) // what was read is old
		n.Figures.Asked()
		first()
		if got := len(n.Figures.Asked()); got == 0 || got >= pods {
			t.Errorf("the first of the %s has cost a look at %d cgroups: they are not handed on in groups", what, got)
		}
	}
}
