package spec

import (
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cridproject/crid/sandbox/config"
)

// What the kernel takes for CPU time, in µs, and for weights.
const (
	minCPUPeriod, maxCPUPeriod = 1_000, 1_000_000
	minCPUQuota                = 1_000
	minCPUShares, maxCPUShares = 2, 262_144
)

func resources(b *builder) error {
	r, err := Resources(b.Container.Resources, b.Host, b.privileged(), b.Devices)
	if err != nil {
		return err
	}
	b.Spec.Linux.Resources = r
	return nil
}

// Resources is the cgroup limits of a container, complete, as in its spec: what
// an update of a running container needs too. Field names in its errors begin
// with config.linux.resources.
func Resources(r config.Resources, h Host, privileged bool, devices []Device) (*specs.LinuxResources, error) {
	out := &specs.LinuxResources{Devices: deviceRules(privileged, devices)}
	for _, f := range []func(*specs.LinuxResources, config.Resources, Host) error{cpu, memory, hugePages, unified} {
		if err := f(out, r, h); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func cpu(out *specs.LinuxResources, r config.Resources, _ Host) error {
	c := &specs.LinuxCPU{Cpus: r.CpusetCPUs, Mems: r.CpusetMems}
	for _, set := range [...]struct{ field, list string }{{"cpuset_cpus", r.CpusetCPUs}, {"cpuset_mems", r.CpusetMems}} {
		if strings.Trim(set.list, "0123456789,-") != "" {
			return invalid(fieldResources+set.field, "%q is no list of numbers and ranges such as 0-3,8", set.list)
		}
	}
	if r.CPUPeriod != 0 {
		if r.CPUPeriod < minCPUPeriod || r.CPUPeriod > maxCPUPeriod {
			return invalid(fieldResources+"cpu_period", "%d µs is not between %d and %d", r.CPUPeriod, minCPUPeriod, maxCPUPeriod)
		}
		period := uint64(r.CPUPeriod)
		c.Period = &period
	}
	if r.CPUQuota > 0 {
		if r.CPUQuota < minCPUQuota {
			return invalid(fieldResources+"cpu_quota", "%d µs is less than the kernel's minimum of %d", r.CPUQuota, minCPUQuota)
		}
		c.Quota = &r.CPUQuota
	}
	switch {
	case r.CPUShares < 0:
		return invalid(fieldResources+"cpu_shares", "%d is negative", r.CPUShares)
	case r.CPUShares > 0:
		shares := uint64(min(max(r.CPUShares, minCPUShares), maxCPUShares))
		c.Shares = &shares
	}
	if *c != (specs.LinuxCPU{}) {
		out.CPU = c
	}
	return nil
}

// memory: a limit without a swap limit means no swap. On a node that cannot
// limit swap only the wish for none (which kubelet sends) is let through.
func memory(out *specs.LinuxResources, r config.Resources, h Host) error {
	limit, swap := r.MemoryLimit, r.MemorySwap
	switch {
	case limit < -1:
		return invalid(fieldResources+"memory_limit_in_bytes", "%d is negative", limit)
	case swap < -1:
		return invalid(fieldResources+"memory_swap_limit_in_bytes", "%d is negative", swap)
	case limit <= 0 && swap > 0:
		return invalid(fieldResources+"memory_swap_limit_in_bytes", "needs memory_limit_in_bytes beside it")
	case limit <= 0:
		return nil
	case swap > 0 && swap < limit:
		return invalid(fieldResources+"memory_swap_limit_in_bytes",
			"%d is less than memory_limit_in_bytes, %d, which it includes", swap, limit)
	}
	if swap == 0 {
		swap = limit
	}
	out.Memory = &specs.LinuxMemory{Limit: &limit}
	switch {
	case h.SwapAccounting:
		out.Memory.Swap = &swap
	case swap > limit:
		return invalid(fieldResources+"memory_swap_limit_in_bytes", "this node cannot limit swap; only the value of memory_limit_in_bytes is possible")
	}
	return nil
}

// hugePages: kubelet sends a limit for each size with every container, so a
// node without the controller leaves them out.
func hugePages(out *specs.LinuxResources, r config.Resources, h Host) error {
	if !h.hasController("hugetlb") {
		return nil
	}
	for _, size := range slices.Sorted(maps.Keys(r.HugepageMax)) {
		if len(h.HugePageSizes) > 0 && !slices.Contains(h.HugePageSizes, size) {
			return invalid(fieldResources+"hugepage_limits", "no huge pages of %q on this node, only of %s",
				size, strings.Join(h.HugePageSizes, ", "))
		}
		out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size, Limit: r.HugepageMax[size]})
	}
	return nil
}

// unified is raw cgroup v2 files; what it says wins over the other fields.
func unified(out *specs.LinuxResources, r config.Resources, h Host) error {
	if len(r.Unified) == 0 {
		return nil
	}
	if !h.CgroupUnified {
		return invalid(fieldResources+"unified", "this node has no cgroup v2")
	}
	for _, name := range slices.Sorted(maps.Keys(r.Unified)) {
		if name == "" || strings.Contains(name, "/") || !strings.Contains(name, ".") {
			return invalid(fieldResources+"unified", "%q is no name of a cgroup file such as memory.high", name)
		}
	}
	out.Unified = maps.Clone(r.Unified)
	return nil
}
