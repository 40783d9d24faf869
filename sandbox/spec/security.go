package spec

import (
	"slices"
	"strings"

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

// appArmor: no profile asked for is the runtime's default where AppArmor is, and
// none elsewhere. A profile that is asked for, the default too, and cannot be had
// is refused: kubelet sends one only where it has found AppArmor, and a container
// that is less confined than it asked to be must not go unnoticed.
func appArmor(b *builder) error {
	p := b.Container.Security.AppArmor
	if b.privileged() {
		return nil
	}
	const field = fieldSecurity + "apparmor."
	switch p.Kind {
	case "", config.ProfileRuntimeDefault:
		switch {
		case !b.Host.HasAppArmor && p.Kind == config.ProfileRuntimeDefault:
			return invalid(field+"profile_type", "RuntimeDefault cannot be had: this node has no AppArmor")
		case !b.Host.HasAppArmor:
		case b.Host.AppArmorDefault != "":
			b.Spec.Process.ApparmorProfile = b.Host.AppArmorDefault
		case p.Kind == config.ProfileRuntimeDefault:
			return invalid(field+"profile_type", "RuntimeDefault cannot be had, for crid's default profile is not loaded: %s", b.AppArmorProblem)
		default:
			b.warn(field+"profile_type", "AppArmor does not confine it, for crid's default profile is not loaded: %s", b.AppArmorProblem)
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
