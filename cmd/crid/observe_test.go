package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"

	"github.com/cridproject/crid/internal/metrics"
	"github.com/cridproject/crid/internal/testutil"
)

func TestSignals(t *testing.T) {
	ctx, cancel := context.WithCancel(klog.NewContext(t.Context(), ktesting.NewLogger(t, ktesting.NewConfig())))
	defer cancel()
	signals := make(chan os.Signal) // without room: what is taken has been answered before the next is
	var out strings.Builder
	done := make(chan struct{})
	go func() {
		defer close(done)
		answerSignals(ctx, signals, &out)
	}()
	signals <- syscall.SIGUSR1
	signals <- syscall.SIGHUP
	cancel()
	<-done
	if got := out.String(); !strings.Contains(got, "TestSignals") || !strings.Contains(got, "answerSignals") || strings.Count(got, "goroutine ") < 2 {
		t.Errorf("SIGUSR1 writes %q, want the stacks of all goroutines", got)
	}

	out.Reset()
	writeStacks(&out, make([]byte, 100))
	if got := out.String(); len(got) < 100 || len(got) > 300 || !strings.Contains(got, "cut after 100 bytes") {
		t.Errorf("with room for 100 bytes %q is written", got)
	}
}

// What those who look into a running crid get of the admin socket.
func TestDebugging(t *testing.T) {
	testutil.LeakCheck(t)
	path := filepath.Join(socketDir(t), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{}
	server := newAdminServer(klog.NewContext(t.Context(), klog.Background()), &archives{}, metrics.New("v", metrics.Sources{
		Sandboxes: func() map[string]int { return nil }, Containers: func() map[string]int { return nil },
		Subscribers: func() (int, uint64) { return 0, 0 }, Images: func() (int, uint64) { return 0, 0 },
		MonitorPID: d.link.pid, MonitorRestarts: d.link.restarts.Load,
		Monitor: func(ctx context.Context) (metrics.Monitor, error) {
			_, err := d.link.figures(ctx)
			return metrics.Monitor{}, err
		},
	}))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	client := newAdminClient(path)
	for page, want := range map[string]string{
		"/metrics":                       "crid_monitor_up 0\n",
		"/debug/pprof/":                  "goroutine",
		"/debug/pprof/goroutine?debug=2": "TestDebugging",
		"/debug/pprof/heap":              "\x1f\x8b", // gzip
		"/debug/pprof/cmdline":           filepath.Base(os.Args[0]),
	} {
		resp, err := client.http.Get("http://crid" + page)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
			t.Errorf("GET %s = %s, %v, %d bytes without %q", page, resp.Status, err, len(body), want)
		}
	}
	client.http.CloseIdleConnections()
	_ = server.Close()
	<-done
}
