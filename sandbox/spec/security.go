package spec

import (
	"slices"
	"strings"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cridproject/crid/sandbox/config"
)

// pathProtection: exactly the paths given; none given means none. A privileged
// container has none in any case.
func pathProtection(b *builder) error {
	if b.privileged() {
		return nil
	}
	b.Spec.Linux.MaskedPaths = slices.Clone(b.Container.Security.MaskedPaths)
	b.Spec.Linux.ReadonlyPaths = slices.Clone(b.Container.Security.ReadonlyPaths)
	return nil
}

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
	var filter *specs.LinuxSeccomp
	var err error
	switch p.Kind {
	case "", config.ProfileUnconfined:
		return nil
	case config.ProfileRuntimeDefault:
		filter, err = seccomp.GetDefaultProfile(b.Spec)
	case config.ProfileLocalhost:
		if b.SeccompProfile == nil {
			return invalid(field+"localhost_ref", "no such file: %q", p.Ref)
		}
		filter, err = seccomp.LoadProfile(string(b.SeccompProfile), b.Spec)
		if err == nil && filter == nil {
			return invalid(field+"localhost_ref", "%s says nothing: no default action and no system calls", p.Ref)
		}
	default:
		return invalid(field+"profile_type", "unknown type %q", p.Kind)
	}
	if err != nil {
		return invalid(field+"localhost_ref", "%s: %v", p.Ref, err)
	}
	b.Spec.Linux.Seccomp = filter
	return nil
}

// appArmor: the runtime's default where one is loaded; a profile of the
// node's own must not be ignored where there is no AppArmor.
func appArmor(b *builder) error {
	p := b.Container.Security.AppArmor
	if b.privileged() {
		return nil
	}
	const field = fieldSecurity + "apparmor."
	switch p.Kind {
	case "", config.ProfileRuntimeDefault:
		if b.Host.HasAppArmor {
			b.Spec.Process.ApparmorProfile = b.Host.AppArmorDefault
		}
	case config.ProfileUnconfined:
	case config.ProfileLocalhost:
		if !b.Host.HasAppArmor {
			return invalid(field+"localhost_ref", "profile %q cannot be used: this node has no AppArmor", p.Ref)
		}
		if !b.AppArmorLoaded {
			return invalid(field+"localhost_ref", "profile %q is not loaded in the kernel; load it with apparmor_parser", p.Ref)
		}
		b.Spec.Process.ApparmorProfile = strings.TrimPrefix(p.Ref, "localhost/")
	default:
		return invalid(field+"profile_type", "unknown type %q", p.Kind)
	}
	return nil
}
