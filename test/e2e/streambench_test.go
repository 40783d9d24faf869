package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"k8s.io/client-go/tools/remotecommand"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// gib is what each benchmark of throughput moves.
const gib = 1 << 30

// meter counts what is thrown away.
type meter struct{ n int64 }

func (m *meter) Write(p []byte) (int, error) {
	m.n += int64(len(p))
	return len(p), nil
}

type endlessZeros struct{}

func (endlessZeros) Read(p []byte) (int, error) { return len(p), nil }

// perTransport runs b for each transport, and reports MiB/s of what it moves.
func perTransport(b *testing.B, move func(b *testing.B, transport string) int64) {
	for _, transport := range Transports {
		b.Run(transport, func(b *testing.B) {
			if *endpointFlag != "" && transport == "WebSocket" && !*webSocketFlag {
				b.Skip("with -bench-websocket only: not all runtimes speak it")
			}
			var moved int64
			for b.Loop() {
				moved += move(b, transport)
			}
			b.ReportMetric(float64(moved)/(1<<20)/b.Elapsed().Seconds(), "MiB/s")
		})
	}
}

// BenchmarkLog is the throughput of a container's stdout into its log, and what it
// costs the runtime. The container lives on, so that its own time is not in that.
func BenchmarkLog(b *testing.B) {
	n := benchNode(b)
	p := n.benchPod(0, true)
	pod := n.RunPod(p)
	const mib = 512
	var cpu time.Duration
	i := 0
	for b.Loop() {
		b.StopTimer()
		// Lines of 100 bytes, made once, then poured out.
		c := n.benchContainer(fmt.Sprintf("log%d", i), "sh", "-c", "yes "+strings.Repeat("x", 99)+
			" | head -c 8388600 >/tmp/f; touch /tmp/ready; until [ -e /tmp/go ]; do usleep 1000; done; for i in $(seq 64); do cat /tmp/f; done; echo end; sleep 1000")
		id := n.Run(pod, p, c)
		n.Exec(id, "sh", "-c", "until [ -e /tmp/ready ]; do usleep 1000; done")
		before := n.cpuUsed()
		b.StartTimer()
		n.Exec(id, "touch", "/tmp/go")
		path := filepath.Join(p.LogDirectory, c.LogPath)
		n.Eventually("the log is written", func() bool { return strings.HasSuffix(endOf(b, path), " stdout F end\n") })
		b.StopTimer()
		cpu += n.cpuUsed() - before
		n.removeContainer(id)
		if err := os.Remove(path); err != nil {
			b.Error(err)
		}
		i++
		b.StartTimer()
	}
	b.ReportMetric(float64(mib*i)/b.Elapsed().Seconds(), "MiB/s")
	b.ReportMetric(float64(cpu.Milliseconds())/float64(mib*i), "cpu-ms/MiB")
}

// endOf is the end of a file.
func endOf(b *testing.B, path string) string {
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		b.Fatal(err)
	}
	end := make([]byte, min(100, st.Size()))
	count, _ := f.ReadAt(end, st.Size()-int64(len(end)))
	return string(end[:count])
}

func (n *Node) removeContainer(id string) {
	n.T.Helper()
	if _, err := n.Runtime.RemoveContainer(n.Ctx(), &cri.RemoveContainerRequest{ContainerId: id}); err != nil {
		n.T.Fatal(err)
	}
}

// BenchmarkExecSync is what an exec probe waits for, and costs.
func BenchmarkExecSync(b *testing.B) {
	n := benchNode(b)
	p := n.benchPod(0, true)
	id := n.Run(n.RunPod(p), p, n.benchContainer("main", "sleep", "1000"))
	var all []time.Duration
	before := n.cpuUsed()
	for b.Loop() {
		began := time.Now()
		n.Exec(id, "true")
		all = append(all, time.Since(began))
	}
	b.ReportMetric(float64((n.cpuUsed()-before).Microseconds())/1000/float64(len(all)), "cpu-ms/op")
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, "p99-ms")
}

// BenchmarkExecStream is what an exec writes, in large pieces and in small ones.
func BenchmarkExecStream(b *testing.B) {
	n := benchNode(b)
	p := n.benchPod(0, true)
	id := n.Run(n.RunPod(p), p, n.benchContainer("main", "sleep", "1000"))
	for _, piece := range []int{64 << 10, 1 << 10} {
		b.Run(fmt.Sprintf("%dKiB", piece>>10), func(b *testing.B) {
			perTransport(b, func(b *testing.B, transport string) int64 {
				count := min(gib/piece, 1<<18)
				var out meter
				o := remotecommand.StreamOptions{Stdout: &out}
				url := n.ExecURL(id, o, "dd", "if=/dev/zero", fmt.Sprintf("bs=%d", piece), fmt.Sprintf("count=%d", count))
				if err := Executor(b, transport, url).StreamWithContext(n.Ctx(), o); err != nil || out.n != int64(count*piece) {
					b.Fatalf("%d bytes, %v", out.n, err)
				}
				return out.n
			})
		})
	}
}

// BenchmarkAttach is 1 GiB out of a container without a log to an attached client.
func BenchmarkAttach(b *testing.B) {
	n := benchNode(b)
	p := n.benchPod(0, true)
	p.LogDirectory = ""
	pod := n.RunPod(p)
	perTransport(b, func(b *testing.B, transport string) int64 {
		c := n.benchContainer("attach", "sh", "-c", "read go; dd if=/dev/zero bs=64k count=16384 2>/dev/null")
		c.Stdin, c.StdinOnce, c.LogPath = true, true, ""
		id := n.Run(pod, p, c)
		var out meter
		o := remotecommand.StreamOptions{Stdin: strings.NewReader("go\n"), Stdout: &out}
		if err := Executor(b, transport, n.AttachURL(id, o)).StreamWithContext(n.Ctx(), o); err != nil || out.n != gib {
			b.Fatalf("%d bytes, %v", out.n, err)
		}
		n.removeContainer(id)
		return out.n
	})
}

// BenchmarkPortForward is 1 GiB to a pod, and 1 GiB from it.
func BenchmarkPortForward(b *testing.B) {
	n := benchNode(b)
	p := n.benchPod(0, false)
	pod := n.RunPod(p)
	netns := n.path("netns", "crid-"+pod)
	if *endpointFlag != "" {
		netns = n.netnsOf(pod)
	}
	sink := n.listenIn(netns, "127.0.0.1:0")
	heard := make(chan int64, 1)
	serveEach(sink, func(c *net.TCPConn) {
		got, _ := io.Copy(io.Discard, c)
		heard <- got
	})
	source := n.listenIn(netns, "127.0.0.1:0")
	serveEach(source, func(c *net.TCPConn) { _, _ = io.Copy(c, io.LimitReader(endlessZeros{}, gib)) })
	for _, way := range []string{"to", "from"} {
		b.Run(way, func(b *testing.B) {
			perTransport(b, func(b *testing.B, transport string) int64 {
				conn, _, err := Dialer(b, transport, n.PortForwardURL(pod)).Dial("portforward.k8s.io")
				if err != nil {
					b.Fatal(err)
				}
				defer conn.Close()
				if way == "from" {
					data, _ := Forward(b, conn, "1", portOf(source))
					if got, err := io.Copy(io.Discard, data); err != nil || got != gib {
						b.Fatalf("%d bytes, %v", got, err)
					}
					return gib
				}
				data, _ := Forward(b, conn, "1", portOf(sink))
				if _, err := io.Copy(data, io.LimitReader(endlessZeros{}, gib)); err != nil {
					b.Fatal(err)
				}
				_ = data.Close()
				if got := <-heard; got != gib {
					b.Fatalf("the pod got %d bytes", got)
				}
				return gib
			})
		})
	}
}

// netnsOf is where another runtime has pinned a pod's network namespace, by the spec
// of its pause container.
func (n *Node) netnsOf(pod string) string {
	n.T.Helper()
	r, err := n.Runtime.PodSandboxStatus(n.Ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: pod, Verbose: true})
	if err != nil {
		n.T.Fatal(err)
	}
	var info struct{ RuntimeSpec specs.Spec }
	if err := json.Unmarshal([]byte(r.Info["info"]), &info); err != nil {
		n.T.Fatal(err)
	}
	for _, ns := range info.RuntimeSpec.Linux.Namespaces {
		if ns.Type == specs.NetworkNamespace {
			return ns.Path
		}
	}
	n.T.Fatalf("the status of pod %s names no network namespace", pod)
	return ""
}
