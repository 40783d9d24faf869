// Package spec turns a container as wanted into the OCI runtime spec that the
// monitor carries out.
//
// Build is a pure function: the same input gives the same output, and it needs
// no root, no clock and no file system. What the node and the image are like
// is in the Input (package host finds out the node's part of it). The work is a list
// of small rules run in order; each file holds the rules about one subject.
//
// Errors have kind Invalid and begin with the CRI field at fault, such as
// "config.linux.security_context.run_as_group: ...", where a field is.
package spec

import (
	"slices"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cridproject/crid/sandbox/config"
)

// Input is everything that the spec of a container depends on.
type Input struct {
	SandboxID   config.SandboxID
	ContainerID config.ContainerID
	Sandbox     config.Sandbox
	Container   config.Container

	Image         ImageConfig
	Passwd, Group []byte // contents of the image's /etc/passwd and /etc/group; nil when it has none

	Files       Files
	NS          Namespaces
	CgroupsPath string // as in the spec: a path, or slice:prefix:name

	// Devices are Container.Devices as found on the node: links followed,
	// folders walked.
	Devices []Device
	// SeccompProfile is what the file of a localhost seccomp profile holds; nil
	// when there is no such file.
	SeccompProfile []byte
	// Filters keeps seccomp filters for the next container; nil means that none
	// are kept. It does not change what is built.
	Filters *Filters `json:"-"`
	// AppArmorLoaded says that the kernel has the localhost AppArmor profile.
	AppArmorLoaded bool
	// AppArmorProblem is why Host.AppArmorDefault is empty on a node with AppArmor.
	AppArmorProblem string

	Host Host
}

// ImageConfig is the part of an image's config that a container inherits.
type ImageConfig struct {
	Env        []string // NAME=value
	Entrypoint []string
	Cmd        []string
	WorkingDir string
	User       string // user, user:group; names or numbers; "" means root
	StopSignal string
}

// Files are the sandbox's own files on the node. "" means that there is none
// and nothing is mounted.
type Files struct {
	ResolvConf, Hosts, Hostname string
	Shm                         string // the folder that becomes /dev/shm
}

// Namespaces are paths of namespaces to join. "" means a new one, or the
// node's, as the config says.
type Namespaces struct {
	Network, IPC, UTS, PID string
	User                   string // "" only when the sandbox has the node's
}

// Host is what the node is like. But for Devices it changes at most with a
// reboot, so it is found out once.
type Host struct {
	CgroupUnified  bool     // cgroup v2 only; false for v1 and for v1 with an empty v2 beside it
	Controllers    []string // cgroup controllers there are, such as "memory", "hugetlb"
	SwapAccounting bool     // swap can be limited
	HugePageSizes  []string // "2MB", "1GB"; empty means unknown
	BoundingCaps   []string // "CAP_CHOWN" …: what this process may give at most
	MinOOMScoreAdj int      // lowest oom_score_adj that this process may set
	HasAppArmor    bool
	HasSELinux     bool
	// AppArmorDefault is the profile loaded as the runtime's default; "" means
	// none is, and RuntimeDefault confines nothing.
	AppArmorDefault string
	Devices         []Device            // all of the node's, for privileged containers
	Rlimits         []specs.POSIXRlimit // for every container; empty means those of the monitor
	NodeHostname    string
}

// Device is a device node of this machine and where it appears in a container.
type Device struct {
	Path         string // in the container
	Type         string // c or b
	Major, Minor int64
	Mode         uint32 // permission bits
	UID, GID     uint32
	Permissions  string // subset of "rwm", for the device cgroup; "" means rwm
	HostPath     string // on the node; "" is the same as Path
}

// Result is a spec and what was decided on the way.
type Result struct {
	Spec       *specs.Spec
	User       User
	StopSignal string // effective, such as "SIGTERM"
	Signal     syscall.Signal
	// Warnings are wishes that this node cannot fulfil and that a container can
	// live without, one sentence each, for the log.
	Warnings []string
}

// rule fills in one part of the spec.
type rule func(*builder) error

// rules in their order. A later rule may rely on what an earlier one decided:
// seccomp on the capabilities, everything on the user.
var rules = [...]rule{
	checkPrivileged,
	args,
	resolveUser,
	env,
	workingDir,
	stopSignal,
	limits,
	capabilities,
	namespaces,
	userNamespace,
	mounts,
	pathProtection,
	deviceNodes,
	resources,
	seccompFilter,
	appArmor,
}

// builder is a spec being built.
type builder struct {
	Input
	Result
}

// Build makes the spec of a container. The spec's root has no path: the
// monitor, which mounts the root file system, fills it in.
func Build(in Input) (Result, error) {
	c := &in.Container
	b := &builder{Input: in}
	b.Spec = &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Readonly: c.Security.ReadonlyRootfs},
		Process: &specs.Process{
			Terminal:        c.TTY,
			NoNewPrivileges: c.Security.NoNewPrivileges,
		},
		Linux: &specs.Linux{CgroupsPath: in.CgroupsPath},
	}
	for _, r := range rules {
		if err := r(b); err != nil {
			return Result{}, err
		}
	}
	return b.Result, nil
}

// checkPrivileged: CRI says that a privileged container needs a privileged sandbox.
func checkPrivileged(b *builder) error {
	if b.privileged() && !b.Sandbox.Privileged {
		return invalid("config.linux.security_context.privileged", "the pod sandbox is not privileged")
	}
	return nil
}

func (b *builder) privileged() bool { return b.Container.Security.Privileged }

func (h *Host) hasController(name string) bool { return slices.Contains(h.Controllers, name) }
