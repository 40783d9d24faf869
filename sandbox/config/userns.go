package config

// IDMapping maps a range of user or group IDs of a user namespace to IDs of the
// node.
type IDMapping struct {
	ContainerID uint32 // first ID in the user namespace
	HostID      uint32 // first ID on the node
	Length      uint32 // how many
}

// IDMaps is one range of users and one of groups.
type IDMaps struct {
	UIDs, GIDs IDMapping
}

// Host is what an ID of the user namespace is on the node, false if it is none.
func (m IDMapping) Host(id int64) (host uint32, ok bool) {
	at := id - int64(m.ContainerID)
	if at < 0 || at >= int64(m.Length) {
		return 0, false
	}
	return m.HostID + uint32(at), true //nolint:gosec // below Length
}
