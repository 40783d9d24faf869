package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/metadata"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/internal/trace/otlp/otlptest"
)

// fetch is a page of crid's admin socket.
func (n *Node) fetch(page string) string {
	n.T.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", n.path("state", "admin.sock"))
	}}
	defer transport.CloseIdleConnections()
	return n.get(&http.Client{Transport: transport}, "http://crid"+page)
}

func (n *Node) get(client *http.Client, url string) string {
	n.T.Helper()
	req, err := http.NewRequestWithContext(n.Ctx(), http.MethodGet, url, nil)
	if err != nil {
		n.T.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		n.T.Fatalf("GET %s: %v", url, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		n.T.Fatalf("GET %s = %s, %v: %s", url, resp.Status, err, body)
	}
	return string(body)
}

// metric is the value of a series, -1 when it is not there.
func metric(page, series string) float64 {
	for line := range strings.Lines(page) {
		if rest, ok := strings.CutPrefix(line, series+" "); ok {
			var v float64
			if _, err := fmt.Sscan(rest, &v); err == nil {
				return v
			}
		}
	}
	return -1
}

// crid's own figures and traces, of a pod's life.
func TestObserved(t *testing.T) {
	collector := otlptest.New(t)
	n := NewNode(t, NodeOptions{Config: map[string]string{
		"metrics.address": quote("127.0.0.1:0"), "tracing.endpoint": quote(collector.Addr),
	}})
	// What kubelet sends with the requests that it traces.
	const trace = "0af7651916cd43dd8448eb211c80319c"
	traced := metadata.AppendToOutgoingContext(n.Ctx(), "traceparent", "00-"+trace+"-b7ad6b7169203331-01")
	n.Registry.Push("e2e/busybox:1", Busybox(t))
	if _, err := n.Images.PullImage(traced, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: BusyboxRef}}); err != nil {
		t.Fatal(err)
	}
	p := n.PodConfig("watched")
	run, err := n.Runtime.RunPodSandbox(traced, &cri.RunPodSandboxRequest{Config: p})
	if err != nil {
		t.Fatal(err)
	}
	pod := run.PodSandboxId
	c := n.ContainerConfig("main", "sh", "-c", "echo hello; sleep 1000")
	created, err := n.Runtime.CreateContainer(traced, &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: p})
	if err != nil {
		t.Fatal(err)
	}
	n.StartContainer(created.ContainerId) // without a trace, at the rate 0
	n.Eventually("the log is written", func() bool {
		return metric(n.fetch("/metrics"), "crid_monitor_log_written_bytes_total") > 0
	})

	t.Run("metrics", func(t *testing.T) { checkOwnMetrics(t, n) })
	t.Run("goroutines", func(t *testing.T) {
		if err := syscall.Kill(n.PID(), syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		n.Eventually("they are in the log", func() bool { return strings.Contains(n.Log(), "main.(*daemon).run(") })
		if got := n.fetch("/debug/pprof/goroutine?debug=2"); !strings.Contains(got, "main.(*daemon).run(") {
			t.Errorf("/debug/pprof/goroutine has no stack of crid's main function:\n%s", got)
		}
	})
	t.Run("allocations", func(t *testing.T) {
		// Its first line has the samples of what is in use, of all there ever was, and twice the
		// bytes from one sample to the next.
		page := n.fetch("/debug/pprof/heap?debug=1&gc=1")
		var used, usedBytes, all, allBytes, every int64
		_, err := fmt.Sscanf(page, "heap profile: %d: %d [%d: %d] @ heap/%d", &used, &usedBytes, &all, &allBytes, &every)
		if err != nil || all == 0 || every == 0 {
			first, _, _ := strings.Cut(page, "\n")
			t.Errorf("/debug/pprof/heap begins with %q (%v), want samples of allocations", first, err)
		}
	})
	n.RemovePod(pod)
	n.Stop() // what waits is sent
	t.Run("traces", func(t *testing.T) { checkTraces(t, collector, trace) })
	n.Start()
}

var servesMetrics = regexp.MustCompile(`"Serving metrics" address="([^"]+)"`)

func checkOwnMetrics(t *testing.T, n *Node) {
	page := n.fetch("/metrics")
	sandboxes := 1.0
	if n.Programs.CgroupDriver == "systemd" {
		sandboxes++ // that of warmUp
	}
	for series, want := range map[string]float64{
		`crid_rpc_duration_seconds_count{code="OK",rpc="RunPodSandbox"}`:   sandboxes,
		`crid_rpc_in_flight{rpc="RunPodSandbox"}`:                          0,
		`crid_image_pull_duration_seconds_count{outcome="success"}`:        1,
		`crid_image_layers_unpacked_total`:                                 1,
		`crid_images`:                                                      1,
		`crid_cni_call_duration_seconds_count{plugin="bridge",verb="ADD"}`: 1,
		`crid_sandboxes{state="ready"}`:                                    1,
		`crid_containers{state="running"}`:                                 1,
		`crid_monitor_up`:                                                  1,
		`crid_monitor_containers`:                                          1,
		`crid_monitor_restarts_total`:                                      0,
		`crid_event_subscribers`:                                           0,
	} {
		if got := metric(page, series); got != want {
			t.Errorf("%s = %v, want %v", series, got, want)
		}
	}
	for _, series := range []string{
		"crid_image_pulled_bytes_total", "crid_image_store_bytes", "process_resident_memory_bytes",
		"crid_monitor_process_resident_memory_bytes", "crid_monitor_process_open_fds",
	} {
		if got := metric(page, series); got <= 0 {
			t.Errorf("%s = %v, want some", series, got)
		}
	}
	at := servesMetrics.FindStringSubmatch(n.Log())
	if at == nil {
		t.Fatalf("the log does not say where metrics are served:\n%s", n.Log())
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	if page := n.get(client, "http://"+at[1]+"/metrics"); metric(page, "crid_sandboxes{state=\"ready\"}") != 1 {
		t.Errorf("on the port: %s", page)
	}
	resp, err := client.Get("http://" + at[1] + "/debug/pprof/")
	if err != nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("the port, which any user of the node can reach, answers %v, %v for profiles, want not found", resp, err)
	}
	if err == nil {
		_ = resp.Body.Close()
	}
}

func checkTraces(t *testing.T, c *otlptest.Collector, id string) {
	spans, resource := c.Spans()
	if resource["service.name"] != "crid" {
		t.Errorf("resource = %v", resource)
	}
	// The client of registries adds its own steps, which are not ours to name.
	spans = slices.DeleteFunc(spans, func(s otlptest.Span) bool { return strings.HasPrefix(s.Name, "remotes.docker.") })
	trees := make(map[string]string)
	for _, s := range spans {
		if s.Trace != id {
			t.Errorf("%s is of trace %s; only requests that their client traces are to be", s.Name, s.Trace)
		}
		if s.Failed != "" {
			t.Errorf("%s: %s", s.Name, s.Failed)
		}
		if strings.HasPrefix(s.Name, "cri.") {
			trees[s.Name] = otlptest.Tree(spans, s)
		}
	}
	for name, want := range map[string]string{
		"cri.PullImage": `cri.PullImage
  image.commit
  image.layers
    image.layer
  image.manifest
  image.resolve
`,
		"cri.RunPodSandbox": `cri.RunPodSandbox
  cni.attach
    cni.plugin bridge ADD
    cni.plugin portmap ADD
  sandbox.files
  sandbox.namespaces
  sandbox.record sandbox.run.addresses
  sandbox.record sandbox.run.attachment
  sandbox.record sandbox.run.ready
  sandbox.record sandbox.run.record
`,
		"cri.CreateContainer": `cri.CreateContainer
  container.node
  container.record container.create.created
  container.record container.create.record
  container.rootfs
  container.spec
  monitor.create
`,
	} {
		if got := trees[name]; got != want {
			t.Errorf("steps of %s:\n%swant:\n%s", name, got, want)
		}
	}
	if len(trees) != 3 {
		t.Errorf("%d requests are traced, want the three that said so: %v", len(trees), trees)
	}
}
