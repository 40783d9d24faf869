package cri

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/sandbox/config"
)

// cpuQuotaMax is the kernel's own limit, in µs. systemd would let more pass.
const cpuQuotaMax = 1<<44 - 1

var (
	cpusetList = regexp.MustCompile(`^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$`)
	pageSize   = regexp.MustCompile(`^[1-9][0-9]*[KMGT]B$`)
	cgroupFile = regexp.MustCompile(`^[a-z0-9_]+(\.[A-Za-z0-9_-]+)+$`)
)

// resources decodes limits; nil limits nothing. The kernel has the last word on
// what is possible; here is refused what no kernel takes.
func (d *decoder) resources(field string, r *v1.LinuxContainerResources) config.Resources {
	out := config.Resources{
		CPUPeriod:   r.GetCpuPeriod(),
		CPUQuota:    r.GetCpuQuota(),
		CPUShares:   r.GetCpuShares(),
		MemoryLimit: r.GetMemoryLimitInBytes(),
		MemorySwap:  r.GetMemorySwapLimitInBytes(),
		OOMScoreAdj: r.GetOomScoreAdj(),
		CpusetCPUs:  r.GetCpusetCpus(),
		CpusetMems:  r.GetCpusetMems(),
		HugepageMax: d.hugepages(field, r.GetHugepageLimits()),
		Unified:     d.unified(field, r.GetUnified()),
	}
	if out.CPUPeriod < 0 {
		d.reject(field+".cpu_period", "is %d, must not be negative", out.CPUPeriod)
	}
	if out.CPUQuota > cpuQuotaMax {
		d.reject(field+".cpu_quota", "is %d µs, more than the kernel takes, %d", out.CPUQuota, int64(cpuQuotaMax))
	}
	if out.CPUShares < 0 {
		d.reject(field+".cpu_shares", "is %d, must not be negative", out.CPUShares)
	}
	if out.OOMScoreAdj < -1000 || out.OOMScoreAdj > 1000 {
		d.reject(field+".oom_score_adj", "is %d, must be from -1000 to 1000", out.OOMScoreAdj)
	}
	if out.MemoryLimit < -1 {
		d.reject(field+".memory_limit_in_bytes", "is %d, must not be negative, or -1 for no limit", out.MemoryLimit)
	}
	switch {
	case out.MemorySwap < -1:
		d.reject(field+".memory_swap_limit_in_bytes", "is %d, must not be negative, or -1 for no limit", out.MemorySwap)
	case out.MemorySwap > 0 && out.MemorySwap < out.MemoryLimit:
		d.reject(field+".memory_swap_limit_in_bytes", "is %d, the sum of memory and swap, and less than memory_limit_in_bytes", out.MemorySwap)
	}
	d.cpuset(field+".cpuset_cpus", out.CpusetCPUs)
	d.cpuset(field+".cpuset_mems", out.CpusetMems)
	return out
}

func (d *decoder) cpuset(field, set string) {
	if set != "" && !cpusetList.MatchString(set) {
		d.reject(field, "%q is no list such as 0-3,5", set)
	}
}

// hugepages keeps limits of 0: kubelet sends one for every size that the pod
// must not use.
func (d *decoder) hugepages(field string, in []*v1.HugepageLimit) map[string]uint64 {
	if len(in) == 0 {
		return nil
	}
	out := make(map[string]uint64, len(in))
	for i, h := range in {
		at := at(field+".hugepage_limits", i)
		size := h.GetPageSize()
		if !pageSize.MatchString(size) {
			d.reject(at+".page_size", "%q is no page size such as 2MB", size)
		}
		if _, twice := out[size]; twice {
			d.reject(at+".page_size", "%q is there twice", size)
		}
		out[size] = h.GetLimit()
	}
	return out
}

// unified checks that each key is the name of a file in the container's cgroup,
// not a path that leads elsewhere.
func (d *decoder) unified(field string, in map[string]string) map[string]string {
	for _, key := range slices.Sorted(maps.Keys(in)) {
		at := field + ".unified[" + strconv.Quote(key) + "]"
		if !cgroupFile.MatchString(key) || strings.HasPrefix(key, "cgroup.") {
			d.reject(at, "is no cgroup v2 file that holds a limit")
		}
		d.check(at, badArg(in[key]))
	}
	return in
}
