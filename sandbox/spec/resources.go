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
	r, err := Resources(fieldResources, b.Container.Resources, b.Host)
	if err != nil {
		return err
	}
	r.Devices = deviceRules(b.privileged(), b.Devices)
	b.Spec.Linux.Resources = r
	return nil
}

// Resources is the cgroup limits of a container, complete but for devices: what
// an update of a running container needs. A limit of -1 is there, as -1, to lift
// one that was. field is what the names of fields in errors begin with, with a dot.
func Resources(field string, r config.Resources, h Host) (*specs.LinuxResources, error) {
	b := resourceBuilder{out: &specs.LinuxResources{}, field: field, r: r, h: h}
	for _, f := range []func() error{b.cpu, b.memory, b.hugePages, b.unified} {
		if err := f(); err != nil {
			return nil, err
		}
	}
	return b.out, nil
}

type resourceBuilder struct {
	out   *specs.LinuxResources
	field string
	r     config.Resources
	h     Host
}

func (b *resourceBuilder) invalid(field, format string, args ...any) error {
	return invalid(b.field+field, format, args...)
}

func (b *resourceBuilder) cpu() error {
	r := &b.r
	c := &specs.LinuxCPU{Cpus: r.CpusetCPUs, Mems: r.CpusetMems}
	for _, set := range [...]struct{ field, list string }{{"cpuset_cpus", r.CpusetCPUs}, {"cpuset_mems", r.CpusetMems}} {
		if strings.Trim(set.list, "0123456789,-") != "" {
			return b.invalid(set.field, "%q is no list of numbers and ranges such as 0-3,8", set.list)
		}
		if set.list != "" && !b.h.hasController("cpuset") {
			return b.invalid(set.field, "this node has no cpuset controller")
		}
	}
	if r.CPUPeriod != 0 {
		if r.CPUPeriod < minCPUPeriod || r.CPUPeriod > maxCPUPeriod {
			return b.invalid("cpu_period", "%d µs is not between %d and %d", r.CPUPeriod, minCPUPeriod, maxCPUPeriod)
		}
		period := uint64(r.CPUPeriod)
		c.Period = &period
	}
	switch {
	case r.CPUQuota < 0:
		none := int64(-1)
		c.Quota = &none
	case r.CPUQuota > 0 && r.CPUQuota < minCPUQuota:
		return b.invalid("cpu_quota", "%d µs is less than the kernel's minimum of %d", r.CPUQuota, minCPUQuota)
	case r.CPUQuota > 0:
		c.Quota = &r.CPUQuota
	}
	switch {
	case r.CPUShares < 0:
		return b.invalid("cpu_shares", "%d is negative", r.CPUShares)
	case r.CPUShares > 0:
		shares := uint64(min(max(r.CPUShares, minCPUShares), maxCPUShares))
		c.Shares = &shares
	}
	if *c != (specs.LinuxCPU{}) {
		b.out.CPU = c
	}
	return nil
}

// memory: a limit without a swap limit means no swap. On a node that cannot
// limit swap only the wish for none (which kubelet sends) is let through.
func (b *resourceBuilder) memory() error {
	limit, swap := b.r.MemoryLimit, b.r.MemorySwap
	switch {
	case limit < -1:
		return b.invalid("memory_limit_in_bytes", "%d is negative", limit)
	case swap < -1:
		return b.invalid("memory_swap_limit_in_bytes", "%d is negative", swap)
	case limit <= 0 && swap > 0:
		return b.invalid("memory_swap_limit_in_bytes", "needs memory_limit_in_bytes beside it")
	case limit == 0:
		return nil
	case swap > 0 && swap < limit:
		return b.invalid("memory_swap_limit_in_bytes", "%d is less than memory_limit_in_bytes, %d, which it includes", swap, limit)
	}
	if swap == 0 || limit == -1 {
		swap = limit
	}
	b.out.Memory = &specs.LinuxMemory{Limit: &limit}
	switch {
	case b.h.SwapAccounting:
		b.out.Memory.Swap = &swap
	case swap > limit:
		return b.invalid("memory_swap_limit_in_bytes", "this node cannot limit swap; only the value of memory_limit_in_bytes is possible")
	}
	return nil
}

// hugePages: kubelet sends a limit for each size with every container, so a
// node without the controller leaves them out.
func (b *resourceBuilder) hugePages() error {
	for _, size := range slices.Sorted(maps.Keys(b.r.HugepageMax)) {
		if len(b.h.HugePageSizes) > 0 && !slices.Contains(b.h.HugePageSizes, size) {
			return b.invalid("hugepage_limits", "no huge pages of %q on this node, only of %s",
				size, strings.Join(b.h.HugePageSizes, ", "))
		}
		if !b.h.hasController("hugetlb") {
			continue
		}
		b.out.HugepageLimits = append(b.out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size, Limit: b.r.HugepageMax[size]})
	}
	return nil
}

// unified is raw cgroup v2 files; what it says wins over the other fields.
func (b *resourceBuilder) unified() error {
	if len(b.r.Unified) == 0 {
		return nil
	}
	if !b.h.CgroupUnified {
		return b.invalid("unified", "this node has no cgroup v2")
	}
	for _, name := range slices.Sorted(maps.Keys(b.r.Unified)) {
		if name == "" || strings.Contains(name, "/") || !strings.Contains(name, ".") {
			return b.invalid("unified", "%q is no name of a cgroup file such as memory.high", name)
		}
	}
	b.out.Unified = maps.Clone(b.r.Unified)
	return nil
}

// Actual is r with what the kernel has in place of what was asked for. A swap
// limit is there also when it follows from the memory limit.
func Actual(r config.Resources, got *specs.LinuxResources, oomScoreAdj *int) config.Resources {
	if oomScoreAdj != nil {
		r.OOMScoreAdj = int64(*oomScoreAdj)
	}
	if c := got.CPU; c != nil {
		set(&r.CPUQuota, c.Quota)
		setCount(&r.CPUPeriod, c.Period)
		setCount(&r.CPUShares, c.Shares)
		r.CpusetCPUs, r.CpusetMems = c.Cpus, c.Mems
	}
	if m := got.Memory; m != nil {
		set(&r.MemoryLimit, m.Limit)
		set(&r.MemorySwap, m.Swap)
	}
	r.HugepageMax = maps.Clone(r.HugepageMax)
	for _, h := range got.HugepageLimits {
		if _, asked := r.HugepageMax[h.Pagesize]; asked {
			r.HugepageMax[h.Pagesize] = h.Limit
		}
	}
	if got.Unified != nil {
		r.Unified = maps.Clone(got.Unified)
	}
	return r
}

func set(to, from *int64) {
	if from != nil {
		*to = *from
	}
}

func setCount(to *int64, from *uint64) {
	if from != nil {
		*to = int64(*from)
	}
}
