// Package cri is the Container Runtime Interface of crid: gRPC in, gRPC out. It
// decodes a request into plain data of sandbox/config, calls the sandbox manager
// or the image store, and encodes what they know. It has no policy and no state,
// and CRI's types go no further than this package.
//
// # Decoding
//
// A request is read in one pass that collects everything wrong with it. The
// answer is InvalidArgument, and names each malformed field by its path in the
// proto file: "config.metadata.name: must not be empty". What crid does not do
// is refused in the same way rather than dropped, since a container that starts
// with less than was asked for is worse than one that does not start. The
// exceptions are fields without a meaning on the node at hand (those for
// Windows, SELinux labels where there is no SELinux) and those about the
// sandbox's own process, which crid does not have. fields_test.go and
// fields_calls_test.go set each field of each request, and have the list of
// those without effect. What is a matter of the node, the image or the
// pod (a profile that is not loaded, an unknown user, a sysctl of the whole node)
// is refused in the same words by packages sandbox and sandbox/spec.
//
// # Errors
//
// Packages below return kinds (internal/errkind); errors.go alone turns them
// into codes:
//
//	Invalid      InvalidArgument     asking again is no use
//	NotFound     NotFound            only from Status, Start, Exec...; Stop and Remove succeed
//	Exists       AlreadyExists       another sandbox or container has that name
//	BadState     FailedPrecondition  such as an exec in a container that has exited
//	Unavailable  Unavailable         registry, plugin or monitor; try again
//	Timeout      DeadlineExceeded    an ExecSync that took too long, for one
//	Other        Internal            a bug or a broken machine
//
// A call that its client cancelled ends as Canceled; an RPC that crid does not
// have, as Unimplemented (unimplemented.go). The text of an error is passed on
// from its first letter, because kubelet looks there for RegistryUnavailable,
// SignatureValidationFailed, RROUnsupported and ImageVolumeMountFailed. With the
// first two the code is Unknown, whatever the kind: kubelet sees them with no other.
//
// # Reading
//
// Version, Status, the lists and the statuses read published snapshots. They take
// no lock that is held across I/O and call no plugin, so that one stuck pod never
// makes the node look dead. Figures are asked of the kernel and of nobody else.
package cri
