package config

// GroupsPolicy says where supplemental groups come from.
type GroupsPolicy string

// CRI's SupplementalGroupsPolicy.
const (
	GroupsMerge  GroupsPolicy = "merge"  // the image's /etc/group and the list
	GroupsStrict GroupsPolicy = "strict" // the list only
)

// ProfileKind says where a seccomp or AppArmor profile comes from.
type ProfileKind string

// CRI's SecurityProfile.ProfileType.
const (
	ProfileRuntimeDefault ProfileKind = "runtime-default"
	ProfileUnconfined     ProfileKind = "unconfined"
	ProfileLocalhost      ProfileKind = "localhost"
)

// Profile is a seccomp or AppArmor profile; the zero value is "not asked for".
type Profile struct {
	Kind ProfileKind
	Ref  string // file (seccomp) or loaded profile (AppArmor) of a localhost profile
}

// Security is who a container runs as and what it may do.
type Security struct {
	RunAsUser          *int64 // nil means RunAsUsername, then the image's user
	RunAsGroup         *int64 // nil means the user's group in the image, then 0
	RunAsUsername      string // looked up in the image's /etc/passwd
	SupplementalGroups []int64
	GroupsPolicy       GroupsPolicy

	Privileged      bool
	AddCaps         []string // with or without CAP_; ALL is what the bounding set holds
	DropCaps        []string
	AmbientCaps     []string
	NoNewPrivileges bool
	ReadonlyRootfs  bool
	MaskedPaths     []string
	ReadonlyPaths   []string
	Seccomp         Profile
	AppArmor        Profile
	Namespaces      Namespaces
}
