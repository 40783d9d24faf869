// Package sandbox is the domain of crid: pod sandboxes and the containers in
// them, from the wish of a client (sandbox/config) to processes that run, and
// over every crash on the way.
//
// # Words
//
// A sandbox is what the containers of a pod share: pinned namespaces, a place on
// the network, a /dev/shm, resolv.conf, hosts and hostname. It has no process of
// its own, except a holder where the pod shares one PID namespace. An attempt is
// one try to make a sandbox or container. A record is what is on disk of one. A
// status is what clients see of one.
//
// Wanted, live and recorded are three types: config.Sandbox, sandbox and
// sandboxRecord; config.Container, container and containerRecord.
//
// # States
//
// Both state machines are functions in state.go, with their diagrams:
//
//	creating → ready → stopping → notready            sandboxes; any → removing
//	creating → created → starting → running → exited  containers; any → removing
//
// # The crash rule
//
// A record says what may exist. It is written before anything is made, and
// deleted after all is gone. So a crash between any two lines leaves a record
// that the way down understands, and there is one way down: tearDown (and
// tearDownContainer), called by attempts that failed, by Stop and Remove,
// and by New for whatever it finds half done. It is idempotent, finds all parts
// by the ID alone, and goes as far as it can. The one thing that an ID does
// not tell is the configuration by which a sandbox was attached to the network:
// that is in the record before ADD is called.
//
// What happened is never undone by an error: a container that has exited has
// exited, also when the disk is full (noteContainer, against saveContainer).
// An exit is in the monitor's journal until its record is synced: one fsync in
// a container's life, and the only one.
//
// Each record written and each call to another part is a failpoint, named
// sandbox.<operation>.<step> or container.<operation>.<step>. Tests crash crid at
// each of them.
//
// # Who waits for whom
//
// Locks, in the order in which they are taken:
//
//  1. Manager.sandboxOps, one for each sandbox: an operation on it. Held across
//     calls to plugins and the monitor, for minutes if need be.
//  2. Manager.containerOps, one for each container: making, starting, removing it.
//     Stop, execs and streams do not hold it: a Stop that waits must not keep another
//     from shortening it, or Remove from killing. (It takes it for a moment, to wait for
//     a start that is under way.) Who holds that of a container that
//     has been made does not wait for the monitor to come back (lockContainer).
//  3. sandbox.mu, container.mu: the record. Held for one write of a file.
//  4. events.mu: who is told what. Held for no more than handing an event on.
//  5. Manager.mu: the maps. Never held across I/O.
//
// Readers (Sandbox, Sandboxes, Container, Containers) take only the last, for
// reading, and look at published statuses that nobody changes. So do those who ask
// for figures (stats.go), which are then read from the kernel without a lock. PodStatus
// takes events.mu besides.
//
// Create takes no lock of its sandbox. It registers the container under
// Manager.mu if the sandbox is ready; stopping a sandbox first changes its
// state and then lists its containers under the same lock. One sees the other.
//
// Work outlives the client that asked for it (detach): a client whose deadline
// has passed asks again, and finds the first attempt. Only Stop of a container,
// execs and streams end with their client.
//
// # The monitor comes and goes
//
// tend (reconcile.go) connects again when the connection is lost, hands over
// what a new monitor does not have, with the descriptors that crid keeps, and only
// then lets calls use it; meanwhile they have kind Unavailable.
package sandbox
