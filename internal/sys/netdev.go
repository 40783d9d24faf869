package sys

import (
	"bytes"
	"strconv"

	"golang.org/x/sys/unix"
)

// NetInterface is a network interface's counters since it was made.
type NetInterface struct {
	Name string

	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// NetInterfaces is the interfaces in each of the network namespaces pinned at paths,
// in the kernel's order; nil where there is none. All are looked at from one
// thread, which then ends. It takes no lock of the kernel that making or removing an
// interface holds, as asking by netlink would.
func NetInterfaces(paths []string) [][]NetInterface {
	all := make([][]NetInterface, len(paths))
	if len(paths) == 0 {
		return all
	}
	_ = onOwnThread(func() error {
		buf := make([]byte, 0, 4096)
		for i, path := range paths {
			if !enterNetNS(path) {
				continue
			}
			b, err := ReadSmall("/proc/thread-self/net/dev", buf)
			if err != nil {
				continue
			}
			all[i] = parseNetDev(b)
			buf = b
		}
		return nil
	})
	return all
}

// enterNetNS moves the calling thread, which must be one to be thrown away.
func enterNetNS(path string) bool {
	fd, err := openRetry(unix.AT_FDCWD, path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK)
	if err != nil {
		return false
	}
	err = unix.Setns(fd, unix.CLONE_NEWNET)
	_ = unix.Close(fd)
	return err == nil
}

// parseNetDev reads /proc/net/dev. Lines that it does not understand, such as the
// two of the heading, are left out.
func parseNetDev(b []byte) []NetInterface {
	ifs := []NetInterface{}
	for line := range bytes.Lines(b) {
		// The name may have any byte but a slash and white space; the last colon ends it.
		i := bytes.LastIndexByte(line, ':')
		if i < 0 {
			continue
		}
		var v [16]uint64
		n := 0
		for field := range bytes.FieldsSeq(line[i+1:]) {
			x, err := strconv.ParseUint(string(field), 10, 64)
			if err != nil || n == len(v) {
				n = -1
				break
			}
			v[n] = x
			n++
		}
		if n != len(v) {
			continue
		}
		ifs = append(ifs, NetInterface{
			Name:    string(bytes.TrimSpace(line[:i])),
			RxBytes: v[0], RxPackets: v[1], RxErrors: v[2], RxDropped: v[3],
			TxBytes: v[8], TxPackets: v[9], TxErrors: v[10], TxDropped: v[11],
		})
	}
	return ifs
}
