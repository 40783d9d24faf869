package sandbox

import (
	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/sandbox/config"
)

// checkPropagation fails when what is mounted below path cannot spread as asked
// for, because of the mount on the node that path is on. The kernel would not
// say so: the container's mount would just stay on its own.
func checkPropagation(path string, p config.Propagation, mountAt func(string) (sys.MountInfo, bool, error)) error {
	var name, needs string
	switch p {
	case config.PropagationBidirectional:
		name, needs = "PROPAGATION_BIDIRECTIONAL", "shared"
	case config.PropagationHostToContainer:
		name, needs = "PROPAGATION_HOST_TO_CONTAINER", "shared or slave"
	default:
		return nil
	}
	m, ok, err := mountAt(path)
	if err != nil || !ok || m.Shared != 0 || m.Master != 0 && p == config.PropagationHostToContainer {
		return err
	}
	kind := "private"
	if m.Master != 0 {
		kind = "slave"
	}
	return errkind.Errorf(errkind.Invalid, "%s needs a source on a %s mount, but %s is on %s, which is %s; on the node, `mount --make-rshared %s` changes that",
		name, needs, path, m.Point, kind, m.Point)
}
