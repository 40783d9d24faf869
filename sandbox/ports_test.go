package sandbox_test

import (
	"strings"
	"testing"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/sandbox/config"
	"github.com/cridproject/crid/sandbox/sandboxtest"
)

func TestHostPortsAreOnesOwn(t *testing.T) {
	n := sandboxtest.New(t)
	pod := func(name string, p config.PortMapping) config.Sandbox {
		w := sandboxtest.Pod(name)
		p.ContainerPort = 80
		w.PortMappings = []config.PortMapping{p}
		return w
	}
	first, err := n.Manager.Run(t.Context(), pod("first", config.PortMapping{Protocol: "tcp", HostPort: 8080, HostIP: "192.0.2.1"}))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		p     config.PortMapping
		taken bool
	}{
		{"same", config.PortMapping{Protocol: "tcp", HostPort: 8080, HostIP: "192.0.2.1"}, true},
		{"same in other words", config.PortMapping{Protocol: "tcp", HostPort: 8080, HostIP: "::ffff:192.0.2.1"}, true},
		{"all addresses", config.PortMapping{Protocol: "tcp", HostPort: 8080}, true},
		{"all of the family", config.PortMapping{Protocol: "tcp", HostPort: 8080, HostIP: "0.0.0.0"}, true},
		{"all of the other family", config.PortMapping{Protocol: "tcp", HostPort: 8080, HostIP: "::"}, false},
		{"another address", config.PortMapping{Protocol: "tcp", HostPort: 8080, HostIP: "192.0.2.2"}, false},
		{"another protocol", config.PortMapping{Protocol: "udp", HostPort: 8080, HostIP: "192.0.2.1"}, false},
		{"another port", config.PortMapping{Protocol: "tcp", HostPort: 8081, HostIP: "192.0.2.1"}, false},
		{"not mapped", config.PortMapping{Protocol: "tcp", HostIP: "192.0.2.1"}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			id, err := n.Manager.Run(t.Context(), pod("second", tc.p))
			if !tc.taken {
				if err != nil {
					t.Fatalf("Run = %v, want success", err)
				}
				mustRemove(t, n, id)
				return
			}
			if !errkind.Is(err, errkind.Exists) || !strings.Contains(err.Error(), "8080/tcp") || !strings.Contains(err.Error(), first.Short()) {
				t.Errorf("Run = %v, want kind Exists, naming the port and the sandbox", err)
			}
		})
	}
	w := pod("first", config.PortMapping{Protocol: "tcp", HostPort: 8080, HostIP: "192.0.2.1"})
	if again, err := n.Manager.Run(t.Context(), w); err != nil || again != first {
		t.Errorf("Run again = %s, %v; want %s", again, err, first)
	}
	if err := n.Manager.StopSandbox(t.Context(), string(first)); err != nil {
		t.Fatal(err)
	}
	w.Attempt++
	next, err := n.Manager.Run(t.Context(), w)
	if err != nil {
		t.Fatalf("Run of the next attempt = %v", err)
	}
	mustRemove(t, n, next)
	mustRemove(t, n, first)
	mustBeClean(t, n)
}
