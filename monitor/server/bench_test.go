package server

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"
)

// benchNode has a monitor of its own process: CRID_TEST_BINARY if set.
func benchNode(b *testing.B) *node {
	n := prepareNode(b)
	cmd := n.startMonitor()
	n.client = n.connect()
	b.Cleanup(func() {
		n.client.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return n
}

// cpu reports the processor time of an operation, the monitor's and what it has
// waited for, which is comparable on a busy machine too.
func (n *node) cpu(b *testing.B) func() {
	used := func() (us float64) {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.client.Peer().PID))
		if err != nil {
			b.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(raw), ") ")
		for _, f := range strings.Fields(rest)[11:15] {
			ticks, _ := strconv.Atoi(f)
			us += float64(ticks) * 10000
		}
		return us
	}
	before := used()
	return func() { b.ReportMetric((used()-before)/float64(b.N), "cpu-us/op") }
}

// BenchmarkContainer is the whole life of a container that runs `true`.
func BenchmarkContainer(b *testing.B) {
	n := benchNode(b)
	i := 0
	defer n.cpu(b)()
	for b.Loop() {
		i++
		id := fmt.Sprint("b", i)
		_, h, err := n.client.Create(context.Background(), n.request(id, n.spec("true")))
		if err != nil {
			b.Fatal(err)
		}
		h.Close()
		n.start(id)
		n.exit(id)
		n.delete(id)
	}
}

func BenchmarkCreateStart(b *testing.B) {
	n := benchNode(b)
	i := 0
	defer n.cpu(b)()
	for b.Loop() {
		i++
		id := fmt.Sprint("b", i)
		_, h, err := n.client.Create(context.Background(), n.request(id, n.spec("sleep", "1000")))
		if err != nil {
			b.Fatal(err)
		}
		n.start(id)
		b.StopTimer()
		h.Close()
		n.delete(id)
		b.StartTimer()
	}
}

func BenchmarkExec(b *testing.B) {
	n := benchNode(b)
	n.run("a", "sleep", "1000")
	defer n.cpu(b)()
	for b.Loop() {
		if _, _, code, err := n.exec("a", "true"); err != nil || code != 0 {
			b.Fatalf("exec = %d, %v", code, err)
		}
	}
}

func BenchmarkKillDelete(b *testing.B) {
	n := benchNode(b)
	i := 0
	defer n.cpu(b)()
	for b.Loop() {
		b.StopTimer()
		i++
		id := fmt.Sprint("b", i)
		_, h, err := n.client.Create(context.Background(), n.request(id, n.spec("sleep", "1000")))
		if err != nil {
			b.Fatal(err)
		}
		n.start(id)
		h.Close()
		b.StartTimer()
		n.delete(id)
	}
}

// BenchmarkAttach reads what a container writes as fast as it can, with a log
// beside it and without.
func BenchmarkAttach(b *testing.B) {
	const piece = 1 << 20
	for _, logged := range []bool{false, true} {
		b.Run(fmt.Sprintf("log=%v", logged), func(b *testing.B) {
			n := benchNode(b)
			r := n.request("a", n.spec("yes", strings.Repeat("x", 99)))
			if !logged {
				r.LogPath = ""
			}
			n.create(r)
			a := n.attach("a", "out")
			n.start("a")
			b.SetBytes(piece)
			buf := make([]byte, piece)
			i := 0
			defer n.cpu(b)()
			for b.Loop() {
				if _, err := io.ReadFull(a.out, buf); err != nil {
					b.Fatal(err)
				}
				if i++; i%256 == 0 && logged {
					_ = os.Truncate(r.LogPath, 0)
				}
			}
			a.close()
		})
	}
}
