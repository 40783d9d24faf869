package e2e

import (
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

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
			var moved int64
			for b.Loop() {
				moved += move(b, transport)
			}
			b.ReportMetric(float64(moved)/(1<<20)/b.Elapsed().Seconds(), "MiB/s")
		})
	}
}

// BenchmarkExecSyncLatency is what an exec probe waits for.
func BenchmarkExecSyncLatency(b *testing.B) {
	n := benchNode(b)
	p := n.benchPod(0, true)
	id := n.Run(n.RunPod(p), p, n.benchContainer("main", "sleep", "1000"))
	var all []time.Duration
	for b.Loop() {
		began := time.Now()
		n.Exec(id, "true")
		all = append(all, time.Since(began))
	}
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, "p99-ms")
}

// BenchmarkExecStream is 1 GiB out of an exec.
func BenchmarkExecStream(b *testing.B) {
	n := benchNode(b)
	p := n.benchPod(0, true)
	id := n.Run(n.RunPod(p), p, n.benchContainer("main", "sleep", "1000"))
	perTransport(b, func(b *testing.B, transport string) int64 {
		var out meter
		o := remotecommand.StreamOptions{Stdout: &out}
		url := n.ExecURL(id, o, "sh", "-c", "dd if=/dev/zero bs=64k count=16384 2>/dev/null")
		if err := Executor(b, transport, url).StreamWithContext(n.Ctx(), o); err != nil || out.n != gib {
			b.Fatalf("%d bytes, %v", out.n, err)
		}
		return out.n
	})
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
		if _, err := n.Runtime.RemoveContainer(n.Ctx(), &cri.RemoveContainerRequest{ContainerId: id}); err != nil {
			b.Fatal(err)
		}
		return out.n
	})
}

// BenchmarkPortForward is 1 GiB to a pod, and 1 GiB from it.
func BenchmarkPortForward(b *testing.B) {
	n := benchNode(b)
	if *endpointFlag != "" {
		b.Skip("the server would have to be within the other runtime's pod")
	}
	p := n.benchPod(0, false)
	pod := n.RunPod(p)
	sink := n.ListenInPod(pod, "127.0.0.1:0")
	serveEach(sink, func(c *net.TCPConn) {
		got, _ := io.Copy(io.Discard, c)
		if got == gib {
			_, _ = c.Write([]byte("all"))
		}
	})
	source := n.ListenInPod(pod, "127.0.0.1:0")
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
				if text, err := io.ReadAll(data); err != nil || string(text) != "all" {
					b.Fatalf("the pod says %q, %v", text, err)
				}
				return gib
			})
		})
	}
}
