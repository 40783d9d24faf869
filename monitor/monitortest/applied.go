package monitortest

import (
	"encoding/json"

	"github.com/cridproject/crid/monitor"
)

// Applied is what a container has of what it asked for, at Create or at the last
// Update; nothing when there is no such container.
func (f *Fake) Applied(id string) monitor.Applied {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.containers[id]; c != nil {
		return c.applied
	}
	return monitor.Applied{}
}

// RefuseUpdates makes the Updates fail for which refuse has an error, as the kernel
// refuses some. It must not call the fake.
func (f *Fake) RefuseUpdates(refuse func(monitor.UpdateRequest) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuse = refuse
}

// appliedOf is what a spec asks for.
func appliedOf(spec json.RawMessage) monitor.Applied {
	var s struct {
		Process struct {
			OOMScoreAdj *int `json:"oomScoreAdj"`
		} `json:"process"`
		Linux struct {
			Resources json.RawMessage `json:"resources"`
		} `json:"linux"`
	}
	_ = json.Unmarshal(spec, &s) // a test's spec may be anything
	return monitor.Applied{Resources: s.Linux.Resources, OOMScoreAdj: s.Process.OOMScoreAdj}
}
