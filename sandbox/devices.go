package sandbox

import (
	"context"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/sandbox/spec"
)

// Devices is what the manager needs of package cdi.
type Devices interface {
	// Inject puts the devices named into spec. It may wait for file systems. After
	// an error spec is not to be used.
	Inject(log klog.Logger, spec *specs.Spec, names []string) error
}

// injectDevices adds a container's CDI devices to what was built for it.
func (m *Manager) injectDevices(ctx context.Context, c *container, built *spec.Result) error {
	names := c.config.CDIDevices
	if len(names) == 0 {
		return nil
	}
	if m.o.Devices == nil {
		return errkind.Errorf(errkind.Invalid, "config.CDI_devices: this crid has none")
	}
	groups := built.Spec.Process.User.AdditionalGids
	err := m.paths.do(ctx, m.o.HostPathTimeout, "CDI devices of container "+c.id.Short(), func() error {
		return m.o.Devices.Inject(klog.FromContext(ctx), built.Spec, names)
	})
	if err != nil {
		return err
	}
	for _, g := range built.Spec.Process.User.AdditionalGids {
		if !slices.Contains(groups, g) {
			built.User.Groups = append(built.User.Groups, int64(g))
		}
	}
	return nil
}
