package spec

import (
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cridproject/crid/sandbox/config"
)

// namespaces: network, UTS and IPC are the sandbox's, whatever the container's
// own options say; only the PID namespace is chosen for each container.
func namespaces(b *builder) error {
	add := func(t specs.LinuxNamespaceType, path string) {
		b.Spec.Linux.Namespaces = append(b.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: t, Path: path})
	}
	add(specs.MountNamespace, "")
	if !b.Sandbox.HostNetwork() {
		add(specs.NetworkNamespace, b.NS.Network)
		add(specs.UTSNamespace, b.NS.UTS)
	}
	if b.Sandbox.Namespaces.IPC != config.NamespaceNode {
		add(specs.IPCNamespace, b.NS.IPC)
	}
	switch mode := b.pidMode(); mode {
	case config.NamespaceNode:
	case config.NamespaceContainer:
		add(specs.PIDNamespace, "")
	case config.NamespacePod, config.NamespaceTarget:
		if b.NS.PID == "" {
			return fmt.Errorf("PID namespace of mode %q: no path to join was given", mode)
		}
		add(specs.PIDNamespace, b.NS.PID)
	default:
		return invalid(fieldSecurity+"namespace_options.pid", "unknown mode %q", mode)
	}
	// With cgroup v1 libcontainer shows the container its own groups by bind
	// mounts. A privileged container sees the node's tree.
	if b.Host.CgroupUnified && !b.privileged() {
		add(specs.CgroupNamespace, "")
	}
	return nil
}

// pidMode is the container's own, else the sandbox's, else CRI's default.
func (b *builder) pidMode() config.NamespaceMode {
	for _, m := range []config.NamespaceMode{b.Container.Security.Namespaces.PID, b.Sandbox.Namespaces.PID} {
		if m != "" {
			return m
		}
	}
	return config.NamespacePod
}
