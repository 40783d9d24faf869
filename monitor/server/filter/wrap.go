//go:build cgo && seccomp

package filter

// #cgo LDFLAGS: -lseccomp
// #cgo LDFLAGS: -Wl,--wrap=seccomp_init -Wl,--wrap=seccomp_reset -Wl,--wrap=seccomp_release -Wl,--wrap=seccomp_merge
// #cgo LDFLAGS: -Wl,--wrap=seccomp_arch_add -Wl,--wrap=seccomp_arch_remove -Wl,--wrap=seccomp_attr_set
// #cgo LDFLAGS: -Wl,--wrap=seccomp_syscall_priority -Wl,--wrap=seccomp_rule_add_array -Wl,--wrap=seccomp_rule_add_exact_array
// #cgo LDFLAGS: -Wl,--wrap=seccomp_load -Wl,--wrap=seccomp_export_bpf
// #include "wrap.h"
import "C"

import "unsafe"

// use and record are described in wrap.h.
func use(recording []byte) bool {
	return C.crid_filter_use(unsafe.Pointer(&recording[0]), C.size_t(len(recording))) == 0
}

func record(fd int) { C.crid_filter_record(C.int(fd)) }
