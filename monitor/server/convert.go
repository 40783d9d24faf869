package server

import (
	"slices"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// convert makes libcontainer's config of a spec.
//
// A user namespace to be joined is put in afterwards, with the maps that are in
// the spec. libcontainer would ask the kernel for them, by a process that enters
// the namespace, and wants none in the spec.
func convert(o *specconv.CreateOpts) (*configs.Config, error) {
	l := o.Spec.Linux
	i := slices.IndexFunc(l.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.UserNamespace && n.Path != "" })
	if i < 0 {
		return specconv.CreateLibcontainerConfig(o)
	}
	if err := checkBound(l.Devices); err != nil {
		return nil, err
	}
	spec, linux := *o.Spec, *l
	path := l.Namespaces[i].Path
	linux.Namespaces = slices.Delete(slices.Clone(l.Namespaces), i, i+1)
	linux.UIDMappings, linux.GIDMappings = nil, nil
	spec.Linux = &linux
	opts := *o
	opts.Spec = &spec
	config, err := specconv.CreateLibcontainerConfig(&opts)
	if err != nil {
		return nil, err
	}
	config.Namespaces.Add(configs.NEWUSER, path)
	config.UIDMappings, config.GIDMappings = idMaps(l.UIDMappings), idMaps(l.GIDMappings)
	for _, m := range config.Mounts {
		if m.IDMapping != nil {
			m.IDMapping.UserNSPath = path
		}
	}
	return config, nil
}

func idMaps(in []specs.LinuxIDMapping) []configs.IDMap {
	var out []configs.IDMap
	for _, m := range in {
		out = append(out, configs.IDMap{ContainerID: int64(m.ContainerID), HostID: int64(m.HostID), Size: int64(m.Size)})
	}
	return out
}
