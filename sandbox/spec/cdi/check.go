package cdi

import (
	"errors"
	"slices"
	"sync"

	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/specs-go"
)

// setChecks has the library check files in a way that it does not by itself.
var setChecks = sync.OnceFunc(func() { cdi.SetSpecValidator(checks{}) })

type checks struct{}

// Validate refuses empty list items, as a "-" too many makes them in YAML: the
// library would follow the nil pointers.
func (checks) Validate(s *specs.Spec) error {
	all := []specs.ContainerEdits{s.ContainerEdits}
	for _, d := range s.Devices {
		all = append(all, d.ContainerEdits)
	}
	for _, e := range all {
		if slices.Contains(e.DeviceNodes, nil) || slices.Contains(e.NetDevices, nil) || slices.Contains(e.Hooks, nil) || slices.Contains(e.Mounts, nil) {
			return errors.New("a list of containerEdits has an empty item")
		}
	}
	return nil
}
