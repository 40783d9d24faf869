package spec

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cridproject/crid/sandbox/config"
)

// TestResources is what the golden files do not show: what each node can do, and
// limits that are lifted.
func TestResources(t *testing.T) {
	v1 := Host{Controllers: []string{"memory", "hugetlb", "cpuset"}, SwapAccounting: true, HugePageSizes: []string{"2MB", "1GB"}}
	v2 := v1
	v2.CgroupUnified = true
	poor := Host{}
	huge := map[string]uint64{"2MB": 0, "1GB": 0} // as kubelet sends it
	for _, tt := range []struct {
		name string
		host Host
		in   config.Resources
		want string
	}{
		{"nothing", v1, config.Resources{}, `{}`},
		{"no limits", v1, config.Resources{MemoryLimit: -1, CPUQuota: -1}, `{"memory":{"limit":-1,"swap":-1},"cpu":{"quota":-1}}`},
		{"no limits without swap", poor, config.Resources{MemoryLimit: -1, MemorySwap: -1}, `{"memory":{"limit":-1}}`},
		{"no swap", v2, config.Resources{MemoryLimit: 1 << 30}, `{"memory":{"limit":1073741824,"swap":1073741824}}`},
		{"any swap", v2, config.Resources{MemoryLimit: 1 << 30, MemorySwap: -1}, `{"memory":{"limit":1073741824,"swap":-1}}`},
		{"some swap", v2, config.Resources{MemoryLimit: 1 << 30, MemorySwap: 2 << 30}, `{"memory":{"limit":1073741824,"swap":2147483648}}`},
		{"swap as kubelet sends it without accounting", poor, config.Resources{MemoryLimit: 1 << 30, MemorySwap: 1 << 30}, `{"memory":{"limit":1073741824}}`},
		{"shares", v1, config.Resources{CPUShares: 1}, `{"cpu":{"shares":2}}`},
		{"CPUs", v1, config.Resources{CpusetCPUs: "0-1", CpusetMems: "0"}, `{"cpu":{"cpus":"0-1","mems":"0"}}`},
		{"huge pages", v2, config.Resources{HugepageMax: huge}, `{"hugepageLimits":[{"pageSize":"1GB","limit":0},{"pageSize":"2MB","limit":0}]}`},
		{"huge pages without the controller", poor, config.Resources{HugepageMax: huge}, `{}`},
		{"unified", v2, config.Resources{Unified: map[string]string{"memory.oom.group": "1"}}, `{"unified":{"memory.oom.group":"1"}}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Resources("linux.", tt.in, tt.host)
			if err != nil {
				t.Fatal(err)
			}
			var want specs.LinuxResources
			if err := json.Unmarshal([]byte(tt.want), &want); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, &want) {
				text, _ := json.Marshal(got)
				t.Errorf("Resources = %s, want %s", text, tt.want)
			}
		})
	}
}

// A size that the node's kernel does not have, whatever its cgroups limit.
func TestHugePagesOfNoSize(t *testing.T) {
	for _, controllers := range [][]string{nil, {"hugetlb"}} {
		h := Host{Controllers: controllers, HugePageSizes: []string{"2MB"}}
		_, err := Resources("linux.", config.Resources{HugepageMax: map[string]uint64{"3MB": 1}}, h)
		if err == nil || !strings.Contains(err.Error(), "linux.hugepage_limits") {
			t.Errorf("3MB with controllers %q = %v, want an error that names the field", controllers, err)
		}
	}
}

func TestActual(t *testing.T) {
	score := 7
	in := config.Resources{
		OOMScoreAdj: -5, MemoryLimit: 4097, CPUShares: 512, CpusetCPUs: "1,0",
		HugepageMax: map[string]uint64{"2MB": 3, "4MB": 1}, Unified: map[string]string{"memory.high": "4097"},
	}
	var got specs.LinuxResources
	const kernel = `{"memory":{"limit":4096,"swap":4096},"cpu":{"shares":512,"cpus":"0-1"},"hugepageLimits":[{"pageSize":"2MB","limit":0}],"unified":{"memory.high":"4096"}}`
	if err := json.Unmarshal([]byte(kernel), &got); err != nil {
		t.Fatal(err)
	}
	want := config.Resources{
		OOMScoreAdj: 7, MemoryLimit: 4096, MemorySwap: 4096, CPUShares: 512, CpusetCPUs: "0-1",
		HugepageMax: map[string]uint64{"2MB": 0, "4MB": 1}, Unified: map[string]string{"memory.high": "4096"},
	}
	if a := Actual(in, &got, &score); !reflect.DeepEqual(a, want) {
		t.Errorf("Actual = %+v, want %+v", a, want)
	}
	if a := Actual(in, &specs.LinuxResources{}, nil); !reflect.DeepEqual(a, in) {
		t.Errorf("Actual of nothing = %+v, want %+v", a, in)
	}
}
