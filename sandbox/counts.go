package sandbox

// SandboxCounts is how many sandboxes are in each state, those included that clients do
// not see yet or any more. Each state is in it.
func (m *Manager) SandboxCounts() map[string]int {
	counts := make(map[string]int, len(sandboxStates))
	for _, st := range sandboxStates {
		counts[string(st)] = 0
	}
	for _, s := range m.allSandboxes() {
		counts[string(*s.state.Load())]++
	}
	return counts
}

// ContainerCounts is SandboxCounts for containers.
func (m *Manager) ContainerCounts() map[string]int {
	counts := make(map[string]int, len(containerStates))
	for _, st := range containerStates {
		counts[string(st)] = 0
	}
	for _, c := range m.allContainers() {
		counts[string(*c.state.Load())]++
	}
	return counts
}
