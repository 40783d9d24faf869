package config

import (
	"reflect"
	"testing"
)

func TestMerge(t *testing.T) {
	full := Resources{
		CPUPeriod: 1, CPUQuota: 2, CPUShares: 3, MemoryLimit: 4, MemorySwap: 5, OOMScoreAdj: 6, CpusetCPUs: "7", CpusetMems: "8",
		HugepageMax: map[string]uint64{"2MB": 9}, Unified: map[string]string{"memory.high": "10"},
	}
	for i := range reflect.TypeFor[Resources]().NumField() {
		if reflect.ValueOf(full).Field(i).IsZero() {
			t.Fatalf("this test does not know the field %s", reflect.TypeFor[Resources]().Field(i).Name)
		}
	}
	for _, tt := range []struct {
		name             string
		of, change, want Resources
	}{
		{"nothing changes", full, Resources{}, full},
		{"everything changes", Resources{}, full, full},
		{"one field", full, Resources{CPUQuota: -1}, func() Resources { r := full; r.CPUQuota = -1; return r }()},
		{"no memory limit", full, Resources{MemoryLimit: -1}, func() Resources { r := full; r.MemoryLimit, r.MemorySwap = -1, 0; return r }()},
		{"more memory, as much swap", full, Resources{MemoryLimit: 40}, func() Resources { r := full; r.MemoryLimit, r.MemorySwap = 40, 41; return r }()},
		{"less memory, no swap", Resources{MemoryLimit: 4, MemorySwap: 4}, Resources{MemoryLimit: 2}, Resources{MemoryLimit: 2, MemorySwap: 2}},
		{"any swap", Resources{MemoryLimit: 4, MemorySwap: -1}, Resources{MemoryLimit: 2}, Resources{MemoryLimit: 2, MemorySwap: -1}},
		{
			"maps by key", full,
			Resources{HugepageMax: map[string]uint64{"2MB": 0, "1GB": 1}, Unified: map[string]string{"memory.low": "1"}},
			func() Resources {
				r := full
				r.HugepageMax = map[string]uint64{"2MB": 0, "1GB": 1}
				r.Unified = map[string]string{"memory.high": "10", "memory.low": "1"}
				return r
			}(),
		},
	} {
		if got := tt.of.Merge(tt.change); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: Merge = %+v, want %+v", tt.name, got, tt.want)
		}
	}
	if full.HugepageMax["2MB"] != 9 || len(full.Unified) != 1 {
		t.Error("Merge has changed its receiver")
	}
}
