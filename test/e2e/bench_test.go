package e2e

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The benchmarks are what kubelet waits for, over gRPC, as a client sees it:
//
//	go test ./test/e2e -run '^$' -bench . -crid bin/crid -monitor bin/crid-monitor
//
// With -endpoint they run against another runtime, which must have the image
// and a network, for a comparison on the same machine; -bench-programs then names its
// processes.
var (
	endpointFlag = flag.String("endpoint", "", "benchmark the runtime that serves here (unix:///...) instead of a crid of our own")
	imageFlag    = flag.String("bench-image", BusyboxRef, "image of the benchmarks' containers, with -endpoint: it must be there")
	// Not with every runtime: containerd has versions 5 and the tunnel since 2.0.
	webSocketFlag = flag.Bool("bench-websocket", false, "with -endpoint, measure WebSocket beside SPDY")
	usernsFlag    = flag.Bool("bench-userns", false, "give the benchmarks' pods user namespaces")
	programsFlag  = flag.String("bench-programs", "crid,crid-monitor", "names of the runtime's processes, for their memory and processor time")
)

// benchNode is a node for benchmarks: crid's, or whatever serves at -endpoint.
func benchNode(b *testing.B) *Node {
	b.Helper()
	if *endpointFlag == "" {
		n := NewNode(b, NodeOptions{Config: map[string]string{"log_verbosity": "0"}})
		n.PullBusybox()
		return n
	}
	dir := b.TempDir()
	n := &Node{T: b, Dir: dir, Cgroup: "/crid-bench"}
	conn, err := grpc.NewClient(*endpointFlag, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20))) // kubelet's
	if err != nil {
		b.Fatal(err)
	}
	n.Runtime, n.Images = cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
	n.Registry = NewRegistry(b)
	b.Cleanup(func() {
		n.RemoveAll()
		_ = conn.Close()
	})
	return n
}

func (n *Node) benchPod(i int, hostNetwork bool) *cri.PodSandboxConfig {
	p := n.PodConfig(fmt.Sprintf("bench-%d-%d", os.Getpid(), i))
	if hostNetwork {
		p.Hostname = ""
		p.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	}
	if *usernsFlag {
		usernsPod(p, 1<<18)
	}
	return p
}

func (n *Node) benchContainer(name string, args ...string) *cri.ContainerConfig {
	c := n.ContainerConfig(name, args...)
	c.Image.Image = *imageFlag
	return c
}

func benchmarkSandbox(b *testing.B, hostNetwork bool) {
	n := benchNode(b)
	n.RemovePod(n.RunPod(n.benchPod(-1, hostNetwork)))
	i := 0
	for b.Loop() {
		pod := n.RunPod(n.benchPod(i, hostNetwork))
		b.StopTimer()
		n.RemovePod(pod)
		b.StartTimer()
		i++
	}
}

func BenchmarkRunPodSandboxHostNetwork(b *testing.B) { benchmarkSandbox(b, true) }
func BenchmarkRunPodSandboxCNI(b *testing.B)         { benchmarkSandbox(b, false) }

// BenchmarkContainer times each call in a container's life.
func BenchmarkContainer(b *testing.B) {
	n := benchNode(b)
	p := n.benchPod(0, true)
	pod := n.RunPod(p)
	var create, start, stop, remove time.Duration
	began := time.Now()
	lap := func(d *time.Duration) {
		*d += time.Since(began)
		began = time.Now()
	}
	i := 0
	for b.Loop() {
		c := n.benchContainer(fmt.Sprintf("c%d", i), "sleep", "1000")
		began = time.Now()
		id := n.CreateContainer(pod, p, c)
		lap(&create)
		n.StartContainer(id)
		lap(&start)
		if _, err := n.Runtime.StopContainer(n.Ctx(), &cri.StopContainerRequest{ContainerId: id}); err != nil {
			b.Fatal(err)
		}
		lap(&stop)
		if _, err := n.Runtime.RemoveContainer(n.Ctx(), &cri.RemoveContainerRequest{ContainerId: id}); err != nil {
			b.Fatal(err)
		}
		lap(&remove)
		i++
	}
	for name, d := range map[string]time.Duration{"create": create, "start": start, "stop": stop, "remove": remove} {
		b.ReportMetric(float64(d.Microseconds())/1000/float64(i), name+"-ms")
	}
}

// ofRuntime are the folders in /proc of the runtime's processes.
func (n *Node) ofRuntime() (dirs []string) {
	names := strings.Split(*programsFlag, ",")
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range all {
		cmdline, _ := os.ReadFile(d + "/cmdline")
		arg0, _, _ := strings.Cut(string(cmdline), "\x00")
		if slices.Contains(names, filepath.Base(arg0)) && (*endpointFlag != "" || n.owns(d)) {
			dirs = append(dirs, d)
		}
	}
	return dirs
}

// memory is the private and the proportional bytes of the runtime's processes,
// and how many there are.
func (n *Node) memory() (private, pss, processes int) {
	for _, d := range n.ofRuntime() {
		rollup, err := os.ReadFile(d + "/smaps_rollup")
		if err != nil {
			continue
		}
		processes++
		for line := range strings.Lines(string(rollup)) {
			var kib int
			key, rest, _ := strings.Cut(line, ":")
			_, _ = fmt.Sscan(rest, &kib)
			switch key {
			case "Private_Clean", "Private_Dirty":
				private += kib
			case "Pss":
				pss += kib
			}
		}
	}
	return private, pss, processes
}

// cpuUsed is the processor time of the runtime's processes and of those that they have
// waited for: programs that the runtime runs, and containers and execs that have
// ended meanwhile.
func (n *Node) cpuUsed() (used time.Duration) {
	for _, d := range n.ofRuntime() {
		stat, _ := os.ReadFile(d + "/stat")
		_, rest, _ := strings.Cut(string(stat), ") ")
		fields := strings.Fields(rest)
		if len(fields) < 15 {
			continue // has ended
		}
		for _, f := range fields[11:15] { // utime, stime, cutime, cstime
			ticks, _ := strconv.Atoi(f)
			used += time.Duration(ticks) * 10 * time.Millisecond
		}
	}
	return used
}

// owns reports whether the process is of this node.
func (n *Node) owns(dir string) bool {
	pid := filepath.Base(dir)
	return pid == itoa(n.daemonPID()) || pid == itoa(n.MonitorPID())
}

// settled is memory when a burst of work is over: runtimes written in Go keep its
// garbage for a while.
func (n *Node) settled() (private, pss, processes int) {
	<-time.After(5 * time.Second)
	return n.memory()
}

// BenchmarkSixtyPods is a node that comes up: 60 pods with a container each, 8 at a time.
// The memory of a pod is what another one costs: the node has run one before, and has come
// to rest.
func BenchmarkSixtyPods(b *testing.B) {
	n := benchNode(b)
	first := n.benchPod(-1, false)
	pod := n.RunPod(first)
	n.Run(pod, first, n.benchContainer("main", "sleep", "1000"))
	n.RemovePod(pod)
	const pods, atOnce = 60, 8
	for b.Loop() {
		before, pss, _ := n.settled()
		began := time.Now()
		var wg sync.WaitGroup
		next := make(chan int)
		for range atOnce {
			wg.Go(func() {
				for i := range next {
					p := n.benchPod(i, false)
					n.Run(n.RunPod(p), p, n.benchContainer("main", "sleep", "1000"))
				}
			})
		}
		for i := range pods {
			next <- i
		}
		close(next)
		wg.Wait()
		b.ReportMetric(time.Since(began).Seconds(), "up-s")
		atOnceAfter, _, _ := n.memory()
		after, _, processes := n.settled()
		b.ReportMetric(float64(atOnceAfter-before)/pods, "at-once-private-KiB/pod")
		b.ReportMetric(float64(after-before)/pods, "private-KiB/pod")
		b.ReportMetric(float64(pss)/1024, "idle-PSS-MiB")
		b.ReportMetric(float64(processes), "processes")
		began = time.Now()
		n.RemoveAll()
		b.ReportMetric(time.Since(began).Seconds(), "down-s")
	}
}
