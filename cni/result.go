package cni

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/cridproject/crid/internal/errkind"
)

// newResult reads the addresses of the interface name out of what the last
// plugin of a chain answered.
func newResult(raw types.Result, name string) (Result, error) {
	if raw == nil {
		return Result{}, errkind.Errorf(errkind.Unavailable, "the plugins answered nothing")
	}
	r, err := current.NewResultFromResult(raw)
	if err != nil {
		return Result{}, errkind.Errorf(errkind.Unavailable, "the plugins' answer: %w", err)
	}
	var out Result
	for _, ip := range r.IPs {
		// Results of old specifications, and of plugins that describe only their
		// interface on the node, do not say which interface an address is on.
		if ip.Interface != nil {
			i := *ip.Interface
			if i < 0 || i >= len(r.Interfaces) {
				return Result{}, errkind.Errorf(errkind.Unavailable,
					"the plugins' answer: address %v is on interface %d of %d", ip.Address.IP, i, len(r.Interfaces))
			}
			if r.Interfaces[i].Name != name {
				continue
			}
		}
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			return Result{}, errkind.Errorf(errkind.Unavailable, "the plugins' answer: address %v is not valid", ip.Address)
		}
		if addr = addr.Unmap(); !slices.Contains(out.IPs, addr) {
			out.IPs = append(out.IPs, addr)
		}
	}
	if len(out.IPs) == 0 {
		return Result{}, errkind.Errorf(errkind.Unavailable, "the plugins gave interface %s no address", name)
	}
	if out.Raw, err = json.Marshal(raw); err != nil {
		return Result{}, fmt.Errorf("the plugins' answer: %w", err)
	}
	return out, nil
}
