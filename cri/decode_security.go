//lint:file-ignore SA1019 clients still send the profile fields that SecurityProfile replaced

package cri

import (
	"path"
	"strings"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/sandbox/config"
)

var (
	networkModes = map[v1.NamespaceMode]config.NamespaceMode{
		v1.NamespaceMode_POD:  config.NamespacePod,
		v1.NamespaceMode_NODE: config.NamespaceNode,
	}
	ipcModes = networkModes
	pidModes = map[v1.NamespaceMode]config.NamespaceMode{
		v1.NamespaceMode_POD:       config.NamespacePod,
		v1.NamespaceMode_CONTAINER: config.NamespaceContainer,
		v1.NamespaceMode_NODE:      config.NamespaceNode,
		v1.NamespaceMode_TARGET:    config.NamespaceTarget,
	}
	groupsPolicies = map[v1.SupplementalGroupsPolicy]config.GroupsPolicy{
		v1.SupplementalGroupsPolicy_Merge:  config.GroupsMerge,
		v1.SupplementalGroupsPolicy_Strict: config.GroupsStrict,
	}
	profileKinds = map[v1.SecurityProfile_ProfileType]config.ProfileKind{
		v1.SecurityProfile_RuntimeDefault: config.ProfileRuntimeDefault,
		v1.SecurityProfile_Unconfined:     config.ProfileUnconfined,
		v1.SecurityProfile_Localhost:      config.ProfileLocalhost,
	}
)

const securityContext = "config.linux.security_context"

// sandboxSecurity checks what CRI lets a client say of the sandbox's own
// process. It goes nowhere: a crid sandbox has no such process, and its
// containers come with their own security context.
func (d *decoder) sandboxSecurity(sc *v1.LinuxSandboxSecurityContext) {
	d.ids(sc.GetRunAsUser(), sc.GetRunAsGroup(), sc.GetSupplementalGroups())
	if sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil {
		d.reject(securityContext+".run_as_group", "needs run_as_user")
	}
	enum(d, securityContext+".supplemental_groups_policy", sc.GetSupplementalGroupsPolicy(), groupsPolicies)
	d.selinux(sc.GetSelinuxOptions())
	d.seccomp(sc.GetSeccomp(), sc.GetSeccompProfilePath())
	d.apparmor(sc.GetApparmor(), "")
}

// security decodes a container's security context. nil means the defaults.
func (d *decoder) security(sc *v1.LinuxContainerSecurityContext) config.Security {
	s := config.Security{
		RunAsUser:          optional(sc.GetRunAsUser()),
		RunAsGroup:         optional(sc.GetRunAsGroup()),
		RunAsUsername:      sc.GetRunAsUsername(),
		SupplementalGroups: sc.GetSupplementalGroups(),
		GroupsPolicy:       enum(d, securityContext+".supplemental_groups_policy", sc.GetSupplementalGroupsPolicy(), groupsPolicies),
		Privileged:         sc.GetPrivileged(),
		AddCaps:            sc.GetCapabilities().GetAddCapabilities(),
		DropCaps:           sc.GetCapabilities().GetDropCapabilities(),
		AmbientCaps:        sc.GetCapabilities().GetAddAmbientCapabilities(),
		NoNewPrivileges:    sc.GetNoNewPrivs(),
		ReadonlyRootfs:     sc.GetReadonlyRootfs(),
		MaskedPaths:        d.paths(securityContext+".masked_paths", sc.GetMaskedPaths()),
		ReadonlyPaths:      d.paths(securityContext+".readonly_paths", sc.GetReadonlyPaths()),
		Seccomp:            d.seccomp(sc.GetSeccomp(), sc.GetSeccompProfilePath()),
		AppArmor:           d.apparmor(sc.GetApparmor(), sc.GetApparmorProfile()),
		Namespaces:         d.namespaces(securityContext+".namespace_options", sc.GetNamespaceOptions()),
	}
	d.ids(sc.GetRunAsUser(), sc.GetRunAsGroup(), s.SupplementalGroups)
	d.selinux(sc.GetSelinuxOptions())
	if s.RunAsUser != nil && s.RunAsUsername != "" {
		d.reject(securityContext+".run_as_username", "must be empty when run_as_user is set")
	}
	if s.RunAsGroup != nil && s.RunAsUser == nil && s.RunAsUsername == "" {
		d.reject(securityContext+".run_as_group", "needs run_as_user or run_as_username")
	}
	if strings.ContainsAny(s.RunAsUsername, ":\n\x00") {
		d.reject(securityContext+".run_as_username", "must not contain a colon, a newline or a NUL byte")
	}
	return s
}

func (d *decoder) ids(user, group *v1.Int64Value, groups []int64) {
	if user != nil {
		d.check(securityContext+".run_as_user", badUser(user.GetValue()))
	}
	if group != nil {
		d.check(securityContext+".run_as_group", badUser(group.GetValue()))
	}
	for i, g := range groups {
		d.check(at(securityContext+".supplemental_groups", i), badUser(g))
	}
}

func optional(v *v1.Int64Value) *int64 {
	if v == nil {
		return nil
	}
	n := v.GetValue()
	return &n
}

// namespaces decodes whose namespaces are used. In a nil message all are the
// pod's, by the API's own default.
func (d *decoder) namespaces(field string, o *v1.NamespaceOption) config.Namespaces {
	n := config.Namespaces{
		Network: enum(d, field+".network", o.GetNetwork(), networkModes),
		PID:     enum(d, field+".pid", o.GetPid(), pidModes),
		IPC:     enum(d, field+".ipc", o.GetIpc(), ipcModes),
		Target:  config.ContainerID(o.GetTargetId()),
	}
	switch {
	case n.PID == config.NamespaceTarget:
		d.check(field+".target_id", badID(o.GetTargetId()))
	case n.Target != "":
		d.reject(field+".target_id", "must be empty unless pid is TARGET")
	}
	n.User, n.UserMap = d.userNamespace(field+".userns_options", o.GetUsernsOptions())
	return n
}

// selinux options have no effect on a node without SELinux, as with other
// runtimes. Where SELinux is, a container with another label than the one asked
// for might reach what it must not.
func (d *decoder) selinux(o *v1.SELinuxOption) {
	if !d.node.SELinux || o == nil {
		return
	}
	if o.GetUser() != "" || o.GetRole() != "" || o.GetType() != "" || o.GetLevel() != "" {
		d.reject(securityContext+".selinux_options", "crid sets no SELinux labels yet, and this node has SELinux enabled")
	}
}

// seccomp decodes the profile, or the older string that it replaced.
func (d *decoder) seccomp(p *v1.SecurityProfile, old string) config.Profile {
	field := securityContext + ".seccomp"
	if p == nil && old != "" {
		field = securityContext + ".seccomp_profile_path"
		p = d.oldProfile(field, old)
	}
	out := d.profile(field, p)
	out.Ref = strings.TrimPrefix(out.Ref, "localhost/") // as with AppArmor
	if out.Ref != "" && !path.IsAbs(out.Ref) {
		d.reject(field+".localhost_ref", "%q must be an absolute path", out.Ref)
	}
	return out
}

// apparmor decodes the profile, or the older string that it replaced.
func (d *decoder) apparmor(p *v1.SecurityProfile, old string) config.Profile {
	field := securityContext + ".apparmor"
	if p == nil && old != "" {
		field = securityContext + ".apparmor_profile"
		p = d.oldProfile(field, old)
	}
	out := d.profile(field, p)
	// Clients write the profile's name with and without the old prefix.
	out.Ref = strings.TrimPrefix(out.Ref, "localhost/")
	return out
}

// profile of a nil message is the zero value. An empty message asks for the
// runtime's default: that is the enum's zero.
func (d *decoder) profile(field string, p *v1.SecurityProfile) config.Profile {
	if p == nil {
		return config.Profile{}
	}
	kind := enum(d, field+".profile_type", p.GetProfileType(), profileKinds)
	switch ref := p.GetLocalhostRef(); {
	case kind == config.ProfileLocalhost:
		d.check(field+".localhost_ref", badName(ref))
	case ref != "":
		d.reject(field+".localhost_ref", "must be empty unless profile_type is Localhost")
	}
	return config.Profile{Kind: kind, Ref: p.GetLocalhostRef()}
}

// oldProfile reads the strings that CRI had before SecurityProfile.
func (d *decoder) oldProfile(field, s string) *v1.SecurityProfile {
	switch s {
	case "runtime/default", "docker/default":
		return &v1.SecurityProfile{ProfileType: v1.SecurityProfile_RuntimeDefault}
	case "unconfined":
		return &v1.SecurityProfile{ProfileType: v1.SecurityProfile_Unconfined}
	}
	ref, ok := strings.CutPrefix(s, "localhost/")
	if !ok || ref == "" {
		d.reject(field, "%q is none of runtime/default, unconfined and localhost/NAME", s)
		return nil
	}
	return &v1.SecurityProfile{ProfileType: v1.SecurityProfile_Localhost, LocalhostRef: ref}
}

func (d *decoder) paths(field string, in []string) []string {
	for i, p := range in {
		d.check(at(field, i), badPath(p))
	}
	return in
}
