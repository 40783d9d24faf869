package config

import "maps"

// Merge is r with change over it: what change leaves zero stays, and of maps each
// key for itself. Unless change says something else, another memory limit leaves
// as much swap beside it as there was, and lifting it lifts that of memory and swap
// too.
func (r Resources) Merge(change Resources) Resources {
	if r.MemoryLimit > 0 && r.MemorySwap > 0 && change.MemoryLimit > 0 && change.MemorySwap == 0 {
		r.MemorySwap = change.MemoryLimit + (r.MemorySwap - r.MemoryLimit)
	}
	for _, f := range [...]struct {
		to   *int64
		with int64
	}{
		{&r.CPUPeriod, change.CPUPeriod},
		{&r.CPUQuota, change.CPUQuota},
		{&r.CPUShares, change.CPUShares},
		{&r.MemoryLimit, change.MemoryLimit},
		{&r.MemorySwap, change.MemorySwap},
		{&r.OOMScoreAdj, change.OOMScoreAdj},
	} {
		if f.with != 0 {
			*f.to = f.with
		}
	}
	if change.MemoryLimit == -1 && change.MemorySwap == 0 {
		r.MemorySwap = 0
	}
	if change.CpusetCPUs != "" {
		r.CpusetCPUs = change.CpusetCPUs
	}
	if change.CpusetMems != "" {
		r.CpusetMems = change.CpusetMems
	}
	r.HugepageMax = mergeMaps(r.HugepageMax, change.HugepageMax)
	r.Unified = mergeMaps(r.Unified, change.Unified)
	return r
}

func mergeMaps[V any](a, b map[string]V) map[string]V {
	if len(b) == 0 {
		return a
	}
	both := make(map[string]V, len(a)+len(b))
	maps.Copy(both, a)
	maps.Copy(both, b)
	return both
}
