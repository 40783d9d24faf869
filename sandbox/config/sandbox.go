package config

// NamespaceMode says whose namespace is used.
type NamespaceMode string

// The modes of CRI's NamespaceMode, in its words.
const (
	NamespacePod       NamespaceMode = "pod"       // one for the pod
	NamespaceContainer NamespaceMode = "container" // one for each container
	NamespaceNode      NamespaceMode = "node"      // the node's own
	NamespaceTarget    NamespaceMode = "target"    // that of Namespaces.Target
)

// Namespaces says which namespaces are shared with whom. UTS follows Network.
type Namespaces struct {
	Network NamespaceMode // pod or node
	PID     NamespaceMode // pod, container, node or (containers only) target
	IPC     NamespaceMode // pod or node
	Target  ContainerID   // the container whose PID namespace is joined; only with PID target
	// User is pod or node; "" when the request does not say, which for a sandbox
	// means node and for a container what its sandbox has.
	User    NamespaceMode
	UserMap *IDMaps // with User pod, else nil
}

// Sandbox is a pod sandbox as wanted.
type Sandbox struct {
	Name      string
	UID       string
	Namespace string
	Attempt   uint32

	Hostname       string   // "" means the node's name
	LogDirectory   HostPath // "" means that its containers have no logs
	DNS            *DNS     // nil means a copy of the node's resolv.conf
	PortMappings   []PortMapping
	Labels         map[string]string
	Annotations    map[string]string
	RuntimeHandler string // as requested; "" is the only handler

	CgroupParent   string // "" means the configured default
	Sysctls        map[string]string
	Namespaces     Namespaces
	Privileged     bool // a privileged container needs a privileged sandbox
	ReadonlyRootfs bool // the sandbox's own files are mounted read-only

	Overhead  *Resources // reported back, applied by kubelet
	Resources *Resources // sum of the containers', reported back, applied by kubelet
}

// Key is what makes a sandbox unique among those that exist: a second request
// with the same key is a retry.
func (s *Sandbox) Key() string { return key(s.Name, s.Namespace, s.UID, s.Attempt) }

// HostNetwork reports whether the sandbox uses the node's network (and UTS) namespace.
func (s *Sandbox) HostNetwork() bool { return s.Namespaces.Network == NamespaceNode }

// DNS is the contents of resolv.conf; all empty is an empty file.
type DNS struct {
	Servers, Searches, Options []string
}

// PortMapping maps a port of the node to one of the pod.
type PortMapping struct {
	Protocol      string // tcp, udp or sctp
	ContainerPort uint16
	HostPort      uint16 // 0 means not mapped
	HostIP        string // "" means all addresses
}
