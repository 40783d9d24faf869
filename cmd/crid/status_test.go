package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/internal/testutil"
)

// fakeCRI answers as a node with three pods does.
type fakeCRI struct {
	cri.UnimplementedRuntimeServiceServer
	cri.UnimplementedImageServiceServer

	mu    sync.Mutex
	stats int // calls of ListPodSandboxStats
	asked int // calls of PodSandboxStatus
}

func (*fakeCRI) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{Version: "0.1.0", RuntimeName: "crid", RuntimeVersion: "1.2.3", RuntimeApiVersion: "v1"}, nil
}

func (*fakeCRI) RuntimeConfig(context.Context, *cri.RuntimeConfigRequest) (*cri.RuntimeConfigResponse, error) {
	return &cri.RuntimeConfigResponse{Linux: &cri.LinuxRuntimeConfiguration{CgroupDriver: cri.CgroupDriver_CGROUPFS}}, nil
}

func (*fakeCRI) Status(context.Context, *cri.StatusRequest) (*cri.StatusResponse, error) {
	return &cri.StatusResponse{
		Status: &cri.RuntimeStatus{Conditions: []*cri.RuntimeCondition{
			{Type: cri.RuntimeReady, Status: true},
			{Type: cri.NetworkReady, Reason: "NetworkPluginNotReady", Message: "nothing in\x1b[2J /etc"},
		}},
		RuntimeHandlers: []*cri.RuntimeHandler{{Features: &cri.RuntimeHandlerFeatures{UserNamespaces: true}}},
		Features:        &cri.RuntimeFeatures{MountOptions: true},
		Info:            map[string]string{"monitor": `{"Build":"1.2.2","PID":77,"Execs":1,"FDs":30}`},
	}, nil
}

func (*fakeCRI) ImageFsInfo(context.Context, *cri.ImageFsInfoRequest) (*cri.ImageFsInfoResponse, error) {
	return &cri.ImageFsInfoResponse{ImageFilesystems: []*cri.FilesystemUsage{{UsedBytes: &cri.UInt64Value{Value: 3 << 30}}}}, nil
}

// statusNow is when the fake node is looked at.
var statusNow = time.Unix(1_700_000_000, 0)

func (*fakeCRI) ListPodSandbox(context.Context, *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	pod := func(id, name string, state cri.PodSandboxState, age time.Duration) *cri.PodSandbox {
		return &cri.PodSandbox{
			Id: id, Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: "ns"}, State: state, CreatedAt: statusNow.Add(-age).UnixNano(),
		}
	}
	return &cri.ListPodSandboxResponse{Items: []*cri.PodSandbox{
		pod("3333333333333333", "web", cri.PodSandboxState_SANDBOX_NOTREADY, 3*time.Hour),
		pod("2222222222222222", "web", cri.PodSandboxState_SANDBOX_READY, 2*time.Hour),
		pod("1111111111111111", "agent", cri.PodSandboxState_SANDBOX_READY, time.Minute),
	}}, nil
}

func (*fakeCRI) ListContainers(context.Context, *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	container := func(pod, name string, attempt uint32, state cri.ContainerState) *cri.Container {
		return &cri.Container{PodSandboxId: pod, Metadata: &cri.ContainerMetadata{Name: name, Attempt: attempt}, State: state}
	}
	const pod = "2222222222222222"
	return &cri.ListContainersResponse{Containers: []*cri.Container{
		container(pod, "main", 1, cri.ContainerState_CONTAINER_EXITED),
		container(pod, "main", 2, cri.ContainerState_CONTAINER_RUNNING),
		container(pod, "side", 1, cri.ContainerState_CONTAINER_EXITED),
	}}, nil
}

// The first question has no rates yet.
func (f *fakeCRI) ListPodSandboxStats(context.Context, *cri.ListPodSandboxStatsRequest) (*cri.ListPodSandboxStatsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stats++
	cpu := &cri.CpuUsage{UsageCoreNanoSeconds: &cri.UInt64Value{Value: 1}}
	if f.stats > 1 {
		cpu.UsageNanoCores = &cri.UInt64Value{Value: 250_600_000}
	}
	return &cri.ListPodSandboxStatsResponse{Stats: []*cri.PodSandboxStats{{
		Attributes: &cri.PodSandboxAttributes{Id: "2222222222222222"},
		Linux:      &cri.LinuxPodSandboxStats{Cpu: cpu, Memory: &cri.MemoryUsage{WorkingSetBytes: &cri.UInt64Value{Value: 34 << 20}}},
	}}}, nil
}

func (f *fakeCRI) PodSandboxStatus(_ context.Context, r *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	s := &cri.PodSandboxStatus{Id: r.GetPodSandboxId()}
	if r.GetPodSandboxId() == "2222222222222222" {
		s.Network = &cri.PodSandboxNetworkStatus{Ip: "10.0.0.2"}
	}
	return &cri.PodSandboxStatusResponse{Status: s}, nil
}

type criServer interface {
	cri.RuntimeServiceServer
	cri.ImageServiceServer
}

// serveCRI serves f at c's socket until stop.
func serveCRI(t *testing.T, c Config, f criServer) (stop func()) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", c.Socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	cri.RegisterRuntimeServiceServer(g, f)
	cri.RegisterImageServiceServer(g, f)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = g.Serve(l)
	}()
	stop = sync.OnceFunc(func() {
		g.Stop()
		<-done
	})
	t.Cleanup(stop)
	return stop
}

const wantNode = `crid          1.2.3, CRI v1, cgroup driver cgroupfs
RuntimeReady  yes
NetworkReady  NO: NetworkPluginNotReady: nothing in [2J /etc
crid-monitor  1.2.2, pid 77, 1 execs, 30 descriptors
features      user namespaces, mount options
pods          2 ready, 1 not ready
containers    1 running, 0 created, 2 exited
images        3.221GB

`

const wantTable = `POD ID         NAMESPACE/NAME  STATE     AGE            RUNNING  RESTARTS  CPU   MEMORY  IP
1111111111111  ns/agent        Ready     about a minute  0/0     0         -     -       -
2222222222222  ns/web          Ready     2 hours         1/2     3         251m  34MiB   10.0.0.2
3333333333333  ns/web          NotReady  3 hours         0/0     0         -     -       -
`

// fields is a text without the width of its columns.
func fields(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		fmt.Fprintln(&b, strings.Join(strings.Fields(line), " "))
	}
	return b.String()
}

func statusConfig(t *testing.T) Config {
	return Config{Socket: filepath.Join(socketDir(t), "crid.sock")}
}

func TestStatus(t *testing.T) {
	testutil.LeakCheck(t)
	c, f := statusConfig(t), &fakeCRI{}
	defer serveCRI(t, c, f)()
	var v *nodeView
	err := (program{}).look(t.Context(), c, func(ctx context.Context, r *statusReader) (err error) {
		v, err = r.read(ctx)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := v.text(&out, statusNow); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); fields(got) != fields(wantNode+wantTable) {
		t.Errorf("status:\n%s\nwant:\n%s", got, wantNode+wantTable)
	}
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"cpuNanocores":250600000`, `"workingSetBytes":35651584`, `"ip":"10.0.0.2"`, `"running":1,"total":2,"restarts":3`, `"pid":77`} {
		if !strings.Contains(string(data), want) {
			t.Errorf("as JSON %s, which lacks %s", data, want)
		}
	}
}

// tableOnly is a node that can be asked for pods alone.
type tableOnly struct{ fakeCRI }

func (*tableOnly) Status(context.Context, *cri.StatusRequest) (*cri.StatusResponse, error) {
	return nil, status.Error(codes.Internal, "somebody asks for the node's status")
}

func (*tableOnly) ImageFsInfo(context.Context, *cri.ImageFsInfoRequest) (*cri.ImageFsInfoResponse, error) {
	return nil, status.Error(codes.Internal, "somebody asks what images take")
}

// crid pods asks for pods, and not for what it does not show.
func TestPods(t *testing.T) {
	testutil.LeakCheck(t)
	c, f := statusConfig(t), &tableOnly{fakeCRI{stats: 1}}
	defer serveCRI(t, c, f)()
	var out bytes.Buffer
	if err := (program{out: &out}).pods(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); strings.Count(got, "\n") != strings.Count(wantTable, "\n") || !strings.Contains(got, "251m  34MiB   10.0.0.2") {
		t.Errorf("pods:\n%s\nwant, but for the ages:\n%s", got, wantTable)
	}
}

// pages is a writer that hands on what is written to it.
type pages chan string

func (p pages) Write(b []byte) (int, error) {
	p <- string(b)
	return len(b), nil
}

// --watch goes on over a restart of crid, and ends without an error.
func TestWatch(t *testing.T) {
	testutil.LeakCheck(t)
	c, f := statusConfig(t), &fakeCRI{stats: 1}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out, done := make(pages), make(chan error, 1)
	show := func(v *nodeView, w io.Writer) error { return podTable(w, v.Pods, statusNow) }
	go func() { done <- program{out: out}.watch(ctx, c, time.Millisecond, false, show) }()

	until := func(what string, wanted func(page string) bool) {
		t.Helper()
		for {
			select {
			case page := <-out:
				if wanted(page) {
					return
				}
			case err := <-done:
				t.Fatalf("watch ended with %v before %s", err, what)
			case <-time.After(time.Minute):
				t.Fatalf("no %s", what)
			}
		}
	}
	away := func(page string) bool { return strings.HasPrefix(page, "crid does not answer, asking on: ") }
	table := func(page string) bool { return fields(page) == fields(wantTable+"\n") }
	until("word that nobody answers", away)
	stop := serveCRI(t, c, f)
	until("table", table)
	until("second table", table)
	f.mu.Lock()
	if f.asked != 2 {
		t.Errorf("addresses were asked for %d times in several looks, want once for each ready pod", f.asked)
	}
	f.mu.Unlock()
	stop()
	until("word that nobody answers any more", away)
	defer serveCRI(t, c, f)()
	until("table of the new crid", table)
	cancel()
	for {
		select {
		case <-out:
			continue
		case err := <-done:
			if err != nil {
				t.Errorf("watch = %v, want its end without an error", err)
			}
		}
		break
	}
}

func TestFrame(t *testing.T) {
	for _, tt := range []struct {
		name, page    string
		rows, columns int
		want          string
	}{
		{"fits", "a\nb\n", 10, 10, "\x1b[Ha\x1b[K\r\nb\x1b[K\x1b[J"},
		{"too wide", "αβγδ\n", 10, 3, "\x1b[Hαβγ\x1b[K\x1b[J"},
		{"too long", "a\nb\nc\nd\n", 3, 0, "\x1b[Ha\x1b[K\r\nb\x1b[K\r\n... 2 more lines\x1b[K\x1b[J"},
		{"size not known", "a\nb\nc\n", -1, -1, "\x1b[Ha\x1b[K\r\nb\x1b[K\r\nc\x1b[K\x1b[J"},
	} {
		if got := frame(tt.page, tt.rows, tt.columns); got != tt.want {
			t.Errorf("%s: frame = %q, want %q", tt.name, got, tt.want)
		}
	}
}
