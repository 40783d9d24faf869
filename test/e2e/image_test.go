package e2e

import (
	"bytes"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var maxMessage = grpc.MaxCallRecvMsgSize(64 << 20)

// pushMerged is an image with every field of the configuration set.
func (n *Node) pushMerged() v1.Hash {
	n.T.Helper()
	return n.Registry.Push("e2e/merged:1", Image(n.T, v1.Config{
		Entrypoint: []string{"echo", "entry"}, Cmd: []string{"image-arg"},
		Env: []string{"PATH=/bin", "FROM_IMAGE=image", "BOTH=image"}, WorkingDir: "/www", User: "www", StopSignal: "SIGINT",
	}, BusyboxLayer(n.T)))
}

func (n *Node) image(ref string) *cri.Image {
	n.T.Helper()
	r, err := n.Images.ImageStatus(n.Ctx(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: ref}})
	if err != nil {
		n.T.Fatal(err)
	}
	return r.Image
}

func (n *Node) images() []*cri.Image {
	n.T.Helper()
	r, err := n.Images.ListImages(n.Ctx(), &cri.ListImagesRequest{})
	if err != nil {
		n.T.Fatal(err)
	}
	return r.Images
}

func TestImageLifecycle(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	digest := n.pushMerged()
	const ref = "registry.k8s.io/e2e/merged:1"
	id := n.Pull(ref)
	img := n.image(ref)
	if img == nil || img.Id != id || img.Size == 0 || img.Username != "www" {
		t.Fatalf("ImageStatus = %v; want id %s, a size, user www", img, id)
	}
	if len(img.RepoTags) != 1 || img.RepoTags[0] != ref || len(img.RepoDigests) != 1 || img.RepoDigests[0] != "registry.k8s.io/e2e/merged@"+digest.String() {
		t.Errorf("tags %v, digests %v", img.RepoTags, img.RepoDigests)
	}
	for _, name := range []string{id, strings.TrimPrefix(id, "sha256:"), "registry.k8s.io/e2e/merged@" + digest.String()} {
		if got := n.image(name); got == nil || got.Id != id {
			t.Errorf("ImageStatus(%s) = %v, want %s", name, got, id)
		}
	}
	if again := n.Pull("e2e.test/e2e/merged:1"); again != id {
		t.Errorf("the same image of another registry has id %s, want %s", again, id)
	}
	if all := n.images(); len(all) != 1 || len(all[0].RepoTags) != 2 {
		t.Errorf("ListImages = %v, want one row with two tags", all)
	}
	if _, err := n.Images.RemoveImage(n.Ctx(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}}); err != nil {
		t.Fatal(err)
	}
	if all := n.images(); len(all) != 0 {
		t.Errorf("after RemoveImage of one tag: %v, want none", all)
	}
	n.noImageFiles()
}

// noImageFiles fails the test when the store holds a layer or a half-made thing.
func (n *Node) noImageFiles() {
	n.T.Helper()
	var left []string
	n.settle(func() bool {
		left = nil
		for _, dir := range []string{"images", "layers", "ingest", "tmp", "trash"} {
			entries, _ := os.ReadDir(n.path("root", dir))
			for _, e := range entries {
				left = append(left, dir+"/"+e.Name())
			}
		}
		return len(left) == 0
	})
	if len(left) > 0 {
		n.T.Errorf("left in the image store: %v", left)
	}
}

func TestImageFsInfo(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	r, err := n.Images.ImageFsInfo(n.Ctx(), &cri.ImageFsInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.ImageFilesystems) != 1 || len(r.ContainerFilesystems) != 1 {
		t.Fatalf("ImageFsInfo = %v, want one of each", r)
	}
	f := r.ImageFilesystems[0]
	if f.UsedBytes.GetValue() < 500_000 || f.InodesUsed.GetValue() < 5 || f.Timestamp == 0 {
		t.Errorf("image file system = %v, want the busybox image's bytes and inodes", f)
	}
	if _, err := os.Stat(f.GetFsId().GetMountpoint()); err != nil {
		t.Errorf("mountpoint: %v", err)
	}
}

// What is wrong with an image is said, and nothing of it stays.
func TestCorruptImages(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	busybox := BusyboxLayer(t)
	flip := func(body []byte) []byte {
		b := bytes.Clone(body)
		b[len(b)/2] ^= 0xff
		return b
	}
	for _, test := range []struct {
		name   string
		img    v1.Image
		change func([]byte) []byte // of every layer's bytes on the way; nil: none
	}{
		{"wrong-digest", Image(t, v1.Config{}, busybox), flip},
		{"truncated", Image(t, v1.Config{}, busybox), func(b []byte) []byte { return b[:len(b)/2] }},
		{"path-escape", Image(t, v1.Config{}, Layer(t, File{Path: "../../../../escape", Mode: 0o644, Data: []byte("x")})), nil},
		{"link-escape", Image(t, v1.Config{}, Layer(t, File{Path: "d", Sym: "/etc"}, File{Path: "d/crid-e2e-escape", Mode: 0o644, Data: []byte("x")})), nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			n.Registry.Push("e2e/"+test.name+":1", test.img)
			if test.change != nil {
				n.breakLayers(test.img, test.change)
				defer n.Registry.Break.Store(nil)
			}
			ref := "registry.k8s.io/e2e/" + test.name + ":1"
			_, err := n.Images.PullImage(n.Ctx(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
			if test.name == "link-escape" && err == nil {
				// Unpacking into the layer's own /etc is as good as a refusal.
				if _, err := n.Images.RemoveImage(n.Ctx(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}}); err != nil {
					t.Error(err)
				}
			} else if err == nil {
				t.Fatalf("PullImage of a corrupt image succeeded")
			}
			if _, err := os.Stat("/etc/crid-e2e-escape"); err == nil {
				t.Error("the layer wrote into the node's /etc")
			}
			if img := n.image(ref); img != nil {
				t.Errorf("ImageStatus of the refused image = %v, want none", img)
			}
			n.noImageFiles()
		})
	}
}

// breakLayers changes the bytes of img's layers as they are served.
func (n *Node) breakLayers(img v1.Image, change func([]byte) []byte) {
	n.T.Helper()
	layers, err := img.Layers()
	if err != nil {
		n.T.Fatal(err)
	}
	bodies := map[string][]byte{}
	for _, l := range layers {
		d, err := l.Digest()
		if err != nil {
			n.T.Fatal(err)
		}
		rc, err := l.Compressed()
		if err != nil {
			n.T.Fatal(err)
		}
		var b bytes.Buffer
		if _, err := b.ReadFrom(rc); err != nil {
			n.T.Fatal(err)
		}
		bodies[d.String()] = b.Bytes()
	}
	f := func(w http.ResponseWriter, q *http.Request) bool {
		body, ok := bodies[q.URL.Path[strings.LastIndexByte(q.URL.Path, '/')+1:]]
		if !ok || q.Method != http.MethodGet {
			return false
		}
		_, _ = w.Write(change(body))
		return true
	}
	n.Registry.Break.Store(&f)
}

func TestPullErrors(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	pull := func(ref string) error {
		_, err := n.Images.PullImage(n.Ctx(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
		return err
	}
	wantCode(t, "PullImage of a bad reference", pull("UPPER/Case:bad tag"), codes.InvalidArgument)
	wantCode(t, "PullImage of nothing", pull(""), codes.InvalidArgument)
	wantCode(t, "PullImage of a missing image", pull("registry.k8s.io/none:1"), codes.NotFound, "registry.k8s.io/none:1")
	err := pull("127.0.0.1:1/none:1") // nothing listens there
	wantCode(t, "PullImage from a registry that is not there", err, codes.Unknown)
	if m := status.Convert(err).Message(); !strings.HasPrefix(m, "RegistryUnavailable") {
		t.Errorf("error = %q, want it to begin with RegistryUnavailable", m)
	}
	n.noImageFiles()
}

// `crid image import` beside the running daemon: the image can be used at once.
func TestImageImport(t *testing.T) {
	n := NewNode(t, NodeOptions{})
	archive := n.path("busybox.tar")
	WriteDockerArchive(t, archive, "e2e.test/imported:1", Busybox(t))
	for _, from := range []string{"file", "stdin"} {
		cmd := exec.Command(n.Programs.Crid, "--config", n.Config, "image", "import", archive)
		if from == "stdin" {
			cmd.Args[len(cmd.Args)-1] = "-"
			f, err := os.Open(archive)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			cmd.Stdin = f
		}
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "e2e.test/imported:1") {
			t.Fatalf("crid image import from %s: %v\n%s", from, err, out)
		}
	}
	p := n.PodConfig("imported")
	pod := n.RunPod(p)
	c := n.ContainerConfig("main", "echo", "it runs")
	c.Image.Image = "e2e.test/imported:1"
	if s := n.WaitExit(n.Run(pod, p, c)); s.ExitCode != 0 {
		t.Errorf("exit code %d", s.ExitCode)
	}
	n.WriteFile(n.path("bad.tar"), "this is no archive")
	cmd := exec.Command(n.Programs.Crid, "--config", n.Config, "image", "import", n.path("bad.tar"))
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "bad.tar") && !strings.Contains(string(out), "archive") {
		t.Errorf("import of a bad archive: %v, %s; want an error that says so", err, out)
	}
}
