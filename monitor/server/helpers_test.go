package server

import (
	"os"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func writeExecutable(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// specSeccomp is spec with a seccomp filter of a size as the default profile's.
func (n *node) specSeccomp(args ...string) *specs.Spec {
	s := n.spec(args...)
	refused := uint(1)
	names := []string{
		"acct", "add_key", "bpf", "clock_adjtime", "clock_settime", "delete_module", "finit_module", "get_mempolicy",
		"init_module", "ioperm", "iopl", "kcmp", "kexec_file_load", "kexec_load", "keyctl", "lookup_dcookie", "mbind",
		"move_pages", "nfsservctl", "open_by_handle_at", "perf_event_open", "personality", "pivot_root",
		"process_vm_readv", "process_vm_writev", "ptrace", "query_module", "quotactl", "reboot", "request_key",
		"set_mempolicy", "setns", "settimeofday", "stime", "swapoff", "swapon", "_sysctl", "sysfs", "umount",
		"umount2", "unshare", "uselib", "userfaultfd", "ustat", "vm86", "vm86old",
	}
	s.Linux.Seccomp = &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32},
	}
	for _, name := range names {
		s.Linux.Seccomp.Syscalls = append(s.Linux.Seccomp.Syscalls,
			specs.LinuxSyscall{Names: []string{name}, Action: specs.ActErrno, ErrnoRet: &refused})
	}
	return s
}
