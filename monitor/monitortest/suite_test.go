package monitortest

import (
	"testing"

	"github.com/cridproject/crid/monitor"
)

func TestFake(t *testing.T) {
	Suite(t, func(t *testing.T) Env {
		fake := New(t, Options{Container: Busybox, Exec: BusyboxExec})
		return Env{
			Connect: func(_ *testing.T, onExit func(monitor.Exit)) Monitor {
				return fake.Connect(monitor.ClientOptions{OnExit: onExit})
			},
			Container: Container,
			Hold:      func(_ *testing.T, id string) monitor.HoldRequest { return monitor.HoldRequest{ID: id} },
			Crash:     func(*testing.T) { fake.Crash() },
		}
	})
}
