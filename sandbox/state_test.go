package sandbox

import (
	"testing"

	"github.com/cridproject/crid/internal/errkind"
)

func TestSandboxStates(t *testing.T) {
	const bad = SandboxState("")
	want := map[SandboxState]map[sandboxEvent]SandboxState{
		SandboxCreating: {sandboxMade: SandboxReady, sandboxStop: SandboxRemoving, sandboxStopped: bad, sandboxLost: bad, sandboxRemove: SandboxRemoving},
		SandboxReady:    {sandboxMade: bad, sandboxStop: SandboxStopping, sandboxStopped: bad, sandboxLost: SandboxNotReady, sandboxRemove: SandboxRemoving},
		SandboxStopping: {sandboxMade: bad, sandboxStop: SandboxStopping, sandboxStopped: SandboxNotReady, sandboxLost: SandboxStopping, sandboxRemove: SandboxRemoving},
		SandboxNotReady: {sandboxMade: bad, sandboxStop: SandboxStopping, sandboxStopped: bad, sandboxLost: SandboxNotReady, sandboxRemove: SandboxRemoving},
		SandboxRemoving: {sandboxMade: bad, sandboxStop: SandboxRemoving, sandboxStopped: bad, sandboxLost: SandboxRemoving, sandboxRemove: SandboxRemoving},
	}
	for _, s := range sandboxStates {
		for _, e := range sandboxEvents {
			wanted, decided := want[s][e]
			if !decided {
				t.Fatalf("the test does not say what %s in state %s does", e, s)
			}
			got, err := s.next(e)
			switch {
			case wanted == bad && (got != s || !errkind.Is(err, errkind.BadState)):
				t.Errorf("%s.next(%s) = %s, %v, want it unchanged and kind bad state", s, e, got, err)
			case wanted != bad && (got != wanted || err != nil):
				t.Errorf("%s.next(%s) = %s, %v, want %s", s, e, got, err, wanted)
			}
		}
		if got := s.public(); (got == SandboxReady) != (s == SandboxReady) {
			t.Errorf("%s.public() = %s", s, got)
		}
	}
	if _, err := SandboxState("nonsense").next(sandboxStop); err == nil {
		t.Error("next of an unknown state = nil, want an error")
	}
}

func TestContainerStates(t *testing.T) {
	const bad = ContainerState("")
	want := map[ContainerState]map[containerEvent]ContainerState{
		ContainerCreating: {containerMade: ContainerCreated, containerStart: bad, containerStarted: bad, containerNotStarted: bad, containerExit: bad, containerRemove: ContainerRemoving},
		ContainerCreated:  {containerMade: bad, containerStart: ContainerStarting, containerStarted: ContainerRunning, containerNotStarted: ContainerCreated, containerExit: ContainerExited, containerRemove: ContainerRemoving},
		ContainerStarting: {containerMade: bad, containerStart: bad, containerStarted: ContainerRunning, containerNotStarted: ContainerCreated, containerExit: ContainerExited, containerRemove: ContainerRemoving},
		ContainerRunning:  {containerMade: bad, containerStart: bad, containerStarted: ContainerRunning, containerNotStarted: bad, containerExit: ContainerExited, containerRemove: ContainerRemoving},
		ContainerExited:   {containerMade: bad, containerStart: bad, containerStarted: bad, containerNotStarted: bad, containerExit: ContainerExited, containerRemove: ContainerRemoving},
		ContainerRemoving: {containerMade: bad, containerStart: bad, containerStarted: bad, containerNotStarted: bad, containerExit: ContainerRemoving, containerRemove: ContainerRemoving},
	}
	public := map[ContainerState]ContainerState{
		ContainerCreating: ContainerCreated, ContainerCreated: ContainerCreated, ContainerStarting: ContainerCreated,
		ContainerRunning: ContainerRunning, ContainerExited: ContainerExited, ContainerRemoving: ContainerExited,
	}
	for _, s := range containerStates {
		for _, e := range containerEvents {
			wanted, decided := want[s][e]
			if !decided {
				t.Fatalf("the test does not say what %s in state %s does", e, s)
			}
			got, err := s.next(e)
			switch {
			case wanted == bad && (got != s || !errkind.Is(err, errkind.BadState)):
				t.Errorf("%s.next(%s) = %s, %v, want it unchanged and kind bad state", s, e, got, err)
			case wanted != bad && (got != wanted || err != nil):
				t.Errorf("%s.next(%s) = %s, %v, want %s", s, e, got, err, wanted)
			}
		}
		if got := s.public(); got != public[s] {
			t.Errorf("%s.public() = %s, want %s", s, got, public[s])
		}
	}
}
