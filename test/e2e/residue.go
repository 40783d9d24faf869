package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// machine is what a node can leave behind outside its own folder.
type machine struct {
	links  []string
	mounts []string
}

func (n *Node) snapshot() machine {
	var m machine
	links, err := net.Interfaces()
	if err != nil {
		n.T.Fatal(err)
	}
	for _, l := range links {
		m.links = append(m.links, l.Name)
	}
	m.mounts = n.mounts()
	return m
}

// mounts are the mount points that this node made: below its folder.
func (n *Node) mounts() []string {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		n.T.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], n.Dir+"/") {
			found = append(found, f[4])
		}
	}
	return found
}

type process struct {
	pid, ppid int
	cmdline   string
}

// processes are those whose command line or cgroup names this node.
func (n *Node) processes() []process {
	var found []process
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(d))
		cmdline, _ := os.ReadFile(d + "/cmdline")
		cgroup, _ := os.ReadFile(d + "/cgroup")
		stat, err := os.ReadFile(d + "/stat")
		if err != nil || pid == os.Getpid() {
			continue
		}
		if !bytes.Contains(cmdline, []byte(n.Dir+"/")) && !bytes.Contains(cgroup, []byte(strings.TrimPrefix(n.Cgroup, "/"))) {
			continue
		}
		// pid (comm) state ppid: comm may hold anything but ends at the last ')'.
		f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		ppid, _ := strconv.Atoi(f[1])
		found = append(found, process{pid, ppid, strings.TrimSpace(string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))})
	}
	return found
}

// cgroups are the node's cgroup folders in every hierarchy.
func (n *Node) cgroups() []string {
	var found []string
	_ = filepath.WalkDir("/sys/fs/cgroup", func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(p, strings.TrimPrefix(n.Cgroup, "/")) {
			found = append(found, p)
		}
		return nil
	})
	return found
}

// scopes are systemd's units of this node's containers, whatever state they are in.
func (n *Node) scopes() []string {
	if n.Programs.CgroupDriver != "systemd" {
		return nil
	}
	out, err := exec.Command("systemctl", "show", "--property=Id,Slice", "crid-*.scope").Output()
	if err != nil {
		n.T.Fatalf("systemctl show: %v", err)
	}
	var found []string
	for unit := range strings.SplitSeq(string(out), "\n\n") {
		// A slice in the node's slice begins with its name.
		if strings.Contains(unit, "Slice="+strings.TrimSuffix(n.Cgroup, ".slice")) {
			found = append(found, strings.Join(strings.Fields(unit), " "))
		}
	}
	return found
}

// left is what a node without pods must not have: namespaces, mounts of pods,
// cgroups of containers, links, records, overlay folders, processes.
func (n *Node) left(before machine) []string {
	var left []string
	now := n.snapshot()
	for _, l := range now.links {
		if l != n.Bridge && !slices.Contains(before.links, l) && (strings.HasPrefix(l, "veth") || strings.HasPrefix(l, "ce")) {
			if n.ownLink(l) {
				left = append(left, "link "+l)
			}
		}
	}
	for _, m := range now.mounts {
		// Shared mounts over the folders of the namespaces and of the sandboxes'
		// files, and the monitor's private one over its root file systems, are
		// one each for the node.
		if m != n.path("netns") && m != n.path("state", "sandboxes") && m != n.path("state", "monitor", "rootfs") {
			left = append(left, "mount "+m)
		}
	}
	for _, c := range n.cgroups() {
		if strings.HasPrefix(filepath.Base(c), "crid-") && strings.Contains(c, "/crid-e2e-") && filepath.Base(c) != strings.TrimPrefix(n.Cgroup, "/") {
			left = append(left, "cgroup "+c)
		}
	}
	for _, s := range n.scopes() {
		left = append(left, "unit "+s)
	}
	for _, dir := range []string{
		"netns", "root/sandboxes", "root/containers", "root/rootfs", "root/trash",
		"state/sandboxes", "state/monitor/runc", "state/monitor/rootfs", "state/monitor/journal",
	} {
		entries, err := os.ReadDir(n.path(dir))
		if err != nil && !os.IsNotExist(err) {
			n.T.Error(err)
		}
		for _, e := range entries {
			left = append(left, "file "+filepath.Join(dir, e.Name()))
		}
	}
	if ips, _ := filepath.Glob(n.path("ipam", n.Bridge, "*.*.*.*")); len(ips) > 0 {
		left = append(left, fmt.Sprintf("addresses %v", ips))
	}
	for _, p := range n.processes() {
		if p.pid != n.daemonPID() && p.pid != n.MonitorPID() {
			left = append(left, fmt.Sprintf("process %d %s", p.pid, p.cmdline))
		}
	}
	return left
}

// ownLink reports whether the link hangs on this node's bridge.
func (n *Node) ownLink(l string) bool {
	master, err := os.Readlink("/sys/class/net/" + l + "/master")
	return err == nil && filepath.Base(master) == n.Bridge
}

func (n *Node) daemonPID() int {
	if n.daemon == nil {
		return 0
	}
	return n.PID()
}

// Figures are counts of what the two processes hold.
type Figures struct {
	CridFDs, CridGoroutines, MonitorFDs, MonitorGoroutines int
}

// Figures reads them from /proc and from crid's verbose status.
func (n *Node) Figures() Figures {
	n.T.Helper()
	var f Figures
	var info statusInfo
	n.Eventually("crid has a monitor", func() bool {
		info = n.statusInfo()
		return info.Monitor.PID != 0
	})
	f.CridGoroutines = info.Goroutines
	f.MonitorGoroutines = info.Monitor.Goroutines
	f.CridFDs = n.fds(n.PID())
	f.MonitorFDs = n.fds(info.Monitor.PID)
	return f
}

type statusInfo struct {
	Goroutines int
	Monitor    struct {
		PID, Goroutines int
		LogDropped      uint64
	}
}

func (n *Node) statusInfo() statusInfo {
	n.T.Helper()
	r, err := n.Runtime.Status(n.Ctx(), &cri.StatusRequest{Verbose: true})
	if err != nil {
		n.T.Fatalf("Status = %v", err)
	}
	var s statusInfo
	for key, into := range map[string]any{"goroutines": &s.Goroutines, "monitor": &s.Monitor} {
		if err := json.Unmarshal([]byte(r.Info[key]), into); err != nil {
			n.T.Fatalf("verbose status, %s: %v in %q", key, err, r.Info)
		}
	}
	return s
}

// MonitorPID is the monitor's process ID, 0 when crid is down and it is not known.
func (n *Node) MonitorPID() int {
	if n.daemon != nil && n.Alive() {
		if pid := n.statusInfo().Monitor.PID; pid != 0 {
			n.monitor = pid
		}
	}
	return n.monitor
}

func (n *Node) fds(pid int) int {
	e, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		n.T.Fatal(err)
	}
	return len(e)
}

// NothingLeft removes all pods and fails the test if a pod left something:
// on the machine, in crid's folders, or as descriptors and goroutines of the
// two processes above what they were when the node was new.
func (n *Node) NothingLeft(before machine) {
	n.T.Helper()
	n.RemoveAll()
	var left []string
	n.settle(func() bool {
		left = n.left(before)
		if now := n.Figures(); now.exceeds(n.fresh) {
			left = append(left, fmt.Sprintf("descriptors or goroutines: %+v, was %+v", now, n.fresh))
		}
		return len(left) == 0
	})
	for _, l := range left {
		n.T.Errorf("left behind: %s", l)
	}
}

// exceeds allows for what Go and gRPC keep once they have been used: a poller,
// an idle thread's descriptors. A leak per pod or per exec is beyond it in the
// tests that repeat (leak_test.go), and here when it is more than a few.
func (f Figures) exceeds(was Figures) bool {
	const slack = 4
	return f.CridFDs > was.CridFDs+slack || f.MonitorFDs > was.MonitorFDs+slack ||
		f.CridGoroutines > was.CridGoroutines+slack || f.MonitorGoroutines > was.MonitorGoroutines+slack
}

// settle polls until ok or ten seconds have passed: removal in the background is allowed that.
func (n *Node) settle(ok func() bool) {
	for end := time.Now().Add(10 * time.Second); !ok() && time.Now().Before(end); {
		time.Sleep(50 * time.Millisecond) //nolint:forbidigo // polls the machine
	}
}

// ended reports whether a process is gone, or waits only for its parent to look.
func ended(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || bytes.Contains(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" Z "))
}

// noRaces fails the test for what the race detector has found in the two programs,
// which go on after it has said so.
func (n *Node) noRaces() {
	for _, log := range []string{n.path("crid.log"), n.path("state", "monitor.log")} {
		b, err := os.ReadFile(log)
		if err != nil {
			continue // this one has not run
		}
		if i := bytes.Index(b, []byte("WARNING: DATA RACE")); i >= 0 {
			n.T.Errorf("%s: %s", log, b[i:min(len(b), i+6000)])
		}
	}
}

// close ends the node: pods, daemon, monitor, bridge, folder; and tells what was left.
func (n *Node) close(before machine) {
	if n.daemon != nil && !n.Alive() {
		n.T.Errorf("crid has ended by itself:\n%s", tail(n.Log()))
		n.daemon = nil
	}
	if n.daemon == nil {
		n.Start() // so that it can be asked to clean up
	}
	n.NothingLeft(before)
	monitor := n.MonitorPID()
	n.Stop()
	if monitor > 0 {
		_ = syscall.Kill(monitor, syscall.SIGTERM)
		n.settle(func() bool { return ended(monitor) })
	}
	for _, p := range n.processes() {
		n.T.Errorf("left behind: process %d %s", p.pid, p.cmdline)
		_ = syscall.Kill(p.pid, syscall.SIGKILL)
	}
	n.deleteLink()
	n.deleteMounts()
	n.deleteCgroups()
	n.noRaces()
	if n.T.Failed() {
		n.T.Logf("crid's log ends:\n%s", tail(n.Log()))
		if b, err := os.ReadFile(n.path("state", "monitor.log")); err == nil {
			n.T.Logf("the monitor's log ends:\n%s", tail(string(b)))
		}
		if keep {
			n.T.Logf("kept %s", n.Dir)
			return
		}
	}
	if err := os.RemoveAll(n.Dir); err != nil {
		n.T.Error(err)
	}
}
