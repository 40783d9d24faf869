package server

import (
	"encoding/json"
	"maps"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cridproject/crid/monitor"
)

// applied is what the kernel has of the resources that want and oom ask for.
func (c *cgroup) applied(pid int, want *specs.LinuxResources, oom *int) monitor.Applied {
	var a monitor.Applied
	if want != nil {
		got := c.values(want)
		got.Devices = nil
		a.Resources, _ = json.Marshal(got) // plain data
	}
	if oom != nil {
		now, err := oomScoreAdj(pid)
		if err != nil {
			now = *oom // it is ending
		}
		a.OOMScoreAdj = &now
	}
	return a
}

// values is want with the kernel's values in place of those that it sets. What
// cannot be read stays as it is, and so do shares with v2, which has another scale.
func (c *cgroup) values(want *specs.LinuxResources) *specs.LinuxResources {
	got := *want
	v2 := cgroups.IsCgroup2UnifiedMode()
	if m := want.Memory; m != nil {
		out := *m
		if v2 {
			out.Limit, out.Swap = c.memoryV2(m)
		} else {
			out.Limit = c.number("memory", "memory.limit_in_bytes", m.Limit)
			out.Swap = c.number("memory", "memory.memsw.limit_in_bytes", m.Swap)
		}
		got.Memory = &out
	}
	if p := want.CPU; p != nil {
		out := *p
		if v2 {
			out.Quota, out.Period = c.cpuV2(p)
		} else {
			out.Quota = c.number("cpu", "cpu.cfs_quota_us", p.Quota)
			out.Period = c.count("cpu", "cpu.cfs_period_us", p.Period)
			out.Shares = c.count("cpu", "cpu.shares", p.Shares)
		}
		out.Cpus = c.text("cpuset", "cpuset.cpus", p.Cpus)
		out.Mems = c.text("cpuset", "cpuset.mems", p.Mems)
		got.CPU = &out
	}
	got.HugepageLimits = nil
	for _, h := range want.HugepageLimits {
		file := "hugetlb." + h.Pagesize + ".limit_in_bytes"
		if v2 {
			file = "hugetlb." + h.Pagesize + ".max"
		}
		h.Limit = *c.count("hugetlb", file, &h.Limit)
		got.HugepageLimits = append(got.HugepageLimits, h)
	}
	got.Unified = maps.Clone(want.Unified)
	for file, v := range want.Unified {
		got.Unified[file] = c.text("", file, v)
	}
	return &got
}

// memoryV2 is the limits of memory, and of memory and swap together.
func (c *cgroup) memoryV2(want *specs.LinuxMemory) (limit, sum *int64) {
	limit = c.number("memory", "memory.max", want.Limit)
	if limit == nil || want.Swap == nil {
		return limit, want.Swap
	}
	zero := int64(0)
	swap := c.number("memory", "memory.swap.max", &zero)
	total := int64(-1)
	if *limit >= 0 && *swap >= 0 {
		total = *limit + *swap
	}
	return limit, &total
}

func (c *cgroup) cpuV2(want *specs.LinuxCPU) (quota *int64, period *uint64) {
	quota, period = want.Quota, want.Period
	q, p, _ := strings.Cut(c.text("cpu", "cpu.max", ""), " ")
	if n, err := parseLimit(q); err == nil && quota != nil {
		quota = &n
	}
	if n, err := strconv.ParseUint(p, 10, 64); err == nil && period != nil {
		period = &n
	}
	return quota, period
}

// number is a limit as the kernel has it, -1 for none; want when it is nil or the
// file cannot be read.
func (c *cgroup) number(controller, file string, want *int64) *int64 {
	if want == nil {
		return nil
	}
	n, err := parseLimit(c.text(controller, file, ""))
	if err != nil {
		return want
	}
	return &n
}

// count is number for what cannot be negative.
func (c *cgroup) count(controller, file string, want *uint64) *uint64 {
	if want == nil {
		return nil
	}
	n, err := parseLimit(c.text(controller, file, ""))
	if err != nil {
		return want
	}
	u := uint64(n)
	if n < 0 {
		u = math.MaxInt64 // the kernel takes the largest that it has
	}
	return &u
}

// text is the only line of a file of the cgroup; want when that is "" or there
// are more lines.
func (c *cgroup) text(controller, file, want string) string {
	if cgroups.IsCgroup2UnifiedMode() {
		controller = ""
	}
	dir := c.m.Path(controller)
	if dir == "" {
		return want
	}
	b, err := os.ReadFile(filepath.Join(dir, file))
	s := strings.TrimSpace(string(b))
	if err != nil || s == "" || strings.Contains(s, "\n") {
		return want
	}
	return s
}

// parseLimit reads a number or, for no limit, "max" (v2) or one that is larger
// than any address (v1).
func parseLimit(s string) (int64, error) {
	if s == "max" {
		return -1, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err == nil && n >= math.MaxInt64&^0xffff {
		return -1, nil
	}
	return n, err
}

func oomScoreAdj(pid int) (int, error) {
	b, err := os.ReadFile(oomFile(pid))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

func oomFile(pid int) string { return "/proc/" + strconv.Itoa(pid) + "/oom_score_adj" }
