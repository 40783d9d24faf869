package sandbox

import (
	"github.com/cridproject/crid/internal/errkind"
)

// SandboxState is where a sandbox is in its life. Clients see two of them,
// ready and notready.
type SandboxState string

// The states of a sandbox; the diagram is at next.
const (
	SandboxCreating SandboxState = "creating"
	SandboxReady    SandboxState = "ready"
	SandboxStopping SandboxState = "stopping"
	SandboxNotReady SandboxState = "notready"
	SandboxRemoving SandboxState = "removing"
)

var sandboxStates = [...]SandboxState{SandboxCreating, SandboxReady, SandboxStopping, SandboxNotReady, SandboxRemoving}

// sandboxEvent is what happens to a sandbox.
type sandboxEvent string

const (
	sandboxMade    sandboxEvent = "become ready"
	sandboxStop    sandboxEvent = "stop"           // asked for
	sandboxStopped sandboxEvent = "be stopped"     // all that runs is gone
	sandboxLost    sandboxEvent = "lose its parts" // a namespace or the PID holder is gone
	sandboxRemove  sandboxEvent = "be removed"     // asked for, or Run failed
)

var sandboxEvents = [...]sandboxEvent{sandboxMade, sandboxStop, sandboxStopped, sandboxLost, sandboxRemove}

// next is the whole state machine of sandboxes. Whatever is half made goes down
// by being removed; the record of a removed sandbox is deleted.
//
//	creating --made--> ready --stop--> stopping --stopped--> notready
//	    |                |  \____________lost______________/^  |   |
//	    |                |                 |      ^---stop-----+   |
//	    +--stop,remove---+-----remove------+------remove-----------+--> removing
func (s SandboxState) next(e sandboxEvent) (SandboxState, error) {
	switch s {
	case SandboxCreating:
		switch e {
		case sandboxMade:
			return SandboxReady, nil
		case sandboxStop, sandboxRemove:
			return SandboxRemoving, nil
		}
	case SandboxReady:
		switch e {
		case sandboxStop:
			return SandboxStopping, nil
		case sandboxLost:
			return SandboxNotReady, nil
		case sandboxRemove:
			return SandboxRemoving, nil
		}
	case SandboxStopping:
		switch e {
		case sandboxStop, sandboxLost:
			return SandboxStopping, nil
		case sandboxStopped:
			return SandboxNotReady, nil
		case sandboxRemove:
			return SandboxRemoving, nil
		}
	case SandboxNotReady:
		switch e {
		case sandboxStop:
			return SandboxStopping, nil
		case sandboxLost:
			return SandboxNotReady, nil
		case sandboxRemove:
			return SandboxRemoving, nil
		}
	case SandboxRemoving:
		switch e {
		case sandboxStop, sandboxLost, sandboxRemove:
			return SandboxRemoving, nil
		}
	}
	return s, errkind.Errorf(errkind.BadState, "sandbox is %s, it cannot %s", s, e)
}

// public is the state as clients see it.
func (s SandboxState) public() SandboxState {
	if s == SandboxReady {
		return SandboxReady
	}
	return SandboxNotReady
}

// ContainerState is where a container is in its life. Clients see created,
// running and exited; unknown is CRI's word that crid has no use for, because
// what is not known to have ended is watched.
type ContainerState string

// The states of a container; the diagram is at next.
const (
	ContainerCreating ContainerState = "creating"
	ContainerCreated  ContainerState = "created"
	ContainerStarting ContainerState = "starting"
	ContainerRunning  ContainerState = "running"
	ContainerExited   ContainerState = "exited"
	ContainerRemoving ContainerState = "removing"
	ContainerUnknown  ContainerState = "unknown"
)

var containerStates = [...]ContainerState{ContainerCreating, ContainerCreated, ContainerStarting, ContainerRunning, ContainerExited, ContainerRemoving}

// containerEvent is what happens to a container.
type containerEvent string

const (
	containerMade       containerEvent = "be created"
	containerStart      containerEvent = "start" // asked for
	containerStarted    containerEvent = "be started"
	containerNotStarted containerEvent = "be found waiting for its start" // crid or the monitor died meanwhile
	containerExit       containerEvent = "exit"                           // also: its start failed
	containerRemove     containerEvent = "be removed"                     // asked for, or Create failed
)

var containerEvents = [...]containerEvent{containerMade, containerStart, containerStarted, containerNotStarted, containerExit, containerRemove}

// next is the whole state machine of containers.
//
//	            made             start             started
//	creating --------> created ---------> starting --------> running
//	    |                | | ^--not started--+ |                |
//	    |                | +------exit---------+------exit------+--> exited
//	    +----remove------+-------------------------remove--------------+--> removing
//
// A created container may be found running after a crash of crid between the
// monitor's answer and the record of it.
func (s ContainerState) next(e containerEvent) (ContainerState, error) {
	if e == containerRemove {
		return ContainerRemoving, nil
	}
	switch s {
	case ContainerCreating:
		if e == containerMade {
			return ContainerCreated, nil
		}
	case ContainerCreated:
		switch e {
		case containerStart:
			return ContainerStarting, nil
		case containerStarted:
			return ContainerRunning, nil
		case containerNotStarted:
			return ContainerCreated, nil
		case containerExit:
			return ContainerExited, nil
		}
	case ContainerStarting:
		switch e {
		case containerStarted:
			return ContainerRunning, nil
		case containerNotStarted:
			return ContainerCreated, nil
		case containerExit:
			return ContainerExited, nil
		}
	case ContainerRunning:
		switch e {
		case containerStarted:
			return ContainerRunning, nil
		case containerExit:
			return ContainerExited, nil
		}
	case ContainerExited:
		if e == containerExit { // told again: it was not acknowledged
			return ContainerExited, nil
		}
	case ContainerRemoving:
		if e == containerExit {
			return ContainerRemoving, nil
		}
	}
	return s, errkind.Errorf(errkind.BadState, "container is %s, it cannot %s", s, e)
}

// public is the state as clients see it.
func (s ContainerState) public() ContainerState {
	switch s {
	case ContainerCreating, ContainerCreated, ContainerStarting:
		return ContainerCreated
	case ContainerRunning:
		return ContainerRunning
	case ContainerExited, ContainerRemoving:
		return ContainerExited
	}
	return ContainerUnknown
}

// lives reports whether the monitor has, or may have, a process of it.
func (s ContainerState) lives() bool {
	return s == ContainerCreated || s == ContainerStarting || s == ContainerRunning
}
