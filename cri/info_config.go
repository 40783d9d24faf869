package cri

import (
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/sandbox"
	"github.com/cridproject/crid/sandbox/config"
)

// The configurations below are what a client sent, in CRI's words again, for people
// and scripts. Nothing is decoded from them, and what has a better place is left
// out: profiles, devices and identities are in the spec, resources in the status.

func sandboxConfig(c *config.Sandbox) *v1.PodSandboxConfig {
	out := &v1.PodSandboxConfig{
		Metadata:     sandboxMetadata(c),
		Hostname:     c.Hostname,
		LogDirectory: string(c.LogDirectory),
		Labels:       c.Labels,
		Annotations:  c.Annotations,
		Linux: &v1.LinuxPodSandboxConfig{
			CgroupParent: c.CgroupParent,
			Sysctls:      c.Sysctls,
			SecurityContext: &v1.LinuxSandboxSecurityContext{
				NamespaceOptions: encodeNamespaces(c.Namespaces),
				Privileged:       c.Privileged,
				ReadonlyRootfs:   c.ReadonlyRootfs,
			},
		},
	}
	if c.Overhead != nil {
		out.Linux.Overhead = encodeResources(c.Overhead)
	}
	if c.Resources != nil {
		out.Linux.Resources = encodeResources(c.Resources)
	}
	if d := c.DNS; d != nil {
		out.DnsConfig = &v1.DNSConfig{Servers: d.Servers, Searches: d.Searches, Options: d.Options}
	}
	for _, p := range c.PortMappings {
		out.PortMappings = append(out.PortMappings, &v1.PortMapping{
			Protocol:      keyOf(protocols, p.Protocol),
			ContainerPort: int32(p.ContainerPort),
			HostPort:      int32(p.HostPort),
			HostIp:        p.HostIP,
		})
	}
	return out
}

func containerConfig(st *sandbox.ContainerStatus) *v1.ContainerConfig {
	c := &st.Config
	out := &v1.ContainerConfig{
		Metadata:    containerMetadata(c),
		Image:       imageSpec(c, nil),
		Command:     c.Command,
		Args:        c.Args,
		WorkingDir:  c.WorkingDir,
		Mounts:      encodeMounts(st),
		Labels:      c.Labels,
		Annotations: c.Annotations,
		LogPath:     c.LogPath,
		Stdin:       c.Stdin,
		StdinOnce:   c.StdinOnce,
		Tty:         c.TTY,
		StopSignal:  signalValue(c.StopSignal),
		Linux: &v1.LinuxContainerConfig{
			Resources: encodeResources(&c.Resources),
			SecurityContext: &v1.LinuxContainerSecurityContext{
				NamespaceOptions: encodeNamespaces(c.Security.Namespaces),
				Privileged:       c.Security.Privileged,
				ReadonlyRootfs:   c.Security.ReadonlyRootfs,
				NoNewPrivs:       c.Security.NoNewPrivileges,
			},
		},
	}
	for _, e := range c.Env {
		out.Envs = append(out.Envs, &v1.KeyValue{Key: e.Name, Value: []byte(e.Value)})
	}
	for _, name := range c.CDIDevices {
		out.CDIDevices = append(out.CDIDevices, &v1.CDIDevice{Name: name})
	}
	return out
}
