package cgstat

import (
	"errors"
	"io/fs"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/cridproject/crid/internal/sys"
)

// recorded is a tree of files as kernels wrote them.
func recorded(t *testing.T, version string) *Tree {
	t.Helper()
	root, err := filepath.Abs("testdata")
	if err != nil {
		t.Fatal(err)
	}
	if version == "v2" {
		return newTree([]sys.CgroupHierarchy{{Point: root + "/v2", V2: true}}, []string{"hugepages-2048kB", "hugepages-1048576kB"})
	}
	hs := []sys.CgroupHierarchy{{Point: root + "/v1/unified", V2: true}}
	for _, c := range []string{"cpu", "cpuacct", "memory", "pids", "blkio", "hugetlb", "name=systemd"} {
		hs = append(hs, sys.CgroupHierarchy{Point: root + "/v1/" + c, Controllers: []string{c}})
	}
	return newTree(hs, []string{"hugepages-2048kB"})
}

func k(n uint64) Value { return Known(n) }

// both is what both versions say of the same cgroup.
func both() Details {
	return Details{
		Usage: Usage{
			MemoryBytes: k(23949312), WorkingSetBytes: k(23949312 - 20979712), RSSBytes: k(565248), PageFaults: k(68178), MajorPageFaults: k(5),
			MemoryLimitBytes: k(64 << 20), SwapBytes: k(12288), SwapLimitBytes: k(16 << 20), Tasks: k(4),
			CPUPressure: Pressure{
				Known: true,
				Some:  Stall{11677 * time.Microsecond, 1.5, 0.12, 0.03},
				Full:  Stall{5971 * time.Microsecond, 0.25, 0, 0},
			},
		},
		Periods: k(12), ThrottledPeriods: k(3),
		CacheBytes: k(20983808), KernelBytes: k(2072576), MappedFileBytes: k(8192), MaxMemoryBytes: k(25706496),
		MemoryFailures: k(7), OOMKills: k(1), TasksMax: k(100),
		Devices: []Device{{Major: 254, ReadBytes: 4096, WriteBytes: 20971520, DiscardBytes: 512, Reads: 1, Writes: 20}},
	}
}

func TestV1(t *testing.T) {
	want := both()
	want.CPUNanoseconds, want.UserNanoseconds, want.SystemNanoseconds = k(102851405), k(39991693), k(107990389)
	want.ThrottledNanoseconds, want.SwapLimitFileBytes = k(4005006007), k(80<<20)
	want.HugePages = []HugePages{{"2MB", k(2 << 20), k(4 << 20)}}
	wantFigures(t, recorded(t, "v1"), want)
}

func TestV2(t *testing.T) {
	want := both()
	want.CPUNanoseconds, want.UserNanoseconds, want.SystemNanoseconds = k(586200000), k(140679000), k(445520000)
	want.ThrottledNanoseconds, want.SwapLimitFileBytes, want.ReservedMemoryBytes = k(4005006000), k(16<<20), k(1<<20)
	want.MemoryPressure = Pressure{Known: true, Some: Stall{Total: 1000}, Full: Stall{Total: 2000}}
	want.IOPressure = Pressure{Known: true, Some: Stall{Total: 3000}, Full: Stall{Total: 4000}}
	want.HugePages = []HugePages{{Size: "2MB", Bytes: k(2 << 20)}}
	wantFigures(t, recorded(t, "v2"), want)
}

func wantFigures(t *testing.T, tree *Tree, want Details) {
	t.Helper()
	got, err := tree.Details("/pod")
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("Details =\n%+v, %v\nwant\n%+v", got, err, want)
	}
	usage, err := tree.Usage("pod", Swap|Tasks)
	if err != nil || usage != want.Usage {
		t.Errorf("Usage =\n%+v, %v\nwant\n%+v", usage, err, want.Usage)
	}
	if _, err := tree.Usage("/gone", 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Usage of what is gone = %v, want ErrNotExist", err)
	}
	if _, err := tree.Details("/gone"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Details of what is gone = %v, want ErrNotExist", err)
	}
}

// No limit is not a large one, a file that is not there is no figure, and the
// working set is never negative.
func TestUnlimited(t *testing.T) {
	for _, version := range []string{"v1", "v2"} {
		d, err := recorded(t, version).Details("/unlimited")
		if err != nil {
			t.Fatal(err)
		}
		for name, v := range map[string]Value{
			"memory limit": d.MemoryLimitBytes, "swap limit": d.SwapLimitBytes, "limit in the file": d.SwapLimitFileBytes,
			"tasks": d.TasksMax, "reserved": d.ReservedMemoryBytes, "failures": d.MemoryFailures,
		} {
			if v.Known {
				t.Errorf("%s: %s = %d, want not known", version, name, v.N)
			}
		}
		if d.RSSBytes != k(1) || d.CPUPressure.Known || d.HugePages != nil {
			t.Errorf("%s: %+v", version, d)
		}
	}
	d, err := recorded(t, "v2").Details("/unlimited")
	if err != nil || d.WorkingSetBytes != k(0) || d.KernelBytes != k(15) {
		t.Errorf("working set %v of 5 bytes with 10 inactive, kernel %v of an older one: %v", d.WorkingSetBytes, d.KernelBytes, err)
	}
}

func TestPageSize(t *testing.T) {
	for name, want := range map[string]string{
		"hugepages-64kB": "64KB", "hugepages-2048kB": "2MB", "hugepages-32768kB": "32MB", "hugepages-1048576kB": "1GB", "hugepages-16777216kB": "16GB",
		"hugepages-": "", "x": "", "hugepages-1MB": "",
	} {
		if got, ok := pageSize(name); got != want || ok != (want != "") {
			t.Errorf("pageSize(%q) = %q, %v, want %q", name, got, ok, want)
		}
	}
}

func TestParse(t *testing.T) {
	for in, want := range map[string]Value{
		"0\n": k(0), " 42 \n": k(42), "18446744073709551615": k(1<<64 - 1), "max\n": {}, "": {}, "-1\n": {}, "1 2": {}, "0x10": {},
		"18446744073709551616": {}, "99999999999999999999": {}, "184467440737095516150": {},
	} {
		if got := number([]byte(in)); got != want {
			t.Errorf("number(%q) = %v, want %v", in, got, want)
		}
	}
	for _, bad := range []string{"", "\n", "some", "some total=", "some total=x", "some avg10=NaN total=1", "some avg10=-1 total=1", "some total=18446744073709551615"} {
		if p := pressure([]byte(bad)); p.Known {
			t.Errorf("pressure(%q) = %+v, want not known", bad, p)
		}
	}
	if p := pressure([]byte("some avg10=0.00 total=5\n")); !p.Known || p.Some.Total != 5*time.Microsecond || p.Full.Total != 0 {
		t.Errorf("pressure of an older kernel's CPU = %+v", p)
	}
	if v := k(1 << 60).times(1000); v.Known {
		t.Errorf("1<<60 microseconds = %d nanoseconds, want not known", v.N)
	}
}

func TestIOStat(t *testing.T) {
	for in, want := range map[string]devices{
		"8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n": {{Major: 8, ReadBytes: 1, WriteBytes: 2, Reads: 3, Writes: 4, DiscardBytes: 5}},
		"7:1 7:0 rbytes=1\n8:0 wios=2\n":                        {{Major: 7, ReadBytes: 1}, {Major: 8, Writes: 2}},
		"7:1 (unknown) rbytes=1\n(unknown) 8:0 rbytes=2\n":      {{Major: 8, ReadBytes: 2}},
		"7:1 \n8:0\n": nil,
	} {
		var got devices
		if got.addV2([]byte(in)); !slices.Equal(got, want) {
			t.Errorf("devices of %q = %+v, want %+v", in, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"some avg10=1 avg60=2 avg300=3 total=4\nfull total=1", "8:0 rbytes=1 wbytes=2\n", "8:0 Read 1\nTotal 1\n", "key 1\n", "99999999999:1 Read 1"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if p := pressure(b); p.Some.Total < 0 || p.Full.Total < 0 {
			t.Errorf("pressure(%q) = %+v", b, p)
		}
		var ds devices
		ds.addV1(b, true)
		ds.addV1(b, false)
		ds.addV2(b)
		if len(ds) > len(b) {
			t.Errorf("%d devices of %d bytes", len(ds), len(b))
		}
		pairs(b, func(_ []byte, v Value) {
			if !v.Known {
				t.Errorf("a pair without a figure in %q", b)
			}
		})
	})
}

// The kernel's own files, on whatever this machine has.
func TestThisMachine(t *testing.T) {
	tree, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tree.Details("/no/such/cgroup"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Details of no cgroup = %v, want ErrNotExist", err)
	}
	if pids, err := tree.Procs("/no/such/cgroup"); err != nil || len(pids) > 0 {
		t.Errorf("Procs of no cgroup = %v, %v", pids, err)
	}
}
