package e2e

import (
	"os"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/internal/testutil"
)

// The file system of a volume stops answering. It costs the pods that use it, in
// a limited time and with an error that names it, and nobody else.
func TestDeadMount(t *testing.T) {
	n := NewNode(t, NodeOptions{NoNetwork: true})
	n.PullBusybox()
	dir := n.path("dead")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	fuse := testutil.MountFUSE(t, dir)

	pod, p := n.hostPod("dead")
	c := n.ContainerConfig("user", "sleep", "1000")
	c.Mounts = []*cri.Mount{{ContainerPath: "/v", HostPath: dir}}
	user := n.Run(pod, p, c)
	c.Metadata.Name = "second"
	n.Run(pod, p, c) // goes with its pod
	fuse.Hang()

	// A container that has it, and waits for it: it can be stopped and removed.
	waits := make(chan error, 1)
	go func() {
		_, err := n.Runtime.ExecSync(n.Ctx(), &cri.ExecSyncRequest{ContainerId: user, Cmd: []string{"ls", "/v"}})
		waits <- err
	}()

	// A container that wants it.
	failed := make(chan error, 2)
	go func() {
		c := n.ContainerConfig("wants", "true")
		c.Mounts = []*cri.Mount{{ContainerPath: "/v", HostPath: dir}}
		failed <- n.tryCreate(pod, p, c)
		failed <- n.tryCreate(pod, p, c) // without waiting: the first has not been answered yet
	}()

	// The same for a device of it.
	failedDevice := make(chan error, 2)
	go func() {
		c := n.ContainerConfig("device", "true")
		c.Devices = []*cri.Device{{ContainerPath: "/dev/x", HostPath: dir, Permissions: "r"}}
		failedDevice <- n.tryCreate(pod, p, c)
		failedDevice <- n.tryCreate(pod, p, c)
	}()

	// Meanwhile, the others.
	other, op := n.hostPod("other")
	id := n.Run(other, op, n.ContainerConfig("main", "sleep", "1000"))
	n.expect(id, map[string]string{"echo fine": "fine\n"})
	if r, err := n.Runtime.ListContainers(n.Ctx(), &cri.ListContainersRequest{}); err != nil || len(r.Containers) != 3 {
		t.Errorf("ListContainers = %v, %v, want three", r, err)
	}
	n.RemovePod(other)

	if _, err := n.Runtime.StopContainer(n.Ctx(), &cri.StopContainerRequest{ContainerId: user, Timeout: 0}); err != nil {
		t.Errorf("StopContainer of one that has the mount = %v", err)
	}
	<-waits
	if _, err := n.Runtime.RemoveContainer(n.Ctx(), &cri.RemoveContainerRequest{ContainerId: user}); err != nil {
		t.Errorf("RemoveContainer of one that has the mount = %v", err)
	}
	for range 2 {
		wantCode(t, "CreateContainer on the dead mount", <-failed, codes.Unavailable, "config.mounts[0].host_path: "+dir, "is it a dead network mount?")
	}
	for _, text := range []string{"does not answer", "has not answered an earlier call"} {
		wantCode(t, "CreateContainer with a device there", <-failedDevice, codes.Unavailable, text)
	}
	n.RemovePod(pod)
	fuse.End()
}
