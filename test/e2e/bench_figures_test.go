package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// BenchmarkFigures100 and BenchmarkFigures500 print what kubelet's questions about a node
// with so many pods cost, as a table:
//
//	go test ./test/e2e -run '^$' -bench 'Figures(100|500)$' -benchtime 1x -timeout 1h -crid bin/crid -monitor bin/crid-monitor
//
// and with -endpoint, -bench-image and -bench-programs (such as
// containerd,containerd-shim-runc-v2) those of another runtime.
func BenchmarkFigures100(b *testing.B) { benchmarkFigures(b, 100) }
func BenchmarkFigures500(b *testing.B) { benchmarkFigures(b, 500) }

const (
	figureRounds = 50               // of each question
	figureGap    = time.Second      // before the first, so that rates have begun
	idleWindow   = 20 * time.Second // without a question
	ticks        = 100              // a second, of /proc/<pid>/stat
)

func benchmarkFigures(b *testing.B, pods int) {
	n := benchNode(b)
	n.RemovePod(n.RunPod(n.benchPod(-1, true)))
	private, _, _ := n.memory()
	began := time.Now()
	n.manyPods(pods)
	up := time.Since(began)
	for b.Loop() {
		after, pss, processes := n.memory()
		w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintf(w, "\n%d pods up after %.1f s: %d processes, PSS %.1f MiB, private %.1f MiB, %.1f KiB for each pod\n",
			pods, up.Seconds(), processes, float64(pss)/1024, float64(after)/1024, float64(after-private)/float64(pods))
		fmt.Fprintln(w, "call\tp50 ms\tp99 ms\tCPU ms\tbytes\t")
		for _, q := range n.questions() {
			<-time.After(figureGap)
			n.ask(b, w, q.name, q.ask)
		}
		if err := w.Flush(); err != nil {
			b.Fatal(err)
		}
		before := n.cpuTime()
		<-time.After(idleWindow)
		fmt.Printf("idle: %.2f ms of CPU each second\n", (n.cpuTime()-before).Seconds()*1000/idleWindow.Seconds())
	}
}

// manyPods runs pods with the node's network and a container that sleeps.
func (n *Node) manyPods(pods int) {
	var wg sync.WaitGroup
	next := make(chan int)
	for range 8 {
		wg.Go(func() {
			for i := range next {
				p := n.benchPod(i, true)
				n.Run(n.RunPod(p), p, n.benchContainer("main", "sleep", "100000"))
			}
		})
	}
	for i := range pods {
		next <- i
	}
	close(next)
	wg.Wait()
}

// ask prints the line of one question; one that the runtime does not have is
// said to be so.
func (n *Node) ask(b *testing.B, w io.Writer, name string, question func(context.Context) (int, error)) {
	var took []time.Duration
	size, cpu := 0, n.cpuTime()
	for range figureRounds {
		began := time.Now()
		var err error
		size, err = question(n.Ctx())
		if status.Code(err) == codes.Unimplemented {
			fmt.Fprintf(w, "%s\t-\t-\t-\t-\t\n", name)
			return
		}
		if err != nil {
			b.Fatalf("%s: %v", name, err)
		}
		took = append(took, time.Since(began))
	}
	cpu = n.cpuTime() - cpu
	slices.Sort(took)
	ms := func(d time.Duration) float64 { return d.Seconds() * 1000 }
	fmt.Fprintf(w, "%s\t%.2f\t%.2f\t%.2f\t%d\t\n", name, ms(took[len(took)/2]), ms(took[len(took)*99/100]), ms(cpu)/figureRounds, size)
}

// cpuTime is what the runtime's processes have used so far.
func (n *Node) cpuTime() time.Duration {
	var total uint64
	for _, dir := range n.ofRuntime() {
		stat, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue // it has ended
		}
		// What follows the name, which may have blanks in it, begins with field 3.
		f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		var user, system uint64
		_, _ = fmt.Sscan(f[11], &user)
		_, _ = fmt.Sscan(f[12], &system)
		total += user + system
	}
	return time.Duration(total) * time.Second / ticks
}

// question is one that kubelet asks, or a person; it returns the size of the answer.
type question struct {
	name string
	ask  func(context.Context) (int, error)
}

func (n *Node) questions() []question {
	r := n.Runtime
	all := []question{
		{"ListPodSandbox", sized(r.ListPodSandbox, &cri.ListPodSandboxRequest{})},
		{"ListContainers", sized(r.ListContainers, &cri.ListContainersRequest{})},
		{"ListContainerStats", sized(r.ListContainerStats, &cri.ListContainerStatsRequest{})},
		{"ListPodSandboxStats", sized(r.ListPodSandboxStats, &cri.ListPodSandboxStatsRequest{})},
		{"ListPodSandboxMetrics", sized(r.ListPodSandboxMetrics, &cri.ListPodSandboxMetricsRequest{})},
		{"ListImages", sized(n.Images.ListImages, &cri.ListImagesRequest{})},
		{"ImageFsInfo", sized(n.Images.ImageFsInfo, &cri.ImageFsInfoRequest{})},
		{"Status", sized(r.Status, &cri.StatusRequest{})},
		{"StreamPodSandboxes", drained(r.StreamPodSandboxes, &cri.StreamPodSandboxesRequest{})},
		{"StreamContainers", drained(r.StreamContainers, &cri.StreamContainersRequest{})},
		{"StreamContainerStats", drained(r.StreamContainerStats, &cri.StreamContainerStatsRequest{})},
		{"StreamPodSandboxStats", drained(r.StreamPodSandboxStats, &cri.StreamPodSandboxStatsRequest{})},
		{"StreamPodSandboxMetrics", drained(r.StreamPodSandboxMetrics, &cri.StreamPodSandboxMetricsRequest{})},
	}
	if *endpointFlag == "" {
		all = append(all, question{"GET /metrics", func(context.Context) (int, error) { return len(n.fetch("/metrics")), nil }})
	}
	return all
}

// sized is a call that returns the size of its answer.
func sized[Q any, R proto.Message](call func(context.Context, Q, ...grpc.CallOption) (R, error), q Q) func(context.Context) (int, error) {
	return func(ctx context.Context) (int, error) {
		answer, err := call(ctx, q)
		return proto.Size(answer), err
	}
}

// drained is a stream, read to its end, with the size of its messages.
func drained[Q, R any](call func(context.Context, Q, ...grpc.CallOption) (grpc.ServerStreamingClient[R], error), q Q) func(context.Context) (int, error) {
	return func(ctx context.Context) (int, error) {
		stream, err := call(ctx, q)
		for size := 0; ; {
			var answer *R
			if err == nil {
				answer, err = stream.Recv()
			}
			if errors.Is(err, io.EOF) {
				return size, nil
			}
			if err != nil {
				return size, err
			}
			size += proto.Size(any(answer).(proto.Message))
		}
	}
}
