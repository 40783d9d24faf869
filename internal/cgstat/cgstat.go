// Package cgstat reads what the kernel counts of a cgroup: version 1, version 2,
// and the pressure that version 2 counts beside version 1.
//
// It changes nothing and keeps nothing: no descriptor and no figure outlives a
// call. Figures that the kernel at hand does not have are not known; a Value says so,
// rather than being 0. Methods of Tree may be called concurrently.
package cgstat

import "time"

// Value is a figure that the kernel may not have.
type Value struct {
	N     uint64
	Known bool
}

// Known is a figure that is known.
func Known(n uint64) Value { return Value{n, true} }

// Sub is v less w, and 0 where that would be negative: two files are not read at
// the same moment.
func (v Value) Sub(w Value) Value {
	switch {
	case !v.Known || !w.Known:
		return Value{}
	case v.N < w.N:
		return Known(0)
	}
	return Known(v.N - w.N)
}

// Add is the sum of what is known of both.
func (v Value) Add(w Value) Value {
	return Value{v.N + w.N, v.Known || w.Known}
}

// Usage is what a cgroup uses, with all that is below it.
type Usage struct {
	CPUNanoseconds Value // since it was made, over all CPUs

	MemoryBytes      Value // all of it, page cache included
	WorkingSetBytes  Value // less what can be dropped at once: file pages not used lately
	RSSBytes         Value // anonymous memory
	PageFaults       Value // minor ones and major ones
	MajorPageFaults  Value
	MemoryLimitBytes Value // not known means no limit
	SwapBytes        Value // with part Swap
	SwapLimitBytes   Value // with part Swap: of swap alone; not known means no limit

	Tasks Value // with part Tasks: processes and threads

	CPUPressure, MemoryPressure, IOPressure Pressure
}

// Pressure is how long tasks have waited for a resource.
type Pressure struct {
	Known      bool
	Some, Full Stall // at least one task waited; all of them did
}

// Stall is one line of a pressure file.
type Stall struct {
	Total                time.Duration
	Avg10, Avg60, Avg300 float64 // per cent of the last 10, 60, 300 seconds
}

// Details is everything that is known of a cgroup. It is read with metrics only.
type Details struct {
	Usage

	UserNanoseconds, SystemNanoseconds Value // CPU
	Periods, ThrottledPeriods          Value // of the CPU quota
	ThrottledNanoseconds               Value

	CacheBytes, KernelBytes, MappedFileBytes Value // memory
	MaxMemoryBytes                           Value // the most that there was
	MemoryFailures                           Value // how often the limit was hit
	OOMKills                                 Value
	ReservedMemoryBytes                      Value // what is spared under pressure: soft limit, memory.min
	SwapLimitFileBytes                       Value // as in the kernel's file: in version 1, of memory and swap together

	TasksMax Value // not known means no limit

	Devices   []Device
	HugePages []HugePages
}

// Device is what was read from and written to a block device.
type Device struct {
	Major, Minor uint32

	ReadBytes, WriteBytes, DiscardBytes uint64
	Reads, Writes                       uint64
}

// HugePages is the huge pages of one size.
type HugePages struct {
	Size     string // "2MB", as in the names of the kernel's files
	Bytes    Value
	MaxBytes Value // the most that there was
}
