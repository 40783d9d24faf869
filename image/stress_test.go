package image

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
)

var seedFlag = flag.Uint64("seed", 0, "seed of the random tests; 0: another one each time, which is logged")

func newSeed(t *testing.T) uint64 {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-seed %d", seed)
	return seed
}

// world is what a stress test plays with: images of some layers in common, and tags
// that move between them.
type world struct {
	srv    *server
	images []v1.Image
	ids    map[ID][]int // the layers of each image, lowest first
	Tags   []string
	Refs   []string // by tag and by digest
	Dir    string   // of archives, one for each image
	Seed   uint64
}

const worldLayers = 7

// layerText is the content of the only file of the n-th layer.
func layerText(n int) string { return strings.Repeat(fmt.Sprintf("layer %d\n", n), 1+1000*(n%3)) }

func newWorld(t *testing.T, seed uint64) *world {
	t.Helper()
	w := &world{srv: newServer(t), ids: make(map[ID][]int), Dir: t.TempDir(), Seed: seed}
	t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)
	rnd := rand.New(rand.NewPCG(seed, 0))
	var layers []v1.Layer
	for n := range worldLayers {
		layers = append(layers, layerOf(t, folder("d/"), file(fmt.Sprintf("d/f%d", n), layerText(n))))
	}
	for n := range 6 {
		var own []v1.Layer
		numbers := rnd.Perm(worldLayers)[:1+rnd.IntN(4)]
		for _, l := range numbers {
			own = append(own, layers[l])
		}
		img := configured(t, imageOf(t, own...), func(c *v1.Config) { c.User = fmt.Sprint(n) })
		w.images, w.ids[idOf(t, img)] = append(w.images, img), numbers
		tag := w.srv.push(t, fmt.Sprintf("app%d:moving", n%4), img)
		if n < 4 {
			w.Tags = append(w.Tags, tag)
		}
		d, _ := img.Digest()
		w.Refs = append(w.Refs, fmt.Sprintf("%s/app%d@%s", w.srv.host, n%4, d))
		archive := dockerArchive(t, map[string]v1.Image{fmt.Sprintf("e2e.test/imported%d:1", n%2): img})
		if err := os.WriteFile(filepath.Join(w.Dir, fmt.Sprint(n)), archive, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w.Refs = append(w.Refs, w.Tags...)
	return w
}

// actor does random things to a store. What must not happen goes to fail.
type actor struct {
	*world
	s    *Store
	rnd  *rand.Rand
	name string
	keys int
	kept map[string]ID // containers that live on
	move func(tag string, n int)
	fail func(format string, args ...any)
}

func pick[E any](rnd *rand.Rand, from []E) E { return from[rnd.IntN(len(from))] }

func (a *actor) step(ctx context.Context) {
	switch a.rnd.IntN(10) {
	case 0, 1:
		unwanted := pick(a.rnd, a.Refs)
		if list := a.s.List(); len(list) > 0 && a.rnd.IntN(2) == 0 {
			unwanted = string(pick(a.rnd, list).ID)
		}
		if err := a.s.Remove(ctx, unwanted); err != nil && !errkind.Is(err, errkind.BadState) {
			a.fail("Remove(%s) = %v", unwanted, err)
		}
	case 2, 3, 4:
		a.pull(ctx, pick(a.rnd, a.Refs))
	case 5:
		tag := pick(a.rnd, a.Tags)
		if a.move != nil {
			a.move(tag, a.rnd.IntN(6))
		}
		a.pull(ctx, tag)
	case 6:
		n := a.rnd.IntN(6)
		data, err := os.ReadFile(filepath.Join(a.Dir, fmt.Sprint(n)))
		if err == nil {
			_, err = a.s.Import(ctx, bytes.NewReader(data), ImportOptions{})
		}
		if err != nil && !errkind.Is(err, errkind.NotFound) { // removed before Import could return it
			a.fail("Import = %v", err)
		}
	case 7, 8:
		a.container(ctx)
	case 9:
		for _, err := range a.s.Check(ctx) {
			a.fail("Check: %v", err)
		}
		if _, err := a.s.FsInfo(ctx); err != nil {
			a.fail("FsInfo = %v", err)
		}
	}
}

func (a *actor) pull(ctx context.Context, ref string) {
	if _, err := a.s.Pull(ctx, PullRequest{Ref: ref}); err != nil {
		a.fail("Pull(%s) = %v", ref, err)
	}
}

// container uses an image, as root file system or as volume, and sometimes goes on
// using it.
func (a *actor) container(ctx context.Context) {
	list := a.s.List()
	if len(list) == 0 {
		return
	}
	id := pick(a.rnd, list).ID
	a.keys++
	key := fmt.Sprintf("%s-%d", a.name, a.keys)
	var lower []string
	var err error
	if a.rnd.IntN(3) == 0 {
		key = VolumeKey(key, 0)
		lower, err = a.s.PrepareVolume(ctx, id, key)
	} else {
		var r Rootfs
		r, err = a.s.Prepare(ctx, id, key)
		lower = r.Lower
	}
	if errkind.Is(err, errkind.NotFound) {
		return // removed meanwhile
	}
	if err != nil {
		a.fail("Prepare(%s) = %v", id.Short(), err)
		return
	}
	if a.ids != nil {
		if err := a.whole(id, lower); err != nil {
			a.fail("%v", err)
		}
	}
	a.kept[key] = id
	for old := range a.kept { // any
		if len(a.kept) > a.rnd.IntN(4) {
			if err := a.s.Release(ctx, old); err != nil {
				a.fail("Release = %v", err)
			}
			delete(a.kept, old)
		}
	}
}

// whole compares the folders of an image, uppermost first, with what was pushed.
func (w *world) whole(id ID, lower []string) error {
	numbers, ok := w.ids[id]
	if !ok {
		return fmt.Errorf("image %s is none of those pushed", id)
	}
	for i, n := range slices.Backward(numbers) {
		at := len(numbers) - 1 - i
		if at >= len(lower) {
			return fmt.Errorf("image %s has %d folders, want %d layers", id.Short(), len(lower), len(numbers))
		}
		entries, err := os.ReadDir(filepath.Join(lower[at], "d"))
		if err != nil || len(entries) != 1 {
			return fmt.Errorf("image %s, layer %d: %v, %v, want one file", id.Short(), n, entries, err)
		}
		got, err := os.ReadFile(filepath.Join(lower[at], "d", fmt.Sprintf("f%d", n)))
		if err != nil || string(got) != layerText(n) {
			return fmt.Errorf("image %s, layer %d: %d bytes, %v, want %d", id.Short(), n, len(got), err, len(layerText(n)))
		}
	}
	return nil
}

// verify holds a store that nobody uses to its promises: each image that is listed
// runs, each name finds its image, nothing is stored that nobody has, and the
// figures are those of a walk.
func (w *world) verify(t *testing.T, s *Store) {
	t.Helper()
	checkStore(t, s)
	tags := make(map[string]ID)
	for n, i := range s.List() {
		key := fmt.Sprintf("verify-%d", n)
		r, err := s.Prepare(t.Context(), i.ID, key)
		if err == nil {
			err = w.whole(i.ID, r.Lower)
		}
		if err != nil {
			t.Errorf("an image that is listed: %v", err)
		}
		if err := s.Release(t.Context(), key); err != nil {
			t.Error(err)
		}
		for _, name := range slices.Concat(i.RepoTags, i.RepoDigests) {
			if got, err := s.Image(name); err != nil || got.ID != i.ID || tags[name] != "" {
				t.Errorf("Image(%s) = %s, %v, want %s and no other", name, got.ID.Short(), err, i.ID.Short())
			}
			tags[name] = i.ID
		}
	}
	s.trash.wait()
	var bytes, inodes uint64
	for _, e := range must(os.ReadDir(s.path("layers"))) {
		top := s.path("layers", e.Name(), layerFS)
		err := filepath.WalkDir(top, func(p string, e fs.DirEntry, err error) error {
			if err != nil || p == top {
				return err
			}
			fi, err := e.Info()
			if err != nil {
				return err
			}
			size := uint64(fi.Size())
			if e.IsDir() {
				size = blockSize
			}
			bytes, inodes = bytes+onDisk(size), inodes+1
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		// What belongs to the archive alone. Layers of implied folders have none.
		if st, err := os.Stat(s.path("layers", e.Name(), skeletonFile)); err == nil {
			bytes, inodes = bytes+onDisk(uint64(st.Size())), inodes+1
		}
	}
	if fi, err := s.FsInfo(t.Context()); err != nil || fi.Images.UsedBytes != bytes || fi.Images.Inodes != inodes {
		t.Errorf("FsInfo = %d bytes, %d inodes, %v, a walk finds %d and %d", fi.Images.UsedBytes, fi.Images.Inodes, err, bytes, inodes)
	}
	for _, dir := range []string{"ingest", "trash"} {
		if left := must(os.ReadDir(s.path(dir))); len(left) > 0 {
			t.Errorf("%s holds %v, want nothing", dir, left)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestStress: pulls, tags that move, removals, imports, containers, volumes and
// checks at once, in rounds; after each the store must keep its promises, and after
// some it is opened anew.
func TestStress(t *testing.T) {
	testutil.LeakCheck(t)
	w := newWorld(t, newSeed(t))
	o := Options{Root: filepath.Join(fastDir(t), "store"), RegistryDirs: []string{}}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	var actors []*actor
	for n := range 6 {
		actors = append(actors, &actor{
			world: w, s: s, rnd: rand.New(rand.NewPCG(w.Seed, uint64(n+1))), name: fmt.Sprintf("c%d", n), kept: make(map[string]ID),
			move: func(tag string, n int) { w.srv.push(t, strings.TrimPrefix(tag, w.srv.host+"/"), w.images[n]) },
			fail: t.Errorf,
		})
	}
	for round := range 4 {
		var wg sync.WaitGroup
		for _, a := range actors {
			wg.Go(func() {
				for range 12 {
					a.step(t.Context())
				}
			})
		}
		wg.Wait()
		w.verify(t, s)
		if round%2 == 1 { // as after a restart of crid
			before := s.List()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if s, err = New(o); err != nil {
				t.Fatal(err)
			}
			if after := s.List(); !slices.EqualFunc(before, after, func(a, b Image) bool {
				return a.ID == b.ID && slices.Equal(a.RepoTags, b.RepoTags) && a.Size == b.Size
			}) {
				t.Errorf("opened anew the store lists %v, want %v", after, before)
			}
			w.verify(t, s)
		}
		for _, a := range actors {
			a.s = s
			for key, id := range a.kept { // those whose image is gone, too
				if err := w.whole(id, lowerOf(t, s, key)); err != nil {
					t.Errorf("container %s: %v", key, err)
				}
			}
		}
		if t.Failed() {
			break
		}
	}
	for _, a := range actors {
		for key := range maps.Keys(a.kept) {
			if err := s.Release(t.Context(), key); err != nil {
				t.Error(err)
			}
		}
	}
	for _, i := range s.List() {
		if err := s.Remove(t.Context(), string(i.ID)); err != nil {
			t.Error(err)
		}
	}
	wantEmpty(t, s)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// lowerOf is the folders of what is prepared, as it says in the record.
func lowerOf(t *testing.T, s *Store, key string) (lower []string) {
	t.Helper()
	var r rootfsRecord
	if err := readJSON(s.path("rootfs", key, rootfsFile), &r); err != nil {
		t.Fatal(err)
	}
	for _, d := range slices.Backward(r.Layers) {
		lower = append(lower, filepath.Join(s.layerPath(d), layerFS))
	}
	return lower
}

// stressChild is the work of a process that gets killed: it opens the store and does
// random things to it, each of which it tells by a byte, until it is no more.
func stressChild(args string) int {
	var o struct {
		World world
		Root  string
	}
	if err := json.Unmarshal([]byte(args), &o); err != nil {
		panic(err)
	}
	_, _ = os.Stdout.Write([]byte{'.'}) // before it is open: it may be killed while it recovers
	s, err := New(Options{Root: o.Root, RegistryDirs: []string{}})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for _, key := range s.Prepared() { // as crid does for containers without a record
		if err := s.Release(context.Background(), key); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	var wg sync.WaitGroup
	for n := range 3 {
		a := &actor{
			world: &o.World, s: s, rnd: rand.New(rand.NewPCG(o.World.Seed, uint64(n))), name: fmt.Sprintf("k%d", n), kept: make(map[string]ID),
			fail: func(format string, args ...any) {
				fmt.Fprintf(os.Stderr, format+"\n", args...)
				os.Exit(1)
			},
		}
		wg.Go(func() {
			for {
				a.step(context.Background())
				_, _ = os.Stdout.Write([]byte{'.'})
			}
		})
	}
	wg.Wait()
	return 0
}
