package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"k8s.io/klog/v2"

	"github.com/cridproject/crid/image/dirfd"
	"github.com/cridproject/crid/internal/atomicfile"
	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/failpoint"
)

// Rootfs is what an overlayfs mount of a container's root file system needs. The
// store mounts nothing.
type Rootfs struct {
	Lower []string // layer folders, uppermost first
	Upper string   // writable layer
	Work  string   // overlayfs's own
	// Contents of /etc/passwd and /etc/group as the container will first see them;
	// nil when the image has none.
	Passwd, Group []byte
}

// rootfsRecord is what rootfs/<key>/rootfs.json holds. It is the first thing in
// the folder, and need not survive a power cut: no container does.
type rootfsRecord struct {
	Version int
	Key     string
	Image   ID
	Layers  []digest.Digest // the stack, lowest first
	Volume  bool            `json:",omitempty"` // to be mounted read-only, see PrepareVolume
	Made    time.Time
	// Project is the ID under which the file system counts upper and work; 0 means
	// that it does not. Set once, with Store.mu held, before the record is written.
	Project uint32 `json:",omitempty"`

	lost bool // a layer was, when the store was opened; immutable
}

const (
	rootfsFile    = "rootfs.json"
	rootfsVersion = 1
	emptyDir      = "empty" // in rootfs/<key>: a layer without files
	maxPasswd     = 8 << 20 // bytes of passwd and group that are looked at: directories exported into them are long
)

// Prepare makes the folders of a root file system on top of the image id, under a
// key that the caller chooses: a file name, here a container ID. Until Release
// the image's layers stay, also when the image is removed. For a key that is
// prepared already the answer is the same again; with another image it is Exists.
func (s *Store) Prepare(ctx context.Context, id ID, key string) (Rootfs, error) {
	return s.prepare(ctx, id, key, false)
}

func (s *Store) prepare(ctx context.Context, id ID, key string, volume bool) (Rootfs, error) {
	if key == "" || key[0] == '.' || strings.ContainsAny(key, "/\x00") || len(key) > 255 {
		return Rootfs{}, errkind.Errorf(errkind.Invalid, "%q cannot be the key of a root file system", shorten(key))
	}
	unlock, err := s.keys.Lock(ctx, key)
	if err != nil {
		return Rootfs{}, err
	}
	defer unlock()
	r, known, err := s.admit(id, key, volume)
	if err != nil {
		return Rootfs{}, err
	}
	var rootfs Rootfs
	if !known && !volume {
		err = s.giveProject(ctx, r)
	}
	if err == nil {
		rootfs, err = s.bringUp(r)
	}
	if err != nil {
		err = fmt.Errorf("root file system %s of image %s: %w", key, id.Short(), err)
		if !known {
			err = errors.Join(err, s.release(context.WithoutCancel(ctx), key))
		}
		return Rootfs{}, err
	}
	return rootfs, nil
}

// admit reserves the key and holds the layers, or finds what is there.
func (s *Store) admit(id ID, key string, volume bool) (r *rootfsRecord, known bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.rootfs[key]; r != nil {
		switch {
		case r.Image != id || r.Volume != volume:
			return nil, true, errkind.Errorf(errkind.Exists, "root file system %s is there already, of image %s", key, r.Image.Short())
		case r.lost:
			return nil, true, errkind.Errorf(errkind.BadState, "root file system %s has lost layers of image %s to damage on the disk: it must be removed, and made anew after a pull", key, id.Short())
		}
		return r, true, nil
	}
	image := s.images[id]
	if image == nil {
		return nil, false, errkind.Errorf(errkind.NotFound, "no image %s", id.Short())
	}
	r = &rootfsRecord{Version: rootfsVersion, Key: key, Image: id, Layers: image.stack(), Volume: volume, Made: time.Now().UTC()}
	s.holdLocked(unique(r.Layers)...)
	s.rootfs[key] = r
	return r, false, nil
}

// giveProject counts what will be written on its own, and limits it. What cannot be
// counted is walked instead, but what cannot be limited is an error.
func (s *Store) giveProject(ctx context.Context, r *rootfsRecord) error {
	project, err := s.projects.take()
	if err != nil && s.projects.limit != (WritableLimit{}) {
		return fmt.Errorf("limit the writable layer: %w", err)
	}
	if err != nil {
		klog.FromContext(ctx).Error(err, "A writable layer will be walked to find out its size", "container", r.Key)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r.Project = project
	return nil
}

// bringUp makes what is missing of the root file system.
func (s *Store) bringUp(r *rootfsRecord) (Rootfs, error) {
	dir := s.path("rootfs", r.Key)
	var out Rootfs
	seen := make(map[digest.Digest]bool)
	for _, d := range slices.Backward(r.Layers) {
		// overlayfs refuses a layer twice. The lower one has nothing to add: all of it
		// is in the upper one.
		if !seen[d] {
			seen[d] = true
			out.Lower = append(out.Lower, filepath.Join(s.layerPath(d), layerFS))
		}
	}
	if r.Volume || len(out.Lower) == 0 {
		// overlayfs wants two layers where it has no writable one, and at least one.
		out.Lower = append(out.Lower, filepath.Join(dir, emptyDir))
	}
	if r.Volume {
		return out, s.makeVolume(dir, r)
	}
	out.Upper, out.Work = filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	if err := s.makeRootfs(dir, r, &out); err != nil {
		return Rootfs{}, err
	}
	m, err := openMerged(out.Lower)
	if err != nil {
		return Rootfs{}, err
	}
	defer m.close()
	if out.Passwd, err = m.readFile("/etc/passwd", maxPasswd); err != nil {
		return Rootfs{}, err
	}
	out.Group, err = m.readFile("/etc/group", maxPasswd)
	return out, err
}

// makeFolder makes the folder of a root file system or a volume, with the record
// and the layer without files in it.
func (s *Store) makeFolder(dir string, r *rootfsRecord) error {
	if err := mkdir(dir); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(dir, rootfsFile), r, atomicfile.NoSync); err != nil {
		return err
	}
	if r.Volume || len(r.Layers) == 0 {
		empty := filepath.Join(dir, emptyDir)
		if err := mkdir(empty); err != nil {
			return err
		}
		return os.Chmod(empty, 0o755) // what the umask has taken
	}
	return nil
}

func (s *Store) makeRootfs(dir string, r *rootfsRecord, out *Rootfs) error {
	if err := s.makeFolder(dir, r); err != nil {
		return err
	}
	if err := failpoint.Hit("image.rootfs.prepare"); err != nil {
		return err
	}
	if err := mkdir(out.Work); err != nil {
		return err
	}
	err := os.Mkdir(out.Upper, 0o755)
	made := err == nil
	if !made && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := failpoint.Hit("image.rootfs.project"); err != nil {
		return err
	}
	// Both: overlayfs moves what it makes from work to upper, which between projects
	// would fail.
	if err := s.projects.assign(r.Project, out.Work, out.Upper); err != nil {
		return err
	}
	if !made {
		return nil // the container may have changed its attributes
	}
	return copyRootAttributes(out.Lower[0], out.Upper)
}

// copyRootAttributes makes upper look like the image's root folder: overlayfs
// shows the attributes of the uppermost folder.
func copyRootAttributes(lower, upper string) error {
	from, err := dirfd.Open(lower)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := dirfd.Open(upper)
	if err != nil {
		return err
	}
	defer to.Close()
	st, err := from.Self().Stat()
	if err != nil {
		return err
	}
	a := attributes{uid: st.UID, gid: st.GID, mode: st.Mode & 0o7777, atime: st.MTime, mtime: st.MTime}
	return a.setOnDir(to)
}

func mkdir(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// Release removes a root file system and all that was written to it, and lets its
// layers go. It must not be mounted any more. A key that is not prepared is no
// error.
func (s *Store) Release(ctx context.Context, key string) error {
	unlock, err := s.keys.Lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	return s.release(ctx, key)
}

func (s *Store) release(ctx context.Context, key string) error {
	s.mu.Lock()
	r := s.rootfs[key]
	s.mu.Unlock()
	if r == nil {
		return nil
	}
	if err := failpoint.Hit("image.rootfs.release"); err != nil {
		return err
	}
	// Until the files are gone, they must not be billed to another container.
	if err := s.trash.addThen(s.path("rootfs", key), func() { s.projects.free(r.Project) }); err != nil {
		return fmt.Errorf("release root file system %s: %w", key, err)
	}
	s.mu.Lock()
	delete(s.rootfs, key)
	s.mu.Unlock()
	s.drop(ctx, unique(r.Layers)...)
	return nil
}

// Prepared returns the keys of all root file systems, sorted, also of those that
// an earlier process has prepared.
func (s *Store) Prepared() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.rootfs))
}
