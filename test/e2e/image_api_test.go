package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// listed is what ListImages and StreamImages both say.
func (n *Node) listed(filter string) (ids []string) {
	n.T.Helper()
	f := &cri.ImageFilter{Image: &cri.ImageSpec{Image: filter}}
	r, err := n.Images.ListImages(n.Ctx(), &cri.ListImagesRequest{Filter: f})
	if err != nil {
		n.T.Fatal(err)
	}
	for _, i := range r.Images {
		ids = append(ids, i.Id)
	}
	stream, err := n.Images.StreamImages(n.Ctx(), &cri.StreamImagesRequest{Filter: f})
	var streamed []string
	for err == nil {
		var m *cri.StreamImagesResponse
		m, err = stream.Recv()
		for _, i := range m.GetImages() {
			streamed = append(streamed, i.Id)
		}
	}
	if !errors.Is(err, io.EOF) || !slices.Equal(ids, streamed) {
		n.T.Errorf("StreamImages(%s) = %v, %v, ListImages %v", filter, streamed, err, ids)
	}
	return ids
}

func (n *Node) dropImage(ref string) {
	n.T.Helper()
	if _, err := n.Images.RemoveImage(n.Ctx(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}}); err != nil {
		n.T.Errorf("RemoveImage(%s) = %v", ref, err)
	}
}

// cli runs crid with the node's configuration.
func (n *Node) cli(args ...string) (string, error) {
	cmd := exec.Command(n.Programs.Crid, append([]string{"--config", n.Config}, args...)...)
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestImageNames: an image has one ID, whatever it is called, from wherever it came and
// whoever asks; any of its names finds and removes it.
func TestImageNames(t *testing.T) {
	n := NewNode(t, NodeOptions{Config: map[string]string{"images.pinned": `["docker.io/library/*"]`}})
	img := Busybox(t)
	var digest string
	for _, tag := range []string{"e2e/app:1", "e2e/app:2", "e2e/app:3", "library/busybox:latest"} {
		digest = n.Registry.Push(tag, img).String()
	}
	byDigest := "registry.k8s.io/e2e/app@" + digest
	id := n.Pull(byDigest)
	if i := n.image(byDigest); len(i.GetRepoTags()) != 0 || !slices.Equal(i.GetRepoDigests(), []string{byDigest}) || i.GetPinned() {
		t.Errorf("pulled by digest: %v, want no tag, the digest as it was asked for, not pinned", i)
	}
	names := []string{"registry.k8s.io/e2e/app:1", "registry.k8s.io/e2e/app:2", "e2e.test/e2e/app:3"}
	for _, ref := range append(names, "registry.k8s.io/e2e/app:9@"+digest) {
		if got := n.Pull(ref); got != id {
			t.Errorf("PullImage(%s) = %s, want %s", ref, got, id)
		}
	}
	tags := slices.Sorted(slices.Values(names))
	if i := n.image(id); !slices.Equal(i.GetRepoTags(), tags) || len(i.GetRepoDigests()) != 2 || i.GetPinned() {
		t.Errorf("ImageStatus = %v, want tags %v, two digests, not pinned", i, tags)
	}
	if got := n.Pull("busybox"); got != id || !n.image("busybox").GetPinned() {
		t.Errorf("as busybox it is %s, want %s and pinned", got, id)
	}
	short := strings.TrimPrefix(id, "sha256:")[:12]
	for _, filter := range append(names, "", id, short, "sha256:"+short, byDigest, "busybox", "docker.io/library/busybox", "e2e.test/e2e/app:77@"+digest) {
		if got := n.listed(filter); !slices.Equal(got, []string{id}) {
			t.Errorf("the list with filter %q = %v, want %s", filter, got, id)
		}
	}
	for _, filter := range []string{"busybox:1", "registry.k8s.io/e2e/app", "ffffffffffff"} {
		if got := n.listed(filter); len(got) != 0 {
			t.Errorf("the list with filter %q = %v, want none", filter, got)
		}
	}
	n.imageOfContainer(id, "e2e.test/e2e/app@"+digest)
	for _, unwanted := range []string{"e2e.test/e2e/app:3", byDigest, id, short} {
		n.Pull(byDigest)
		n.Pull(names[2])
		n.dropImage(unwanted)
		n.dropImage(unwanted) // is no error
		if got := n.listed(""); len(got) != 0 {
			t.Errorf("after RemoveImage(%s): %v, want none", unwanted, got)
		}
	}
	n.noImageFiles()
	n.checked()
}

// imageOfContainer runs a container of an image with many names and removes the
// image: the container names it as its pod does, and runs on.
func (n *Node) imageOfContainer(id, ref string) {
	n.T.Helper()
	p := n.PodConfig("names")
	p.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	pod := n.RunPod(p)
	c := n.ContainerConfig("main", "sleep", "1000")
	c.Image = &cri.ImageSpec{Image: id, UserSpecifiedImage: "e2e.test/e2e/app:3"} // as kubelet has it
	container := n.Run(pod, p, c)
	check := func(when string) {
		s, err := n.Runtime.ContainerStatus(n.Ctx(), &cri.ContainerStatusRequest{ContainerId: container})
		if err != nil || s.Status.ImageId != id || s.Status.ImageRef != ref {
			n.T.Errorf("%s ContainerStatus = %v %s %s, want %s %s", when, err, s.GetStatus().GetImageId(), s.GetStatus().GetImageRef(), id, ref)
		}
		l, err := n.Runtime.ListContainers(n.Ctx(), &cri.ListContainersRequest{})
		if err != nil || len(l.Containers) != 1 || l.Containers[0].ImageId != id || l.Containers[0].ImageRef != ref {
			n.T.Errorf("%s ListContainers = %v, %v, want %s %s", when, l, err, id, ref)
		}
	}
	check("before the image is removed")
	n.dropImage("e2e.test/e2e/app:3")
	check("after the image is removed")
	if got := n.Exec(container, "echo", "alive"); got != "alive\n" {
		n.T.Errorf("exec in a container of a removed image = %q", got)
	}
	n.checked()
	n.RemovePod(pod)
}

// TestImageUsers: what kubelet judges runAsNonRoot by, and what people see.
func TestImageUsers(t *testing.T) {
	n := NewNode(t, NodeOptions{NoNetwork: true})
	for _, c := range []struct {
		user, name string
		uid        int64
	}{{"", "", 0}, {"1002", "", 1002}, {"www", "www", 0}, {"1003:33", "", 1003}, {"www:33", "www", 0}, {":33", "", 0}} {
		n.Registry.Push("e2e/user:1", Image(t, v1.Config{User: c.user}, Layer(t, File{Path: "f", Mode: 0o644})))
		n.Pull("e2e.test/e2e/user:1")
		if i := n.image("e2e.test/e2e/user:1"); i.GetUid().GetValue() != c.uid || i.GetUsername() != c.name || (i.GetUid() == nil) == (c.name == "") {
			t.Errorf("user %q: uid %v, username %q, want %d, %q", c.user, i.GetUid(), i.GetUsername(), c.uid, c.name)
		}
	}
	if got := n.listed(""); len(got) != 6 {
		t.Errorf("%d images, want 6, five of which have lost their tag", len(got))
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	_, err := n.Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: "e2e.test/e2e/user:1"}})
	wantCode(t, "PullImage within a millisecond", err, codes.DeadlineExceeded)

	s, err := n.Images.ImageStatus(n.Ctx(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: "e2e.test/e2e/user:1"}, Verbose: true})
	var info struct {
		ChainID   string
		ImageSpec struct{ Config struct{ User string } }
		Layers    []struct {
			DiffID string
			Size   uint64
		}
		PulledAt time.Time
	}
	if err == nil {
		err = json.Unmarshal([]byte(s.Info["info"]), &info)
	}
	if err != nil || info.ImageSpec.Config.User != ":33" || len(info.Layers) != 1 || info.Layers[0].DiffID != info.ChainID || info.PulledAt.IsZero() {
		t.Errorf("verbose ImageStatus = %+v, %v", info, err)
	}
	out, err := n.cli("image", "list", "--json")
	var rows []struct {
		ID     string
		Tags   []string
		Pulled time.Time
	}
	if err == nil {
		err = json.Unmarshal([]byte(out), &rows)
	}
	if err != nil || len(rows) != 6 || rows[0].Pulled.IsZero() {
		t.Errorf("crid image list --json = %s, %v", out, err)
	}
	if out, err := n.cli("image", "remove", rows[0].ID, "absent", rows[1].ID); err == nil || strings.Count(out, "removed sha256:") != 2 || !strings.Contains(out, "no image absent") {
		t.Errorf("crid image remove of three, one of them absent = %v, %s", err, out)
	}
	if out, err := n.cli("image", "list"); err != nil || strings.Count(out, "\n") != 5 || !strings.HasPrefix(out, "IMAGE ") {
		t.Errorf("crid image list = %v, %s, want four images", err, out)
	}
}

// TestDamagedImage: one bad image costs no other; kubelet finds it absent and pulls it.
func TestDamagedImage(t *testing.T) {
	n := NewNode(t, NodeOptions{NoNetwork: true})
	n.PullBusybox()
	n.Registry.Push("e2e/bad:1", Image(t, v1.Config{}, Layer(t, File{Path: "f", Mode: 0o644, Data: []byte("x")})))
	const bad = "e2e.test/e2e/bad:1"
	id := n.Pull(bad)
	s, err := n.Images.ImageStatus(n.Ctx(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: bad}, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var info struct{ ChainID string }
	if err := json.Unmarshal([]byte(s.Info["info"]), &info); err != nil {
		t.Fatal(err)
	}
	n.Stop()
	if err := os.Truncate(n.path("root", "layers", strings.TrimPrefix(info.ChainID, "sha256:"), "layer.json"), 0); err != nil {
		t.Fatal(err)
	}
	if out, err := n.cli("check"); err == nil || !strings.Contains(out, "image "+id+": layer "+info.ChainID) || !strings.Contains(out, "pull the image again") {
		t.Errorf("crid check without crid = %v, %s, want the layer named", err, out)
	}
	n.Start()
	if i := n.image(bad); i != nil {
		t.Errorf("ImageStatus of a damaged image = %v, want none", i)
	}
	if n.image(BusyboxRef) == nil {
		t.Error("the other image is gone")
	}
	if out, err := n.cli("check"); err == nil || !strings.Contains(out, "image "+id+" was set aside") {
		t.Errorf("crid check after the start = %v, %s, want the image named", err, out)
	}
	if again := n.Pull(bad); again != id {
		t.Errorf("pulled again it is %s, want %s", again, id)
	}
	n.checked()
}

// TestStopDuringPull: a pull that does not end by itself ends with crid, and leaves
// nothing that keeps the next one from working.
func TestStopDuringPull(t *testing.T) {
	n := NewNode(t, NodeOptions{NoNetwork: true, Config: map[string]string{"drain_timeout": `"1s"`}})
	n.Registry.Push("e2e/slow:1", Image(t, v1.Config{}, Layer(t, File{Path: "f", Mode: 0o644, Data: []byte("x")})))
	asked := make(chan struct{}, 16)
	hang := func(_ http.ResponseWriter, q *http.Request) bool {
		if q.Method == http.MethodGet && strings.Contains(q.URL.Path, "/blobs/") {
			asked <- struct{}{}
			<-q.Context().Done()
			return true
		}
		return false
	}
	n.Registry.Break.Store(&hang)
	failed := make(chan error, 1)
	images, ctx := n.Images, n.Ctx()
	go func() {
		_, err := images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: "e2e.test/e2e/slow:1"}})
		failed <- err
	}()
	<-asked
	n.Stop()
	if err := <-failed; err == nil {
		t.Error("the pull succeeded, though the registry gave no layer")
	}
	n.Registry.Break.Store(nil)
	n.noImageFiles()
	n.Start()
	n.noImageFiles()
	n.Pull("e2e.test/e2e/slow:1")
	n.checked()
}
