package spec

import (
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// defaultCaps is what a container has when nothing is said: the set that
// Docker, containerd and CRI-O agree on (CRI-O without three of them).
var defaultCaps = [...]string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// knownCaps is every capability of Linux, by number.
var knownCaps = [...]string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
	"CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
	"CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
	"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
	"CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
	"CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// CapName is the name of the capability with number n; "" when it has none.
func CapName(n int) string {
	if n < 0 || n >= len(knownCaps) {
		return ""
	}
	return knownCaps[n]
}

const allCaps = "ALL"

// capabilities: the default set, or all of the bounding set when privileged;
// ALL before single names, so that "drop ALL, add X" is X and "add ALL, drop X"
// is all but X. What is asked for as ambient is added like the others, as CRI
// says; what is dropped is dropped from all sets.
//
// Inheritable stays empty although CRI speaks of it: with it, a program with
// file capabilities would gain them for any user (CVE-2022-24769). The one
// exception is ambient capabilities, which the kernel only grants to what is
// inheritable. A user other than root loses the other effective ones at exec,
// which is the kernel's doing.
func capabilities(b *builder) error {
	sec := &b.Container.Security
	s := capSet{b: b}
	s.names = s.bounded(defaultCaps[:])
	if b.privileged() {
		s.names = slices.Clone(b.Host.BoundingCaps)
	}
	add, addAll, err := s.parse("add_capabilities", sec.AddCaps)
	if err != nil {
		return err
	}
	ambient, ambientAll, err := s.parse("add_ambient_capabilities", sec.AmbientCaps)
	if err != nil {
		return err
	}
	drop, dropAll, err := s.parse("drop_capabilities", sec.DropCaps)
	if err != nil {
		return err
	}
	if addAll || ambientAll {
		s.names = slices.Clone(b.Host.BoundingCaps)
	}
	if dropAll {
		s.names = nil
	}
	s.add("add_capabilities", add)
	s.add("add_ambient_capabilities", ambient)
	s.names = slices.DeleteFunc(s.names, func(c string) bool { return slices.Contains(drop, c) })

	var raised []string
	for _, c := range s.names {
		if ambientAll || slices.Contains(ambient, c) {
			raised = append(raised, c)
		}
	}
	b.Spec.Process.Capabilities = &specs.LinuxCapabilities{
		Bounding: s.names, Effective: s.names, Permitted: s.names,
		Inheritable: raised, Ambient: raised,
	}
	return nil
}

// capSet is the capabilities of a container while they are worked out.
type capSet struct {
	b     *builder
	names []string
}

// parse brings names to the kernel's form and finds ALL among them.
func (s *capSet) parse(field string, names []string) (caps []string, all bool, err error) {
	for _, n := range names {
		n = strings.ToUpper(n)
		if n == allCaps {
			all = true
			continue
		}
		if !strings.HasPrefix(n, "CAP_") {
			n = "CAP_" + n
		}
		if !slices.Contains(knownCaps[:], n) {
			return nil, false, invalid(fieldSecurity+"capabilities."+field, "unknown capability %q", n)
		}
		caps = append(caps, n)
	}
	return caps, all, nil
}

// add puts in what is not there yet and this node can give.
func (s *capSet) add(field string, names []string) {
	for _, c := range names {
		if s.warnUnbounded(field, c) && !slices.Contains(s.names, c) {
			s.names = append(s.names, c)
		}
	}
}

// bounded is the names that this node can give.
func (s *capSet) bounded(names []string) []string {
	var out []string
	for _, c := range names {
		if slices.Contains(s.b.Host.BoundingCaps, c) {
			out = append(out, c)
		}
	}
	return out
}

// warnUnbounded reports whether this node can give c, with a warning if not.
func (s *capSet) warnUnbounded(field, c string) bool {
	if slices.Contains(s.b.Host.BoundingCaps, c) {
		return true
	}
	s.b.warn(fieldSecurity+"capabilities."+field, "%s left out: crid does not have it on this node", c)
	return false
}
