package config

import (
	"fmt"
	"syscall"
)

func key(name, namespace, uid string, attempt uint32) string {
	return fmt.Sprintf("%q %q %q %d", name, namespace, uid, attempt) // quoted: names may hold any separator
}

// Container is a container as wanted.
type Container struct {
	Name    string
	Attempt uint32

	Image       Image
	Command     []string // replaces the image's entrypoint when not empty
	Args        []string // replaces the image's command when not empty
	WorkingDir  string   // "" means the image's, then /
	Env         []EnvVar // over the image's
	Mounts      []Mount
	Devices     []Device
	CDIDevices  []string // qualified names, vendor.com/class=name, each once
	Labels      map[string]string
	Annotations map[string]string
	LogPath     string // relative to the sandbox's LogDirectory; "" means no log
	Stdin       bool   // keep a stdin pipe; otherwise stdin is /dev/null
	StdinOnce   bool   // close stdin when the first attach ends
	TTY         bool
	StopSignal  string // "SIGTERM", "SIGRTMIN+3"; "" means the image's, then SIGTERM

	Resources Resources
	Security  Security
}

// Key is what makes a container unique within its sandbox.
func (c *Container) Key(s SandboxID) string { return key(c.Name, string(s), "", c.Attempt) }

// Image names the image wanted, and echoes what the client called it.
type Image struct {
	Ref            string // image ID or reference; must have been pulled
	UserSpecified  string // echoed
	RuntimeHandler string // echoed
	Annotations    map[string]string
}

// EnvVar is one environment variable.
type EnvVar struct {
	Name, Value string
}

// Propagation of mounts below a volume.
type Propagation string

// CRI's MountPropagation.
const (
	PropagationPrivate         Propagation = "private"
	PropagationHostToContainer Propagation = "host-to-container"
	PropagationBidirectional   Propagation = "bidirectional"
)

// Mount is a bind mount of a path of the node, or an image mounted read-only.
type Mount struct {
	ContainerPath     string   // as requested: kubelet finds its termination log by equality
	HostPath          HostPath // "" for an image
	Image             *Image   // nil for a path of the node
	ImageSubPath      string   // folder or file of the image, "" for all of it; links in it stay inside. Without Image it means nothing
	Readonly          bool
	RecursiveReadonly bool
	Propagation       Propagation
	Options           []string // further mount options: noexec, nodev, nosuid, ...
	SELinuxRelabel    bool     // echoed; there are no labels to give yet
	IDMap             *IDMaps  // owners are seen through it; it is that of the sandbox. nil shows them as on the node
}

// Device is a device node of the node made in the container.
type Device struct {
	ContainerPath ContainerPath
	HostPath      HostPath
	Permissions   string // subset of "rwm"
}

// Resources are cgroup limits. The zero value limits nothing.
type Resources struct {
	CPUPeriod   int64             // µs; 0 means the kernel's default, 100000
	CPUQuota    int64             // µs of CPU time per period; <= 0 means no limit
	CPUShares   int64             // relative weight, 1024 is one CPU; 0 means the kernel's default
	MemoryLimit int64             // bytes; 0 or -1 means no limit
	MemorySwap  int64             // bytes of memory and swap together; 0 means equal to MemoryLimit
	OOMScoreAdj int64             // -1000 (never killed) to 1000 (killed first)
	CpusetCPUs  string            // "" means the parent's
	CpusetMems  string            // "" means the parent's
	HugepageMax map[string]uint64 // page size as in "2MB" → bytes
	Unified     map[string]string // raw cgroup v2 files, over what the other fields say
}

// SignalNumber is a signal by number, kept apart from timeouts and PIDs.
type SignalNumber = syscall.Signal
