package spec

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cridproject/crid/sandbox/config"
)

// seccompFilter: no profile asked for is no filter; a privileged container has
// none in any case. The default profile lets more through where the container
// has the capability for it, so this comes after capabilities.
//
// The profile package looks at one fact of the node by itself, the kernel's
// version; it does not change while a node runs.
func seccompFilter(b *builder) error {
	p := b.Container.Security.Seccomp
	if b.privileged() {
		return nil
	}
	const field = fieldSecurity + "seccomp."
	switch p.Kind {
	case "", config.ProfileUnconfined:
		return nil
	case config.ProfileRuntimeDefault, config.ProfileLocalhost:
	default:
		return invalid(field+"profile_type", "unknown type %q", p.Kind)
	}
	var profile []byte // nil means the default
	if p.Kind == config.ProfileLocalhost {
		if b.SeccompProfile == nil {
			return invalid(field+"localhost_ref", "no such file: %q", p.Ref)
		}
		profile = b.SeccompProfile
	}
	filter, err := b.Filters.filter(profile, b.Spec)
	if err != nil {
		return invalid(field+"localhost_ref", "%s: %v", p.Ref, err)
	}
	b.Spec.Linux.Seccomp = filter
	return nil
}

// Filters keeps seccomp filters as they go into specs, for each profile and set
// of capabilities, which is all that a filter depends on while a node runs. The
// zero value is ready; methods may be called concurrently, also on nil, which
// keeps nothing.
type Filters struct {
	mu   sync.Mutex
	kept map[[sha256.Size]byte]specs.LinuxSeccomp // +checklocks:mu
}

// maxFilters bounds what is kept: nodes have a handful of profiles. Beyond it
// all start anew.
const maxFilters = 64

// filter is profile, or the default where it is nil, adapted to the capabilities
// in s. What it points to is shared and must not be changed.
func (f *Filters) filter(profile []byte, s *specs.Spec) (*specs.LinuxSeccomp, error) {
	if f == nil {
		return translate(profile, s)
	}
	key := filterKey(profile, s.Process.Capabilities.Bounding)
	f.mu.Lock()
	kept, ok := f.kept[key]
	f.mu.Unlock()
	if ok {
		return &kept, nil
	}
	made, err := translate(profile, s)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.kept == nil || len(f.kept) >= maxFilters {
		f.kept = map[[sha256.Size]byte]specs.LinuxSeccomp{}
	}
	f.kept[key] = *made
	return made, nil
}

func filterKey(profile []byte, caps []string) (key [sha256.Size]byte) {
	h := sha256.New()
	// With its length in front no profile can be taken for another with more
	// capabilities, and the default (nil) for an empty one.
	size := int64(len(profile))
	if profile == nil {
		size = -1
	}
	var length [8]byte
	binary.LittleEndian.PutUint64(length[:], uint64(size)) //nolint:gosec // any 64 bits do
	h.Write(length[:])
	h.Write(profile)
	sorted := slices.Sorted(slices.Values(caps))
	h.Write([]byte(strings.Join(sorted, ",")))
	h.Sum(key[:0])
	return key
}

func translate(profile []byte, s *specs.Spec) (*specs.LinuxSeccomp, error) {
	if profile == nil {
		return seccomp.GetDefaultProfile(s)
	}
	filter, err := seccomp.LoadProfile(string(profile), s)
	if err != nil {
		return nil, err
	}
	if filter == nil {
		return nil, fmt.Errorf("it says nothing: no default action and no system calls")
	}
	return filter, checkFilter(filter)
}

// What a filter may say. libcontainer would refuse the rest as well, but knows
// neither the file nor the field.
var (
	seccompActions = [...]specs.LinuxSeccompAction{
		specs.ActKill, specs.ActKillProcess, specs.ActKillThread, specs.ActTrap, specs.ActErrno, specs.ActTrace,
		specs.ActAllow, specs.ActLog, specs.ActNotify,
	}
	seccompOperators = [...]specs.LinuxSeccompOperator{
		specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual,
	}
)

func checkFilter(f *specs.LinuxSeccomp) error {
	if !slices.Contains(seccompActions[:], f.DefaultAction) {
		return fmt.Errorf("defaultAction: unknown action %q", f.DefaultAction)
	}
	for i, call := range f.Syscalls {
		if !slices.Contains(seccompActions[:], call.Action) {
			return fmt.Errorf("system calls %v (number %d that applies): unknown action %q", call.Names, i, call.Action)
		}
		if slices.Contains(call.Names, "") {
			return fmt.Errorf("system calls %v (number %d that applies): an empty name", call.Names, i)
		}
		for _, arg := range call.Args {
			if !slices.Contains(seccompOperators[:], arg.Op) {
				return fmt.Errorf("system calls %v (number %d that applies): unknown operator %q", call.Names, i, arg.Op)
			}
			if arg.Index > 5 {
				return fmt.Errorf("system calls %v (number %d that applies): argument %d, where a system call has arguments 0 to 5", call.Names, i, arg.Index)
			}
		}
	}
	return nil
}
