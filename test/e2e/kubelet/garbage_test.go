package kubelet

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/internal/testutil"
	"github.com/cridproject/crid/test/e2e"
)

// bulk is the size of the one file of an image that nobody uses.
const bulk = 24 << 20

// garbage is a node whose crid has a disk of its own.
type garbage struct {
	*kubelet
	root  string // of crid
	lists *heldLists
}

// What kubelet removes because it is not needed, or because the disk gets full: one
// node, whose kubelet is started again with other thresholds for each part.
func TestGarbage(t *testing.T) {
	root := filepath.Join(testutil.PlainFS(t, "ext4"), "root")
	g := garbage{root: root, kubelet: newKubelet(t, options{
		crid: map[string]string{"root": strconv.Quote(root), "images.pinned": `["registry.k8s.io/e2e/pinned"]`},
	})}
	g.lists = g.holdLists()
	g.pushDataImage()
	g.run("uses", `
		containers:
		- name: main
			image: IMAGE
			command: [sleep, "1000"]
			volumeMounts: [{name: data, mountPath: /data}]
		volumes:
		- {name: data, image: {reference: registry.k8s.io/e2e/data:1}}
	`)
	g.run("restarts", `
		containers:
		- name: main
			image: IMAGE
			command: [sh, -c, "echo x >>/v/starts; test $(wc -l </v/starts) -lt 4 || exec sleep 1000"]
			volumeMounts: [{name: v, mountPath: /v}]
		volumes:
		- {name: v, emptyDir: {}}
	`)
	g.await("uses", "is ready", ready)
	for _, name := range []string{"pinned", "unused-1", "unused-2", "unused-3", "unused-4"} {
		g.pull(name)
	}
	g.step("Containers", g.containers)
	g.step("Usage", g.usage)
	g.step("ImagesByThreshold", g.imagesByThreshold)
	g.step("ImagesByAge", g.imagesByAge)
	g.step("DiskPressure", g.diskPressure)
	g.step("MemoryPressure", g.memoryPressure)
}

// pull brings an image that no pod uses.
func (g *garbage) pull(name string) {
	g.t.Helper()
	// Each has bytes of its own that compress well.
	data := []byte(strings.Repeat(name+"\n", bulk/(len(name)+1)))
	g.Registry.Push("e2e/"+name+":1", e2e.Image(g.t, v1.Config{}, e2e.Layer(g.t, e2e.File{Path: "data", Mode: 0o644, Data: data})))
	g.Pull("registry.k8s.io/e2e/" + name + ":1")
}

// restart starts kubelet anew with other fields in its configuration.
func (g *garbage) restart(config map[string]any) {
	g.t.Helper()
	g.stop(syscall.SIGTERM)
	maps.Copy(g.config, config)
	g.saveConfig()
	g.start()
}

// images are the names in crid's list, without registry and tag.
func (g *garbage) images() []string {
	g.t.Helper()
	r, err := g.Images.ListImages(g.Ctx(), &cri.ListImagesRequest{})
	if err != nil {
		g.t.Fatal(err)
	}
	var names []string
	for _, i := range r.Images {
		names = append(names, strings.TrimSuffix(filepath.Base(i.RepoTags[0]), ":1"))
	}
	slices.Sort(names)
	return names
}

// awaitImages waits until these are left beside those that are used or pinned, and
// so many of the others.
func (g *garbage) awaitImages(unused int) {
	g.t.Helper()
	g.eventually("images are removed", func() error {
		names := g.images()
		kept := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return strings.HasPrefix(n, "unused") })
		if len(names)-len(kept) != unused {
			return fmt.Errorf("there are %q, want %d that are not used", names, unused)
		}
		if want := []string{"busybox", "data", "pinned"}; !slices.Equal(kept, want) {
			g.t.Fatalf("of those that are used or pinned %q are there, want %q", kept, want)
		}
		return nil
	})
}

// collected checks how many images kubelet counts as removed since it was started.
func (g *garbage) collected(reason string, want int) {
	g.t.Helper()
	g.awaitMetric(fmt.Sprintf("kubelet_image_garbage_collected_total{reason=%q} %d\n", reason, want))
}

// disks are those in kubelet's summary.
type disks struct {
	Node struct {
		Fs      disk
		Runtime struct{ ImageFs disk }
	}
	Pods []podUsage
}

type disk struct{ CapacityBytes, UsedBytes uint64 }

func (g *garbage) disks() (s disks, err error) {
	if err = getJSON("/stats/summary", &s); err == nil && s.Node.Runtime.ImageFs.CapacityBytes == 0 {
		err = fmt.Errorf("no capacity in %+v", s)
	}
	return s, err
}

// room is what statfs says of the disk that a folder is on.
func (g *garbage) room(dir string) (available, capacity int64) {
	g.t.Helper()
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		g.t.Fatal(err)
	}
	return int64(s.Bavail) * s.Bsize, int64(s.Blocks) * s.Bsize
}

// containers: of a container that restarts kubelet keeps the last attempt before
// the one that runs, and its log.
func (g *garbage) containers() {
	g.awaitContainer("restarts", "main", "has restarted thrice", restarted(3))
	g.eventually("older attempts are gone", func() error {
		r, err := g.Runtime.ListContainers(g.Ctx(), &cri.ListContainersRequest{
			Filter: &cri.ContainerFilter{LabelSelector: map[string]string{"io.kubernetes.pod.name": "restarts-" + nodeName}},
		})
		if err != nil {
			return err
		}
		var attempts []uint32
		for _, c := range r.Containers {
			attempts = append(attempts, c.Metadata.Attempt)
		}
		slices.Sort(attempts)
		logs, err := filepath.Glob(g.path("pod-logs", namespace+"_restarts-*", "main", "*"))
		for i := range logs {
			logs[i] = filepath.Base(logs[i])
		}
		if !slices.Equal(attempts, []uint32{2, 3}) || !slices.Equal(logs, []string{"2.log", "3.log"}) {
			return fmt.Errorf("there are attempts %d and logs %q (%v)", attempts, logs, err)
		}
		return nil
	})
}

// usage: the summary has what the images take, as a walk finds it, and what a
// container has written, on disks of the size that statfs says.
func (g *garbage) usage() {
	const written = 8 << 20
	g.sh("uses", "main", "dd if=/dev/urandom of=/written bs=1M count=8 conv=fsync")
	layers := g.walked("layers")
	_, images := g.room(g.root)
	_, node := g.room(g.Dir)
	const slack = 1 << 20 // records, folders
	near := func(got, want uint64) bool { return got >= want-slack && got <= want+slack }
	g.eventually("the summary has the disks", func() error {
		got, err := g.disks()
		if err != nil {
			return err
		}
		if fs := got.Node.Runtime.ImageFs; !near(fs.UsedBytes, layers) || fs.CapacityBytes != uint64(images) {
			return fmt.Errorf("images: %+v; the layers have %d bytes, the disk %d", fs, layers, images)
		}
		if fs := got.Node.Fs; fs.CapacityBytes != uint64(node) {
			return fmt.Errorf("the node: %+v, the disk has %d bytes", fs, node)
		}
		for _, p := range got.Pods {
			if p.PodRef.Name == "uses-"+nodeName && len(p.Containers) == 1 && near(p.Containers[0].Rootfs.UsedBytes, written) {
				return nil
			}
		}
		return fmt.Errorf("what the container has written is not in %+v", got.Pods)
	})
	r, err := g.Images.ImageFsInfo(g.Ctx(), &cri.ImageFsInfoRequest{})
	if err != nil {
		g.t.Fatal(err)
	}
	for _, fs := range []struct {
		usage *cri.FilesystemUsage
		want  uint64
	}{{r.ImageFilesystems[0], layers}, {r.ContainerFilesystems[0], written}} {
		if got := fs.usage; !near(got.UsedBytes.Value, fs.want) || got.FsId.Mountpoint != g.root {
			g.t.Errorf("ImageFsInfo has %v, want about %d bytes at %s", got, fs.want, g.root)
		}
	}
}

// walked is what the files below a folder of crid's take, links once.
func (g *garbage) walked(folder string) (total uint64) {
	g.t.Helper()
	seen := map[uint64]bool{} // inodes: busybox's applets are links
	if err := filepath.WalkDir(filepath.Join(g.root, folder), func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		i, err := d.Info()
		if err != nil {
			return err
		}
		if st := i.Sys().(*syscall.Stat_t); !seen[st.Ino] {
			seen[st.Ino] = true
			total += uint64(st.Blocks) * 512
		}
		return nil
	}); err != nil {
		g.t.Fatal(err)
	}
	return total
}

// imagesByThreshold: kubelet frees what is needed to get from above the high
// threshold to the low one, by the sizes that crid says, and not more.
func (g *garbage) imagesByThreshold() {
	available, capacity := g.room(g.root)
	high := 100 - available*100/capacity
	low := high
	for capacity*(100-low)/100-available <= 2*bulk { // two images would do
		low--
	}
	if capacity*(100-low)/100-available > 3*bulk {
		g.t.Fatalf("a percent of %d bytes is more than an image", capacity)
	}
	// The age cannot be 0 in the configuration.
	g.flags = []string{"--minimum-image-ttl-duration=0s"}
	config := map[string]any{
		"imageServiceEndpoint":        "unix://" + g.lists.socket,
		"imageGCHighThresholdPercent": high, "imageGCLowThresholdPercent": low,
	}
	for range 3 {
		if g.collectsAtStart(config) {
			break
		}
	}
	g.awaitImages(1)
	g.collected("space", 3)
	g.eventually("the disk is at the low threshold", func() error {
		if now, _ := g.room(g.root); 100-now*100/capacity > low {
			return fmt.Errorf("%d of %d bytes are free, want %d %%", now, capacity, 100-low)
		}
		return nil
	})
	g.lists.open.Store(true)
	g.eventually("nobody waits for a list", func() error {
		if g.lists.next(); g.lists.waiting.Load() > 0 {
			return fmt.Errorf("%d wait", g.lists.waiting.Load())
		}
		return nil
	})
	g.flags = nil
	delete(g.config, "imageServiceEndpoint")
	g.restart(nil) // so that nobody asks the service when it ends
}

// collectsAtStart starts kubelet and reports whether it removes images. It collects at
// its start, when it does not know the disk yet, and then after five minutes: the lists
// of images, for which it asks first, come only when it does know. Two more ask for them
// at the start, one of whom notes the age of images: they are answered in the order in
// which they have come, one after the other, and the rare start at which the collector
// asked first and came second is made again.
func (g *garbage) collectsAtStart(config map[string]any) bool {
	g.t.Helper()
	g.restart(config)
	g.eventually("the summary has the disk of the images", func() error { _, err := g.disks(); return err })
	all := len(g.images())
	for range 3 {
		g.lists.next()
		for range 30 {
			if len(g.images()) < all {
				return true
			}
			time.Sleep(50 * time.Millisecond) //nolint:forbidigo // polls another process
		}
	}
	return false
}

// heldLists is crid's image service, whose answers with the list of images come when
// the test lets them.
type heldLists struct {
	cri.UnimplementedImageServiceServer
	crid    cri.ImageServiceClient
	socket  string
	turn    chan struct{} // whoever receives gets a list
	open    atomic.Bool   // everyone gets one
	waiting atomic.Int32
}

// next lets the one that has waited longest have a list.
func (h *heldLists) next() {
	select {
	case h.turn <- struct{}{}:
	default:
	}
}

func (g *garbage) holdLists() *heldLists {
	g.t.Helper()
	h := &heldLists{crid: g.Images, socket: g.path("images.sock"), turn: make(chan struct{})}
	l, err := net.Listen("unix", h.socket)
	if err != nil {
		g.t.Fatal(err)
	}
	s := grpc.NewServer()
	cri.RegisterImageServiceServer(s, h)
	go func() { _ = s.Serve(l) }()
	g.t.Cleanup(s.Stop)
	return h
}

func (h *heldLists) ListImages(ctx context.Context, r *cri.ListImagesRequest) (*cri.ListImagesResponse, error) {
	h.waiting.Add(1)
	defer h.waiting.Add(-1)
	if !h.open.Load() {
		select {
		case <-h.turn:
		case <-ctx.Done():
		}
	}
	return h.crid.ListImages(ctx, r)
}

func (h *heldLists) ImageStatus(ctx context.Context, r *cri.ImageStatusRequest) (*cri.ImageStatusResponse, error) {
	return h.crid.ImageStatus(ctx, r)
}

func (h *heldLists) PullImage(ctx context.Context, r *cri.PullImageRequest) (*cri.PullImageResponse, error) {
	return h.crid.PullImage(ctx, r)
}

func (h *heldLists) RemoveImage(ctx context.Context, r *cri.RemoveImageRequest) (*cri.RemoveImageResponse, error) {
	return h.crid.RemoveImage(ctx, r)
}

func (h *heldLists) ImageFsInfo(ctx context.Context, r *cri.ImageFsInfoRequest) (*cri.ImageFsInfoResponse, error) {
	return h.crid.ImageFsInfo(ctx, r)
}

// imagesByAge: at its start kubelet removes what has not been used for so long.
func (g *garbage) imagesByAge() {
	g.restart(map[string]any{
		"imageMinimumGCAge": "1ns", "imageMaximumGCAge": "2ns",
		"imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
	})
	g.awaitImages(0)
	g.collected("age", 1)
	g.config["imageMaximumGCAge"] = "0s"
}
