package server

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
	"github.com/cridproject/crid/monitor"
)

// deadMount is a mount that may die, and what makes requests for containers that
// have it.
func (n *node) deadMount() (*testutil.FUSE, func(id string) monitor.CreateRequest) {
	n.t.Helper()
	dir := filepath.Join(n.state, "dead")
	if err := os.Mkdir(dir, 0o755); err != nil {
		n.t.Fatal(err)
	}
	return testutil.MountFUSE(n.t, dir), func(id string) monitor.CreateRequest {
		s := n.spec("sleep", "1000")
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/dead", Type: "bind", Source: dir, Options: []string{"rbind"}})
		return n.request(id, s)
	}
}

func TestDeadMountIsGivenUp(t *testing.T) {
	n := newNodeWith(t, Options{MakeLimit: 100 * time.Millisecond})
	fuse, request := n.deadMount()
	fuse.Hang()
	_, _, err := n.client.Create(context.Background(), request("given-up"))
	if !errkind.Is(err, errkind.Timeout) || !strings.Contains(err.Error(), "dead network file system") {
		t.Errorf("Create on a dead mount = %v, want a timeout", err)
	}
	n.nothingOf("given-up")
}

// nothingOf fails the test when a container that was not made has left something.
func (n *node) nothingOf(id string) {
	n.t.Helper()
	for _, path := range []string{filepath.Join(n.state, "runc", id), filepath.Dir(n.server.rootfs(id))} {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			n.t.Errorf("%s is left: %v", path, err)
		}
	}
}

// A container whose volume does not answer costs nobody else anything, and can
// be deleted while it is being made and later.
func TestDeadMount(t *testing.T) {
	n := newNode(t)
	fuse, request := n.deadMount()
	n.create(request("before"))
	n.start("before")
	fuse.Hang()

	// Deleted while it hangs.
	failed := make(chan error)
	go func() {
		_, _, err := n.client.Create(context.Background(), request("deleted"))
		failed <- err
	}()
	for hangs := false; !hangs; _, hangs = n.server.making.Load("deleted") {
		if t.Context().Err() != nil {
			t.Fatal("the container is not being made")
		}
	}
	n.run("other", "sleep", "1000")
	if out, _, _, err := n.exec("other", "echo", "fine"); err != nil || out != "fine\n" {
		t.Errorf("exec in another container = %q, %v", out, err)
	}
	n.delete("deleted")
	if err := <-failed; !errkind.Is(err, errkind.BadState) || !strings.Contains(err.Error(), "killed while it was being made") {
		t.Errorf("Create of what was deleted meanwhile = %v, want bad state", err)
	}

	// One that has the volume already waits in the kernel, and can be killed.
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _, _, _ = n.exec("before", "ls", "/dead")
	}()
	n.delete("before")
	<-done
	n.nothingOf("deleted")
}

// What cannot even be killed is waited for in vain, said so, and costs nobody
// else anything; when its file system answers at last, it can be deleted.
func TestDeadMountThatCannotBeKilled(t *testing.T) {
	n := newNode(t)
	fuse, request := n.deadMount()
	r := request("stuck")
	_, hold, err := n.client.Create(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	n.start("stuck")
	waits := fuse.Swallow()
	execDone := make(chan struct{})
	go func() {
		defer close(execDone)
		_, _, _, _ = n.exec("stuck", "ls", "/dead")
	}()
	<-waits
	remove := monitor.DeleteRequest{ID: "stuck", CgroupsPath: n.cgroupsPath("stuck"), SystemdCgroup: n.systemd}
	deleted := make(chan error, 1)
	go func() { deleted <- n.client.Delete(context.Background(), remove) }()
	n.run("other", "sleep", "1000")
	if out, _, _, err := n.exec("other", "echo", "fine"); err != nil || out != "fine\n" {
		t.Errorf("exec in another container = %q, %v", out, err)
	}
	if err := <-deleted; !errkind.Is(err, errkind.Timeout) || !strings.Contains(err.Error(), "after SIGKILL") {
		t.Errorf("Delete = %v, want a timeout that names what is left", err)
	}
	fuse.End()
	<-execDone
	n.delete("stuck")
	n.nothingOf("stuck")
}
