package cgstat

import "time"

const microsecond = uint64(time.Microsecond)

// memoryStatV2 also fills in d, if it is not nil.
func (r *reader) memoryStatV2(t *Tree, u *Usage, d *Details, parts Parts) {
	var inactiveFile, kernel Value
	pairs(r.file(t.v2, "memory.stat"), func(key []byte, v Value) {
		switch string(key) {
		case "anon":
			u.RSSBytes = v
		case "inactive_file":
			inactiveFile = v
		case "pgfault":
			u.PageFaults = v
		case "pgmajfault":
			u.MajorPageFaults = v
		}
		if d == nil {
			return
		}
		switch string(key) {
		case "file":
			d.CacheBytes = v
		case "file_mapped":
			d.MappedFileBytes = v
		case "kernel": // Linux 5.18
			d.KernelBytes = v
		case "kernel_stack", "pagetables", "percpu", "slab":
			kernel = kernel.Add(v)
		}
	})
	if d != nil && !d.KernelBytes.Known {
		d.KernelBytes = kernel
	}
	u.MemoryBytes = number(r.file(t.v2, "memory.current"))
	u.WorkingSetBytes = u.MemoryBytes.Sub(inactiveFile)
	u.MemoryLimitBytes = limit(r.file(t.v2, "memory.max"))
	if parts&Swap != 0 {
		u.SwapBytes = number(r.file(t.v2, "memory.swap.current"))
		u.SwapLimitBytes = limit(r.file(t.v2, "memory.swap.max"))
	}
}

// cpuStatV2: the file is there without the controller, too.
func (r *reader) cpuStatV2(t *Tree, u *Usage, d *Details) {
	pairs(r.file(t.v2, "cpu.stat"), func(key []byte, v Value) {
		if string(key) == "usage_usec" {
			u.CPUNanoseconds = v.times(microsecond)
		}
		if d == nil {
			return
		}
		switch string(key) {
		case "user_usec":
			d.UserNanoseconds = v.times(microsecond)
		case "system_usec":
			d.SystemNanoseconds = v.times(microsecond)
		case "nr_periods":
			d.Periods = v
		case "nr_throttled":
			d.ThrottledPeriods = v
		case "throttled_usec":
			d.ThrottledNanoseconds = v.times(microsecond)
		}
	})
}

func (r *reader) usageV2(t *Tree, u *Usage, parts Parts) {
	if parts&Tasks != 0 {
		u.Tasks = number(r.file(t.v2, "pids.current"))
	}
	r.pressure(t, u)
}

// pressure is of version 2 wherever that is mounted.
func (r *reader) pressure(t *Tree, u *Usage) {
	u.CPUPressure = pressure(r.file(t.v2, "cpu.pressure"))
	u.MemoryPressure = pressure(r.file(t.v2, "memory.pressure"))
	u.IOPressure = pressure(r.file(t.v2, "io.pressure"))
}

func (r *reader) detailsV2(t *Tree, d *Details) {
	d.MaxMemoryBytes = number(r.file(t.v2, "memory.peak")) // Linux 5.19
	pairs(r.file(t.v2, "memory.events"), func(key []byte, v Value) {
		switch string(key) {
		case "max":
			d.MemoryFailures = v
		case "oom_kill":
			d.OOMKills = v
		}
	})
	d.ReservedMemoryBytes = limit(r.file(t.v2, "memory.min"))
	d.SwapLimitFileBytes = d.SwapLimitBytes
	d.TasksMax = limit(r.file(t.v2, "pids.max"))
	ds := devices(d.Devices)
	ds.addV2(r.file(t.v2, "io.stat"))
	d.Devices = ds
}

// hugePages: both versions count the same, in files of different names.
func (r *reader) hugePages(t *Tree, d *Details) {
	point, now, most := t.hugetlb, ".usage_in_bytes", ".max_usage_in_bytes"
	if t.unified {
		point, now, most = t.v2, ".current", ""
	}
	for _, size := range t.pageSizes {
		h := HugePages{Size: size, Bytes: number(r.file(point, "hugetlb."+size+now))}
		if most != "" {
			h.MaxBytes = number(r.file(point, "hugetlb."+size+most))
		}
		if h.Bytes.Known {
			d.HugePages = append(d.HugePages, h)
		}
	}
}
