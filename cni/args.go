package cni

import (
	"math"
	"math/big"
	"strings"

	"github.com/cridproject/crid/internal/errkind"
)

// Annotations of a pod that limit its bandwidth; values for ParseBandwidth.
const (
	IngressAnnotation = "kubernetes.io/ingress-bandwidth"
	EgressAnnotation  = "kubernetes.io/egress-bandwidth"
)

// The capabilities that attachments offer. A plugin is told of those that its
// configuration asks for.
const (
	capPorts       = "portMappings"
	capBandwidth   = "bandwidth"
	capDNS         = "dns"
	capCgroupPath  = "cgroupPath"
	capAnnotations = "io.kubernetes.cri.pod-annotations"
)

type portMapping struct {
	HostPort      uint16 `json:"hostPort"`
	ContainerPort uint16 `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

type bandwidth struct {
	IngressRate  uint64 `json:"ingressRate,omitempty"`
	IngressBurst uint64 `json:"ingressBurst,omitempty"`
	EgressRate   uint64 `json:"egressRate,omitempty"`
	EgressBurst  uint64 `json:"egressBurst,omitempty"`
}

type dns struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// capabilityArgs is the runtimeConfig of plugins, by capability.
func capabilityArgs(a Attachment) map[string]any {
	args := map[string]any{}
	var ports []portMapping
	for _, p := range a.Ports {
		if p.Host == 0 {
			continue
		}
		ports = append(ports, portMapping{p.Host, p.Container, strings.ToLower(p.Protocol), p.HostIP})
	}
	if len(ports) > 0 {
		args[capPorts] = ports
	}
	if a.IngressBits > 0 || a.EgressBits > 0 {
		// The annotations know no burst. This one, as other runtimes pass it, is
		// half a gigabyte: the largest number that every plugin takes.
		b := bandwidth{IngressRate: a.IngressBits, EgressRate: a.EgressBits}
		if a.IngressBits > 0 {
			b.IngressBurst = math.MaxUint32
		}
		if a.EgressBits > 0 {
			b.EgressBurst = math.MaxUint32
		}
		args[capBandwidth] = b
	}
	if a.DNS != nil {
		args[capDNS] = dns(*a.DNS)
	}
	if a.CgroupPath != "" {
		args[capCgroupPath] = a.CgroupPath
	}
	if len(a.Annotations) > 0 {
		args[capAnnotations] = a.Annotations
	}
	return args
}

// Limits of a bandwidth, in bits per second, as Kubernetes sets them.
const (
	minBandwidth = 1_000
	maxBandwidth = 1_000_000_000_000_000
)

// suffixes of a Kubernetes quantity, longest first where one ends in another.
var suffixes = []struct {
	s    string
	base int64
	exp  int64
}{
	{"Ki", 1024, 1},
	{"Mi", 1024, 2},
	{"Gi", 1024, 3},
	{"Ti", 1024, 4},
	{"Pi", 1024, 5},
	{"Ei", 1024, 6},
	{"k", 1000, 1},
	{"M", 1000, 2},
	{"G", 1000, 3},
	{"T", 1000, 4},
	{"P", 1000, 5},
	{"E", 1000, 6},
}

// ParseBandwidth is the value of a bandwidth annotation, a Kubernetes quantity
// such as "10M" or "1.5Gi", in bits per second. "" is 0: no limit. Errors have
// kind Invalid.
func ParseBandwidth(s string) (uint64, error) {
	if s == "" {
		return 0, nil
	}
	number, factor := s, big.NewInt(1)
	for _, x := range suffixes {
		if rest, ok := strings.CutSuffix(s, x.s); ok {
			number, factor = rest, new(big.Int).Exp(big.NewInt(x.base), big.NewInt(x.exp), nil)
			break
		}
	}
	// big.Rat also takes fractions, other bases and exponents of any size. Of
	// these a quantity has only the decimal exponent, without a suffix.
	allowed := "0123456789.+-"
	if number == s {
		allowed += "eE"
	}
	bad := errkind.Errorf(errkind.Invalid, "bandwidth %q: want a number of bits per second such as 500k, 10M or 1G", s)
	if len(number) > 24 || strings.Trim(number, allowed) != "" {
		return 0, bad
	}
	if i := strings.IndexAny(number, "eE"); i >= 0 && len(number)-i > 4 {
		return 0, bad
	}
	r, ok := new(big.Rat).SetString(number)
	if !ok {
		return 0, bad
	}
	r.Mul(r, new(big.Rat).SetInt(factor))
	if r.Cmp(big.NewRat(minBandwidth, 1)) < 0 || r.Cmp(big.NewRat(maxBandwidth, 1)) > 0 {
		return 0, errkind.Errorf(errkind.Invalid, "bandwidth %q: must be between 1k and 1P bits per second", s)
	}
	return new(big.Int).Quo(r.Num(), r.Denom()).Uint64(), nil
}
