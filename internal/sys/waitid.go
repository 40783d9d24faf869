package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// cldExited is si_code of a process that ended by itself (CLD_EXITED).
const cldExited = 1

// siginfoChild is siginfo_t of SIGCHLD on 64-bit Linux; x/sys/unix leaves these
// fields unnamed.
type siginfoChild struct {
	signo, errno, code, _ int32
	pid                   int32
	uid                   uint32
	status                int32
	_                     [128 - 7*4]byte
}

// waitid fills si about a child; si.pid stays 0 when WNOHANG found none.
func waitid(idType, id int, si *siginfoChild, options int) error {
	return unix.Waitid(idType, id, (*unix.Siginfo)(unsafe.Pointer(si)), options, nil)
}
