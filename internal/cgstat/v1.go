package cgstat

// memoryStatV1 also fills in d, if it is not nil. Keys that begin with total_ count
// what is below the cgroup, too.
func (r *reader) memoryStatV1(t *Tree, u *Usage, d *Details, parts Parts) {
	var inactiveFile, swap Value
	pairs(r.file(t.memory, "memory.stat"), func(key []byte, v Value) {
		switch string(key) {
		case "total_rss":
			u.RSSBytes = v
		case "total_inactive_file":
			inactiveFile = v
		case "total_pgfault":
			u.PageFaults = v
		case "total_pgmajfault":
			u.MajorPageFaults = v
		case "total_swap": // not there without accounting of swap
			swap = v
		}
		if d == nil {
			return
		}
		switch string(key) {
		case "total_cache":
			d.CacheBytes = v
		case "total_mapped_file":
			d.MappedFileBytes = v
		}
	})
	u.MemoryBytes = number(r.file(t.memory, "memory.usage_in_bytes"))
	u.WorkingSetBytes = u.MemoryBytes.Sub(inactiveFile)
	u.MemoryLimitBytes = limit(r.file(t.memory, "memory.limit_in_bytes"))
	if parts&Swap == 0 {
		return
	}
	u.SwapBytes = swap
	both := limit(r.file(t.memory, "memory.memsw.limit_in_bytes"))
	u.SwapLimitBytes = both.Sub(u.MemoryLimitBytes)
	if d != nil {
		d.SwapLimitFileBytes = both
	}
}

func (r *reader) usageV1(t *Tree, u *Usage, parts Parts) {
	u.CPUNanoseconds = number(r.only(t.cpuacct, "cpuacct.usage"))
	if parts&Tasks != 0 {
		u.Tasks = number(r.only(t.pids, "pids.current"))
	}
	r.pressure(t, u)
}

func (r *reader) detailsV1(t *Tree, d *Details) {
	d.UserNanoseconds = number(r.file(t.cpuacct, "cpuacct.usage_user"))
	d.SystemNanoseconds = number(r.file(t.cpuacct, "cpuacct.usage_sys"))
	pairs(r.file(t.cpu, "cpu.stat"), func(key []byte, v Value) {
		switch string(key) {
		case "nr_periods":
			d.Periods = v
		case "nr_throttled":
			d.ThrottledPeriods = v
		case "throttled_time":
			d.ThrottledNanoseconds = v
		}
	})
	d.MaxMemoryBytes = number(r.file(t.memory, "memory.max_usage_in_bytes"))
	d.KernelBytes = number(r.file(t.memory, "memory.kmem.usage_in_bytes"))
	d.MemoryFailures = number(r.file(t.memory, "memory.failcnt"))
	pairs(r.file(t.memory, "memory.oom_control"), func(key []byte, v Value) {
		if string(key) == "oom_kill" {
			d.OOMKills = v
		}
	})
	d.ReservedMemoryBytes = limit(r.file(t.memory, "memory.soft_limit_in_bytes"))
	d.TasksMax = limit(r.file(t.pids, "pids.max"))
	ds := devices(d.Devices)
	ds.addV1(r.file(t.blkio, "blkio.throttle.io_service_bytes_recursive"), true)
	ds.addV1(r.file(t.blkio, "blkio.throttle.io_serviced_recursive"), false)
	d.Devices = ds
}
