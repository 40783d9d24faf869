package cri

import (
	"math"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/sandbox/config"
)

var userModes = networkModes

// userNamespace of a nil message is "": the request does not say. kubelet says
// NODE for a pod without a user namespace of its own.
func (d *decoder) userNamespace(field string, u *v1.UserNamespace) (config.NamespaceMode, *config.IDMaps) {
	if u == nil {
		return "", nil
	}
	mode := enum(d, field+".mode", u.GetMode(), userModes)
	if mode == config.NamespacePod {
		return mode, &config.IDMaps{
			UIDs: d.idMapping(field+".uids", u.GetUids()),
			GIDs: d.idMapping(field+".gids", u.GetGids()),
		}
	}
	if len(u.GetUids()) > 0 {
		d.reject(field+".uids", "must be empty unless mode is POD")
	}
	if len(u.GetGids()) > 0 {
		d.reject(field+".gids", "must be empty unless mode is POD")
	}
	return mode, nil
}

// idMapping takes the one range that CRI's clients send. It begins with root, for
// without root nothing in the namespace could be set up.
func (d *decoder) idMapping(field string, in []*v1.IDMapping) config.IDMapping {
	if len(in) != 1 {
		d.reject(field, "has %d mappings, must have exactly one", len(in))
		return config.IDMapping{}
	}
	m := in[0]
	switch {
	case m.GetContainerId() != 0:
		d.reject(field+"[0].container_id", "is %d, must be 0: root has to be mapped", m.GetContainerId())
	case m.GetLength() == 0:
		d.reject(field+"[0].length", "must not be 0")
	case uint64(m.GetHostId())+uint64(m.GetLength()) > math.MaxUint32: // the last number is no ID
		d.reject(field+"[0].length", "is %d, which with host_id %d goes beyond the last ID, %d", m.GetLength(), m.GetHostId(), uint32(math.MaxUint32-1))
	}
	return config.IDMapping{ContainerID: m.GetContainerId(), HostID: m.GetHostId(), Length: m.GetLength()}
}

// mountIDMap is nil for a mount whose owners are shown as they are on the node.
// Whether the mapping is that of the pod, only the sandbox knows.
func (d *decoder) mountIDMap(field string, m *v1.Mount) *config.IDMaps {
	uids, gids := m.GetUidMappings(), m.GetGidMappings()
	if len(uids) == 0 && len(gids) == 0 {
		return nil
	}
	return &config.IDMaps{
		UIDs: d.idMapping(field+".uidMappings", uids),
		GIDs: d.idMapping(field+".gidMappings", gids),
	}
}

func encodeUserNamespace(n config.Namespaces) *v1.UserNamespace {
	if n.UserMap == nil {
		// Saying so matters, because an absent message reads as POD.
		return &v1.UserNamespace{Mode: v1.NamespaceMode_NODE}
	}
	return &v1.UserNamespace{
		Mode: v1.NamespaceMode_POD,
		Uids: encodeIDMapping(n.UserMap.UIDs),
		Gids: encodeIDMapping(n.UserMap.GIDs),
	}
}

func encodeIDMapping(m config.IDMapping) []*v1.IDMapping {
	return []*v1.IDMapping{{ContainerId: m.ContainerID, HostId: m.HostID, Length: m.Length}}
}
