package server

import (
	"context"
	"os/exec"
	"testing"
	"time"

	"github.com/cridproject/crid/internal/testutil"
	"github.com/cridproject/crid/monitor"
	"github.com/cridproject/crid/monitor/monitortest"
)

// TestSuite is the behaviour that the fake shows too, of a monitor that is a
// process and can be killed.
func TestSuite(t *testing.T) {
	testutil.RequireRoot(t)
	monitortest.Suite(t, func(t *testing.T) monitortest.Env {
		n := prepareNode(t)
		var cmd *exec.Cmd
		stop := func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
		cmd = n.startMonitor()
		t.Cleanup(func() { stop() })
		return monitortest.Env{
			Connect: func(t *testing.T, onExit func(monitor.Exit)) monitortest.Monitor {
				ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
				defer cancel()
				c, err := monitor.Connect(ctx, n.socket(), monitor.ClientOptions{OnExit: onExit})
				if err != nil {
					t.Fatal(err)
				}
				return c
			},
			Container: func(t *testing.T, id string, args ...string) monitor.CreateRequest {
				r := n.request(id, n.spec(args...))
				r.LogPath = ""
				return r
			},
			Hold: func(_ *testing.T, id string) monitor.HoldRequest {
				return n.holdRequest(id)
			},
			Crash: func(*testing.T) {
				stop()
				cmd = n.startMonitor()
			},
		}
	})
}
