package sandbox

import (
	"net/netip"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/sandbox/config"
)

// checkPorts refuses a host port that another sandbox has. Network plugins do not
// look: they add their rules behind the other's, which then says nothing and never
// gets a packet.
//
// Preconditions: m.mu is held.
func (m *Manager) checkPorts(w *config.Sandbox) error {
	if w.HostNetwork() {
		return nil // its ports are the node's, whatever the request maps
	}
	for i, want := range w.PortMappings {
		if want.HostPort == 0 {
			continue
		}
		for _, s := range m.sandboxes {
			// One that is not ready has been taken off the network, or is about to be;
			// an older one of the same pod as well.
			if s.config.HostNetwork() || *s.state.Load() == SandboxNotReady || samePod(w, &s.config) {
				continue
			}
			for _, has := range s.config.PortMappings {
				if !samePort(want, has) {
					continue
				}
				return errkind.Errorf(errkind.Exists, "config.port_mappings[%d]: host port %d/%s is taken by sandbox %s, of pod %s",
					i, want.HostPort, want.Protocol, s.id.Short(), podRef(&s.config))
			}
		}
	}
	return nil
}

func samePod(a, b *config.Sandbox) bool {
	return a.UID == b.UID && a.Name == b.Name && a.Namespace == b.Namespace
}

// samePort reports whether two mappings want the same packets.
func samePort(a, b config.PortMapping) bool {
	return a.HostPort == b.HostPort && a.Protocol == b.Protocol && overlap(a.HostIP, b.HostIP)
}

// overlap of two host addresses; an empty one means all of the node, an
// unspecified one, such as 0.0.0.0, all of its family.
func overlap(a, b string) bool {
	x, errA := netip.ParseAddr(a)
	y, errB := netip.ParseAddr(b)
	if errA != nil || errB != nil {
		return true
	}
	x, y = x.Unmap(), y.Unmap()
	return x == y || x.Is4() == y.Is4() && (x.IsUnspecified() || y.IsUnspecified())
}
