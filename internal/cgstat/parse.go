package cgstat

import (
	"bytes"
	"strconv"
	"time"
)

// unlimited is what v1 and the runtimes write for no limit: as large as the page
// size lets it be, near 1<<63.
const unlimited = 1 << 62

// number is the one number of a file; "max" and what is no number are not known.
func number(b []byte) Value {
	return parse(bytes.TrimSpace(b))
}

// limit is number, where no limit is not known.
func limit(b []byte) Value {
	if v := number(b); v.N < unlimited {
		return v
	}
	return Value{}
}

// parse reads digits and nothing else.
func parse(b []byte) Value {
	if len(b) == 0 || len(b) > 20 {
		return Value{}
	}
	var n uint64
	for _, c := range b {
		if c < '0' || c > '9' {
			return Value{}
		}
		d := uint64(c - '0')
		if n > (1<<64-1-d)/10 {
			return Value{}
		}
		n = n*10 + d
	}
	return Known(n)
}

// pairs calls f with each line "key number".
func pairs(b []byte, f func(key []byte, v Value)) {
	for line := range bytes.Lines(b) {
		key, rest, ok := bytes.Cut(line, []byte{' '})
		if v := number(rest); ok && v.Known {
			f(key, v)
		}
	}
}

// times is v in a unit of n of ours.
func (v Value) times(n uint64) Value {
	if v.N > (1<<64-1)/n {
		return Value{}
	}
	v.N *= n
	return v
}

// pressure reads a file such as
//
//	some avg10=0.00 avg60=0.12 avg300=0.03 total=11677
//	full avg10=0.00 avg60=0.00 avg300=0.00 total=5971
//
// where totals are microseconds. Kernels before 5.13 have no line full for the CPU.
func pressure(b []byte) Pressure {
	var p Pressure
	for line := range bytes.Lines(b) {
		kind, rest, _ := bytes.Cut(line, []byte{' '})
		stall, ok := parseStall(rest)
		if !ok {
			continue
		}
		switch string(kind) {
		case "some":
			p.Some, p.Known = stall, true
		case "full":
			p.Full = stall
		}
	}
	return p
}

func parseStall(b []byte) (s Stall, ok bool) {
	for field := range bytes.FieldsSeq(b) {
		key, value, _ := bytes.Cut(field, []byte{'='})
		var avg *float64
		switch string(key) {
		case "avg10":
			avg = &s.Avg10
		case "avg60":
			avg = &s.Avg60
		case "avg300":
			avg = &s.Avg300
		case "total":
			v := parse(value)
			if !v.Known || v.N > uint64(1<<63-1)/uint64(time.Microsecond) {
				return Stall{}, false
			}
			s.Total, ok = time.Duration(v.N)*time.Microsecond, true
			continue
		default:
			continue
		}
		x, err := strconv.ParseFloat(string(value), 64)
		if err != nil || !(x >= 0 && x <= 100) {
			return Stall{}, false
		}
		*avg = x
	}
	return s, ok
}

// devices collects figures of block devices, in the order of the files.
type devices []Device

func (ds *devices) at(major, minor uint32) *Device {
	for i := range *ds {
		if d := &(*ds)[i]; d.Major == major && d.Minor == minor {
			return d
		}
	}
	*ds = append(*ds, Device{Major: major, Minor: minor})
	return &(*ds)[len(*ds)-1]
}

func deviceNumber(b []byte) (major, minor uint32, ok bool) {
	l, r, _ := bytes.Cut(b, []byte{':'})
	x, y := parse(l), parse(r)
	return uint32(x.N), uint32(y.N), x.Known && y.Known && x.N < 1<<32 && y.N < 1<<32
}

// addV2 reads io.stat: "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0". Some kernels
// (Linux 5.15) do not end the line after a device without figures: figures are those of the
// last device before them. A device may be "(unknown)".
func (ds *devices) addV2(b []byte) {
	for line := range bytes.Lines(b) {
		var major, minor uint32
		var d *Device
		ok := false
		for field := range bytes.FieldsSeq(line) {
			key, value, pair := bytes.Cut(field, []byte{'='})
			if !pair {
				major, minor, ok = deviceNumber(field)
				d = nil
				continue
			}
			v := parse(value)
			if !ok || !v.Known {
				continue
			}
			if d == nil { // a device without figures is none
				d = ds.at(major, minor)
			}
			switch string(key) {
			case "rbytes":
				d.ReadBytes = v.N
			case "wbytes":
				d.WriteBytes = v.N
			case "dbytes":
				d.DiscardBytes = v.N
			case "rios":
				d.Reads = v.N
			case "wios":
				d.Writes = v.N
			}
		}
	}
}

// addV1 reads a file of lines "8:0 Read 123" of which the numbers are bytes or
// operations.
func (ds *devices) addV1(b []byte, isBytes bool) {
	for line := range bytes.Lines(b) {
		number, rest, _ := bytes.Cut(bytes.TrimSpace(line), []byte{' '})
		op, value, _ := bytes.Cut(rest, []byte{' '})
		major, minor, ok := deviceNumber(number)
		v := parse(value)
		if !ok || !v.Known {
			continue
		}
		switch d := ds.at(major, minor); {
		case string(op) == "Read" && isBytes:
			d.ReadBytes = v.N
		case string(op) == "Write" && isBytes:
			d.WriteBytes = v.N
		case string(op) == "Discard" && isBytes:
			d.DiscardBytes = v.N
		case string(op) == "Read":
			d.Reads = v.N
		case string(op) == "Write":
			d.Writes = v.N
		}
	}
}
