package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/cridproject/crid/internal/errkind"
)

// sources has a figure of its own everywhere.
func sources(monitor error) Sources {
	states := func(n int) func() map[string]int {
		return func() map[string]int { return map[string]int{"ready": n, "removing": 0} }
	}
	return Sources{
		Sandboxes: states(3), Containers: states(4),
		Subscribers: func() (int, uint64) { return 2, 5 },
		Images:      func() (int, uint64) { return 6, 7 },
		MonitorPID:  func() (int, error) { return os.Getpid(), monitor },
		Monitor: func(context.Context) (Monitor, error) {
			return Monitor{
				Containers: 8, Execs: 9, Holders: 10, LogBytes: 11, LogDroppedBytes: 12,
				LogLimitedBytes: 13, LogLimitedRecords: 14, LogErrors: 15,
			}, monitor
		},
		MonitorRestarts: func() uint64 { return 16 },
	}
}

func scrape(t *testing.T, m *Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	body, err := io.ReadAll(w.Result().Body)
	if err != nil || w.Code != http.StatusOK {
		t.Fatalf("scrape = %d, %v\n%s", w.Code, err, body)
	}
	return string(body)
}

// use makes every figure appear.
func use(m *Metrics) {
	m.RPC("Version")("OK", false)
	m.RPC("GetContainerEvents")("Unavailable", true)
	m.RPC("PullImage")
	m.CNICall("bridge", "ADD", 30*time.Millisecond, nil)
	m.CNICall("bridge", "ADD", time.Minute, errors.New("no"))
	m.Pulled(time.Second, nil)
	m.Pulled(time.Second, fmt.Errorf("pull x: %w", context.Canceled))
	m.Pulled(time.Second, errkind.Errorf(errkind.NotFound, "no"))
	m.Fetched(100)
	m.Unpacked(300)
}

func TestScrape(t *testing.T) {
	m := New("1.2.3", sources(nil))
	use(m)
	got := scrape(t, m)
	for _, want := range []string{
		`crid_build_info{version="1.2.3"} 1`,
		`crid_rpc_duration_seconds_count{code="OK",rpc="Version"} 1`,
		`crid_rpc_in_flight{rpc="Version"} 0`,
		`crid_rpc_in_flight{rpc="GetContainerEvents"} 0`,
		`crid_rpc_in_flight{rpc="PullImage"} 1`,
		`crid_cni_call_duration_seconds_bucket{plugin="bridge",verb="ADD",le="0.01"} 0`,
		`crid_cni_call_duration_seconds_bucket{plugin="bridge",verb="ADD",le="0.05"} 1`,
		`crid_cni_call_duration_seconds_count{plugin="bridge",verb="ADD"} 2`,
		`crid_cni_call_failures_total{plugin="bridge",verb="ADD"} 1`,
		`crid_image_pull_duration_seconds_count{outcome="success"} 1`,
		`crid_image_pull_duration_seconds_count{outcome="canceled"} 1`,
		`crid_image_pull_duration_seconds_count{outcome="not_found"} 1`,
		`crid_image_pulled_bytes_total 100`,
		`crid_image_layers_unpacked_total 1`,
		`crid_image_layers_unpacked_bytes_total 300`,
		`crid_sandboxes{state="ready"} 3`,
		`crid_sandboxes{state="removing"} 0`,
		`crid_containers{state="ready"} 4`,
		`crid_event_subscribers 2`,
		`crid_event_subscribers_dropped_total 5`,
		`crid_images 6`,
		`crid_image_store_bytes 7`,
		`crid_monitor_up 1`,
		`crid_monitor_containers 8`,
		`crid_monitor_execs 9`,
		`crid_monitor_pid_namespaces 10`,
		`crid_monitor_log_written_bytes_total 11`,
		`crid_monitor_log_dropped_bytes_total 12`,
		`crid_monitor_log_limited_bytes_total 13`,
		`crid_monitor_log_limited_records_total 14`,
		`crid_monitor_log_write_errors_total 15`,
		`crid_monitor_restarts_total 16`,
		`# TYPE process_resident_memory_bytes gauge`,
		`# TYPE crid_monitor_process_resident_memory_bytes gauge`,
		`# TYPE go_goroutines gauge`,
	} {
		if !strings.Contains(got, want+"\n") {
			t.Errorf("a scrape lacks %s", want)
		}
	}
	if not := `crid_rpc_duration_seconds_count{code="Unavailable",rpc="GetContainerEvents"}`; strings.Contains(got, not) {
		t.Errorf("a scrape has %s, but a stream that lasts has no time", not)
	}
	if t.Failed() {
		t.Log(got)
	}
}

// Without a monitor there are no figures of one, not those of its last.
func TestScrapeWithoutMonitor(t *testing.T) {
	got := scrape(t, New("v", sources(errors.New("gone"))))
	if !strings.Contains(got, "crid_monitor_up 0\n") {
		t.Errorf("a scrape without a monitor does not say so:\n%s", got)
	}
	for _, not := range []string{"crid_monitor_containers", "crid_monitor_log", "crid_monitor_process_resident"} {
		if strings.Contains(got, not) {
			t.Errorf("a scrape without a monitor has %s", not)
		}
	}
}

// Names and units are as Prometheus's own linter wants them.
func TestConventions(t *testing.T) {
	m := New("v", sources(nil))
	use(m)
	problems, err := testutil.GatherAndLint(m.registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

var (
	documented = regexp.MustCompile("(?m)^\\| `(crid_\\w+)` \\| (\\w+) \\| ([^|]*) \\| ([^|]+) \\|$")
	labelName  = regexp.MustCompile("`(\\w+)`")
)

// TestDocumented: docs/metrics.md has exactly what is registered.
func TestDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, row := range documented.FindAllStringSubmatch(strings.ReplaceAll(string(page), "| |", "|  |"), -1) {
		var labels []string
		for _, l := range labelName.FindAllStringSubmatch(row[3], -1) {
			labels = append(labels, l[1])
		}
		slices.Sort(labels)
		want = append(want, fmt.Sprintf("%s %s %v: %s", row[1], row[2], labels, row[4]))
	}
	m := New("v", sources(nil))
	use(m)
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "crid_") || strings.HasPrefix(f.GetName(), "crid_monitor_process_") {
			continue
		}
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		slices.Sort(labels)
		got = append(got, fmt.Sprintf("%s %s %v: %s", f.GetName(), strings.ToLower(f.GetType().String()), labels, f.GetHelp()))
	}
	if len(got) < 20 || !slices.Equal(got, want) {
		t.Errorf("registered:\n%s\n\ndocumented, which must be the same and in this order:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func BenchmarkScrape(b *testing.B) {
	m := New("v", sources(nil))
	use(m)
	h := m.Handler()
	for b.Loop() {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/metrics", nil))
	}
}
