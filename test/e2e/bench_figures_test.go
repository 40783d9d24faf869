package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/internal/testutil"
)

// BenchmarkFigures100 and BenchmarkFigures500 print what kubelet's questions about a node
// with so many pods cost, as a table:
//
//	go test ./test/e2e -run '^$' -bench 'Figures(100|500)$' -benchtime 1x -timeout 1h -crid bin/crid -monitor bin/crid-monitor
//
// and with -endpoint, -bench-image and -bench-programs (such as
// containerd,containerd-shim-runc-v2) those of another runtime. The pods use the node's
// network, or with -bench-cni have one each.
func BenchmarkFigures100(b *testing.B) { benchmarkFigures(b, 100) }
func BenchmarkFigures500(b *testing.B) { benchmarkFigures(b, 500) }

var (
	figuresCNIFlag      = flag.Bool("bench-cni", false, "give the pods of the figures a network each")
	figuresProfilesFlag = flag.String("bench-profiles", "", "write profiles of crid's CPU time for each question, and of its heap, to this folder")
)

const (
	figureRounds = 50               // of each question
	figureTime   = 20 * time.Second // after which there are no more rounds
	freshRounds  = 15               // of one with a gap before each
	idleWindow   = 20 * time.Second // without a question
	ticks        = 100              // a second, of /proc/<pid>/stat

	// figureGap is before the first round, so that rates have begun, and before each of
	// a fresh one: crid uses figures again that are less than a second old.
	figureGap = 1100 * time.Millisecond
)

func benchmarkFigures(b *testing.B, pods int) {
	n := benchNode(b)
	n.manyAddresses()
	first := n.benchPod(-1, !*figuresCNIFlag)
	pod := n.RunPod(first)
	n.Run(pod, first, n.benchContainer("main", "sleep", "1000"))
	n.RemovePod(pod)
	before, _, _ := n.settled()
	began := time.Now()
	n.manyPods(pods)
	up := time.Since(began)
	for b.Loop() {
		after, pss, processes := n.settled()
		w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintf(w, "\n%d pods up after %.1f s: %d processes, PSS %.1f MiB, private %.1f MiB, %.1f KiB for each pod\n",
			pods, up.Seconds(), processes, float64(pss)/1024, float64(after)/1024, float64(after-before)/float64(pods))
		n.profile("heap-"+itoa(pods), "/debug/pprof/heap?gc=1")
		fmt.Fprintln(w, "call\trounds\tp50 ms\tp99 ms\tCPU ms\titems\tbytes\t")
		for _, q := range n.questions() {
			<-time.After(figureGap)
			n.ask(b, w, q, pods)
		}
		if err := w.Flush(); err != nil {
			b.Fatal(err)
		}
		n.checkSamples(b, pods)
		after, pss, _ = n.settled()
		used := n.cpuTime()
		<-time.After(idleWindow)
		fmt.Printf("idle: %.2f ms of CPU each second\n", (n.cpuTime()-used).Seconds()*1000/idleWindow.Seconds())
		fmt.Printf("after all questions: PSS %.1f MiB, private %.1f MiB, %.1f KiB for each pod\n",
			float64(pss)/1024, float64(after)/1024, float64(after-before)/float64(pods))
	}
}

// manyAddresses makes room for more pods than a node of the tests has addresses, in a
// network that they do not use.
func (n *Node) manyAddresses() {
	if !*figuresCNIFlag || *endpointFlag != "" {
		return
	}
	path := filepath.Join(n.CNIDir(), "10-e2e.conflist")
	conf, err := os.ReadFile(path)
	if err != nil {
		n.T.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		n.T.Fatal(err)
	}
	n.awaitNetwork(false) // it has seen that the old one is gone, so that no pod gets that
	n.Subnet = "10.251.0"
	n.WriteFile(path, regexp.MustCompile(`10\.\d+\.\d+\.0/24`).ReplaceAllString(string(conf), "10.251.0.0/16"))
	n.awaitNetwork(true)
}

func (n *Node) awaitNetwork(want bool) {
	testutil.WaitFor(n.T, "the network's configuration to be read", func() bool {
		resp, err := n.Runtime.Status(n.Ctx(), &cri.StatusRequest{})
		return err == nil && slices.ContainsFunc(resp.Status.Conditions, func(c *cri.RuntimeCondition) bool {
			return c.Type == cri.NetworkReady && c.Status == want
		})
	})
}

// manyPods runs pods with a container each that sleeps.
func (n *Node) manyPods(pods int) {
	var wg sync.WaitGroup
	var next atomic.Int64
	for range 8 {
		wg.Go(func() { // ends at a failure
			for i := int(next.Add(1)) - 1; i < pods; i = int(next.Add(1)) - 1 {
				p := n.benchPod(i, !*figuresCNIFlag)
				n.Run(n.RunPod(p), p, n.benchContainer("main", "sleep", "100000"))
			}
		})
	}
	wg.Wait()
	if n.T.Failed() {
		n.T.FailNow()
	}
}

// ask prints the line of one question; one that the runtime does not have is
// said to be so.
func (n *Node) ask(b *testing.B, w io.Writer, q question, pods int) {
	var took []time.Duration
	var got answer
	began, cpu := time.Now(), n.cpuTime()
	rounds := figureRounds
	if q.fresh {
		rounds = freshRounds
	}
	for len(took) < rounds && time.Since(began) < figureTime {
		if q.fresh {
			<-time.After(figureGap)
		}
		asked := time.Now()
		var err error
		got, err = q.ask(n.Ctx())
		if status.Code(err) == codes.Unimplemented {
			fmt.Fprintf(w, "%s\t-\t-\t-\t-\t-\t-\t\n", q.name)
			return
		}
		if err != nil {
			b.Fatalf("%s: %v", q.name, err)
		}
		took = append(took, time.Since(asked))
		if q.ofPods && got.items != pods {
			b.Errorf("%s: %d items, want %d", q.name, got.items, pods)
		}
	}
	cpu = n.cpuTime() - cpu
	slices.Sort(took)
	ms := func(d time.Duration) float64 { return d.Seconds() * 1000 }
	fmt.Fprintf(w, "%s\t%d\t%.2f\t%.2f\t%.2f\t%d\t%d\t\n", q.name, len(took), ms(took[len(took)/2]), ms(took[len(took)*99/100]),
		ms(cpu)/float64(len(took)), got.items, got.bytes)
	n.profileOf(b, q)
}

// profileOf writes down where crid's time goes while the question is asked.
func (n *Node) profileOf(b *testing.B, q question) {
	if *figuresProfilesFlag == "" {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.profile(strings.NewReplacer(" ", "-", "/", "").Replace(q.name), "/debug/pprof/profile?seconds=4")
	}()
	for {
		select {
		case <-done:
			return
		default:
		}
		if q.fresh {
			<-time.After(figureGap)
		}
		if _, err := q.ask(n.Ctx()); err != nil {
			b.Fatalf("%s: %v", q.name, err)
		}
	}
}

func (n *Node) profile(name, page string) {
	if *figuresProfilesFlag != "" {
		n.WriteFile(filepath.Join(*figuresProfilesFlag, name+".pprof"), n.fetch(page))
	}
}

// checkSamples is that no sample is missing: what is counted of one container or pod is
// counted of all. Devices are what a container has used, and differ.
func (n *Node) checkSamples(b *testing.B, pods int) {
	descriptors, err := n.Runtime.ListMetricDescriptors(n.Ctx(), &cri.ListMetricDescriptorsRequest{})
	if status.Code(err) == codes.Unimplemented {
		return
	}
	if err != nil {
		b.Fatal(err)
	}
	all, err := n.Runtime.ListPodSandboxMetrics(n.Ctx(), &cri.ListPodSandboxMetricsRequest{})
	if err != nil {
		b.Fatal(err)
	}
	samples, in := 0, make(map[string]int) // how many pods have some by this name
	for _, pod := range all.PodMetrics {
		own := slices.Clone(pod.Metrics)
		for _, c := range pod.ContainerMetrics {
			own = append(own, c.Metrics...)
		}
		samples += len(own)
		names := make(map[string]bool)
		for _, m := range own {
			names[m.Name] = true
		}
		for name := range names {
			in[name]++
		}
	}
	var none []string
	for _, d := range descriptors.Descriptors {
		byDevice := slices.Contains(d.LabelKeys, "device") && !strings.HasPrefix(d.Name, "container_fs_usage")
		switch count := in[d.Name]; {
		case count == 0:
			none = append(none, d.Name)
		case count != pods && !byDevice:
			b.Errorf("%s: of %d pods, want %d", d.Name, count, pods)
		}
		if *figuresCNIFlag && in[d.Name] == 0 && strings.HasPrefix(d.Name, "container_network_") {
			b.Errorf("%s: of no pod", d.Name)
		}
	}
	fmt.Printf("%d samples of %d metrics; none on this machine: %s\n", samples, len(descriptors.Descriptors)-len(none), strings.Join(none, " "))
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

// question is one that kubelet asks, or a person.
type question struct {
	name   string
	ofPods bool // the answer has an item for each pod
	fresh  bool // not asked again before what was found has become old
	ask    func(context.Context) (answer, error)
}

type answer struct{ items, bytes int }

func (n *Node) questions() []question {
	r := n.Runtime
	containerStats := sized(r.ListContainerStats, &cri.ListContainerStatsRequest{}, (*cri.ListContainerStatsResponse).GetStats)
	sandboxStats := sized(r.ListPodSandboxStats, &cri.ListPodSandboxStatsRequest{}, (*cri.ListPodSandboxStatsResponse).GetStats)
	all := []question{
		{
			name: "ListPodSandbox", ofPods: true,
			ask: sized(r.ListPodSandbox, &cri.ListPodSandboxRequest{}, (*cri.ListPodSandboxResponse).GetItems),
		},
		{
			name: "ListContainers", ofPods: true,
			ask: sized(r.ListContainers, &cri.ListContainersRequest{}, (*cri.ListContainersResponse).GetContainers),
		},
		{name: "ListContainerStats", ofPods: true, fresh: true, ask: containerStats},
		{name: "ListContainerStats at once", ofPods: true, ask: containerStats},
		{name: "ListPodSandboxStats", ofPods: true, fresh: true, ask: sandboxStats},
		{name: "ListPodSandboxStats at once", ofPods: true, ask: sandboxStats},
		{
			name: "ListPodSandboxMetrics", ofPods: true,
			ask: sized(r.ListPodSandboxMetrics, &cri.ListPodSandboxMetricsRequest{}, (*cri.ListPodSandboxMetricsResponse).GetPodMetrics),
		},
		{name: "ListImages", ask: sized(n.Images.ListImages, &cri.ListImagesRequest{}, (*cri.ListImagesResponse).GetImages)},
		{name: "ImageFsInfo", ask: sized(n.Images.ImageFsInfo, &cri.ImageFsInfoRequest{}, (*cri.ImageFsInfoResponse).GetImageFilesystems)},
		{name: "Status", ask: sized(r.Status, &cri.StatusRequest{}, func(*cri.StatusResponse) []int { return nil })},
		{
			name: "StreamPodSandboxes", ofPods: true,
			ask: drained(r.StreamPodSandboxes, &cri.StreamPodSandboxesRequest{}, (*cri.StreamPodSandboxesResponse).GetPodSandboxes),
		},
		{
			name: "StreamContainers", ofPods: true,
			ask: drained(r.StreamContainers, &cri.StreamContainersRequest{}, (*cri.StreamContainersResponse).GetContainers),
		},
		{
			name: "StreamContainerStats", ofPods: true, fresh: true,
			ask: drained(r.StreamContainerStats, &cri.StreamContainerStatsRequest{}, (*cri.StreamContainerStatsResponse).GetContainerStats),
		},
		{
			name: "StreamPodSandboxStats", ofPods: true, fresh: true,
			ask: drained(r.StreamPodSandboxStats, &cri.StreamPodSandboxStatsRequest{}, (*cri.StreamPodSandboxStatsResponse).GetPodSandboxStats),
		},
		{
			name: "StreamPodSandboxMetrics", ofPods: true,
			ask: drained(r.StreamPodSandboxMetrics, &cri.StreamPodSandboxMetricsRequest{}, (*cri.StreamPodSandboxMetricsResponse).GetPodSandboxMetrics),
		},
	}
	if *endpointFlag == "" {
		all = append(all, question{name: "GET /metrics", ask: func(context.Context) (answer, error) {
			page := n.fetch("/metrics")
			return answer{strings.Count(page, "\n"), len(page)}, nil
		}})
	}
	return all
}

// sized is a call, with the number of items in its answer and the size of that.
func sized[Q any, R proto.Message, I any](
	call func(context.Context, Q, ...grpc.CallOption) (R, error), q Q, items func(R) []I,
) func(context.Context) (answer, error) {
	return func(ctx context.Context) (answer, error) {
		r, err := call(ctx, q)
		return answer{len(items(r)), proto.Size(r)}, err
	}
}

// drained is a stream, read to its end, with what is in all its messages.
func drained[Q, R, I any](
	call func(context.Context, Q, ...grpc.CallOption) (grpc.ServerStreamingClient[R], error), q Q, items func(*R) []I,
) func(context.Context) (answer, error) {
	return func(ctx context.Context) (answer, error) {
		stream, err := call(ctx, q)
		for sum := (answer{}); ; {
			var r *R
			if err == nil {
				r, err = stream.Recv()
			}
			if errors.Is(err, io.EOF) {
				return sum, nil
			}
			if err != nil {
				return sum, err
			}
			sum.items += len(items(r))
			sum.bytes += proto.Size(any(r).(proto.Message))
		}
	}
}
