// Package config is what a client wants: pod sandboxes and containers as plain
// data, checked and complete, free of CRI and of the kernel.
//
// cri decodes requests into it, sandbox carries it out and persists it as it
// stands (JSON field names are Go's; a renamed field is a new record version),
// sandbox/spec turns it into an OCI spec. It has no behaviour but naming.
package config

// SandboxID names a pod sandbox: 64 lower-case hexadecimal digits.
type SandboxID string

// ContainerID names a container: 64 lower-case hexadecimal digits.
type ContainerID string

// HostPath is an absolute path on the node.
type HostPath string

// ContainerPath is an absolute, cleaned path inside a container, except where
// a field says that it echoes the request.
type ContainerPath string

const shortLen = 13

// Short is the beginning of the ID, for messages and file names read by people.
func (id SandboxID) Short() string { return short(string(id)) }

// Short is the beginning of the ID, for messages and file names read by people.
func (id ContainerID) Short() string { return short(string(id)) }

func short(s string) string {
	if len(s) > shortLen {
		return s[:shortLen]
	}
	return s
}
