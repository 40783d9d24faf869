package sys

import (
	"reflect"
	"strings"
	"testing"
)

const netDev = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0
  eth0: 1500012    1003    2    1    0     0          0         0   800345     902    4    3    0     0       0          0
  a:b:18446744073709551615 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0
 short: 1 2 3
  text: x 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0
  long: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0 17
`

func TestParseNetDev(t *testing.T) {
	want := []NetInterface{
		{Name: "lo"},
		{Name: "eth0", RxBytes: 1500012, RxPackets: 1003, RxErrors: 2, RxDropped: 1, TxBytes: 800345, TxPackets: 902, TxErrors: 4, TxDropped: 3},
		{Name: "a:b", RxBytes: 1<<64 - 1, RxPackets: 1, TxBytes: 1, TxPackets: 1},
	}
	if got := parseNetDev([]byte(netDev)); !reflect.DeepEqual(got, want) {
		t.Errorf("parseNetDev = %+v, want %+v", got, want)
	}
	if got := parseNetDev(nil); got == nil || len(got) > 0 {
		t.Errorf("parseNetDev of nothing = %v, want none", got)
	}
}

func FuzzParseNetDev(f *testing.F) {
	f.Add([]byte(netDev))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, i := range parseNetDev(b) {
			if strings.ContainsRune(i.Name, '\n') {
				t.Errorf("interface %q", i.Name)
			}
		}
	})
}
