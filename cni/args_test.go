package cni

import (
	"net/netip"
	"testing"

	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/cridproject/crid/internal/errkind"
)

func TestParseBandwidth(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want uint64 // 0 with a text means an error
	}{
		{"", 0},
		{"1k", 1_000},
		{"10M", 10_000_000},
		{"1G", 1_000_000_000},
		{"1Mi", 1 << 20},
		{"1.5Gi", 3 << 29},
		{"4000", 4_000},
		{"1e6", 1_000_000},
		{"1.5E3", 1_500},
		{"+2k", 2_000},
		{"1P", 1_000_000_000_000_000},
		{"1023.5k", 1_023_500},

		{"999", 0},
		{"1.1P", 0},
		{"-5M", 0},
		{"5 M", 0},
		{"5MB", 0},
		{"5K", 0},
		{"1/2k", 0},
		{"0x10M", 0},
		{"1_000M", 0},
		{"1e6M", 0},
		{"1e99999999", 0},
		{"ten", 0},
		{"M", 0},
		{"NaN", 0},
		{"99999999999999999999999999999", 0},
	} {
		got, err := ParseBandwidth(tt.in)
		if got != tt.want || (err == nil) != (tt.want > 0 || tt.in == "") {
			t.Errorf("ParseBandwidth(%q) = %d, %v, want %d", tt.in, got, err, tt.want)
		}
		if err != nil && !errkind.Is(err, errkind.Invalid) {
			t.Errorf("ParseBandwidth(%q) = %v of kind %v, want Invalid", tt.in, err, errkind.Of(err))
		}
	}
}

func FuzzParseBandwidth(f *testing.F) {
	for _, s := range []string{"10M", "1.5Gi", "1e6", "", "-1k"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseBandwidth(s)
		if err == nil && s != "" && (n < minBandwidth || n > maxBandwidth) {
			t.Errorf("ParseBandwidth(%q) = %d, out of its limits", s, n)
		}
	})
}

func FuzzResult(f *testing.F) {
	f.Add("1.0.0", []byte(`{"cniVersion":"1.0.0","interfaces":[{"name":"eth0"}],"ips":[{"address":"192.0.2.2/24","interface":0}]}`))
	f.Add("0.4.0", []byte(`{"cniVersion":"0.4.0","interfaces":[{"name":"eth0"}],"ips":[{"version":"6","address":"2001:db8::2/64","interface":0}]}`))
	f.Add("0.2.0", []byte(`{"cniVersion":"0.2.0","ip4":{"ip":"192.0.2.2/24"},"ip6":{"ip":"2001:db8::2/64"}}`))
	f.Add("1.1.0", []byte(`{"cniVersion":"1.1.0","ips":[{"address":"192.0.2.2/24","interface":-1}]}`))
	f.Fuzz(func(t *testing.T, version string, b []byte) {
		raw, err := create.Create(version, b)
		if err != nil {
			return
		}
		r, err := newResult(raw, "eth0")
		if err == nil && (len(r.IPs) == 0 || !r.IPs[0].IsValid()) {
			t.Errorf("newResult(%s) = %v, want an address or an error", b, r.IPs)
		}
	})
}

func TestResultOfOldSpecification(t *testing.T) {
	raw, err := create.Create("0.2.0", []byte(`{"cniVersion":"0.2.0","ip4":{"ip":"192.0.2.2/24"},"ip6":{"ip":"2001:db8::2/64"}}`))
	if err != nil {
		t.Fatal(err)
	}
	r, err := newResult(raw, "eth0")
	if err != nil || len(r.IPs) != 2 || r.IPs[0] != netip.MustParseAddr("192.0.2.2") || r.IPs[1] != netip.MustParseAddr("2001:db8::2") {
		t.Errorf("newResult = %v, %v, want both addresses", r.IPs, err)
	}
}
