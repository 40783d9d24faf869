package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"path"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
	"k8s.io/klog/v2"

	"github.com/cridproject/crid/image/dirfd"
	"github.com/cridproject/crid/internal/errkind"
)

// Damage is something on disk that is not as the image's archives say.
type Damage struct {
	Layer digest.Digest `json:"layer"`
	Path  string        `json:"path,omitempty"` // in the layer, from its root "/"; "" when it is the layer as a whole
	What  string        `json:"what"`
}

func (d Damage) String() string {
	if d.Path == "" {
		return fmt.Sprintf("layer %s: %s", d.Layer, d.What)
	}
	return fmt.Sprintf("layer %s: %q: %s", d.Layer, d.Path, d.What)
}

// Verification is what Verify has found out about one image.
type Verification struct {
	Image  Image
	Bytes  int64    // of the layers' archives, which were hashed
	Damage []Damage // none: every layer is what its diff ID says
	// Unverifiable are layers that an older crid has unpacked, which kept no
	// skeleton. The image works; pulled again it can be verified.
	Unverifiable []digest.Digest
	// Users hold layers that are damaged. As long as one is there, a pull takes the
	// layers for what they should be.
	Users Users
}

// Users are what holds some layers, each sorted.
type Users struct {
	Images     []ID     `json:"images,omitempty"`
	Containers []string `json:"containers,omitempty"` // keys of root file systems, owners of volumes
}

// users finds who holds the damaged layers.
func (s *Store) users(damaged []Damage) (u Users) {
	bad := make(map[digest.Digest]bool)
	for _, d := range damaged {
		bad[d.Layer] = true
	}
	hit := func(ds []digest.Digest) bool {
		return slices.ContainsFunc(ds, func(d digest.Digest) bool { return bad[d] })
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, r := range s.images {
		if hit(r.stack()) {
			u.Images = append(u.Images, id)
		}
	}
	for key, r := range s.rootfs {
		if hit(r.Layers) {
			u.Containers = append(u.Containers, VolumeOwner(key))
		}
	}
	slices.Sort(u.Images)
	slices.Sort(u.Containers)
	u.Containers = slices.Compact(u.Containers)
	return u
}

// maxDamage is the files of one layer that are told of.
const maxDamage = 100

// Verify reads all of the images, or of all images when none is named, and
// compares them with what they were made from: each layer's archive is put
// together again and hashed, and each file's type, owner, mode, times, extended
// attributes, link target and device are compared with its header. It changes
// nothing. report is called for each image, by ID; a layer that images share is
// read once. It ends early with ctx.
func (s *Store) Verify(ctx context.Context, refs []string, p *Progress, report func(Verification)) error {
	images := s.List()
	if len(refs) > 0 {
		images = images[:0]
		for _, ref := range refs {
			i, err := s.Image(ref)
			if err != nil {
				return err
			}
			images = append(images, i)
		}
	}
	steps := make(map[digest.Digest]*step)
	for _, i := range images {
		for _, d := range i.Layers {
			if steps[d] == nil {
				s.mu.Lock()
				if l := s.layers[d]; l != nil {
					steps[d] = p.add(d, l.meta.Archive)
				}
				s.mu.Unlock()
			}
		}
	}
	known := make(map[digest.Digest][]Damage)
	for _, i := range images {
		v, err := s.verifyImage(ctx, i, steps, known)
		if errkind.Is(err, errkind.NotFound) {
			continue // removed meanwhile
		}
		if err != nil {
			return fmt.Errorf("verify image %s: %w", i.ID.Short(), err)
		}
		report(v)
	}
	return nil
}

// holdImage keeps the layers of an image, with its layer of folders, until release.
// metas is what is known of its own layers, lowest first.
func (s *Store) holdImage(ctx context.Context, id ID) (r *record, metas []layerMeta, release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r = s.images[id]; r == nil {
		return nil, nil, nil, errkind.Errorf(errkind.NotFound, "no image %s", id.Short())
	}
	uses := r.uses()
	s.holdLocked(uses...)
	for _, d := range r.layers {
		metas = append(metas, s.layers[d].meta)
	}
	return r, metas, func() { s.drop(context.WithoutCancel(ctx), uses...) }, nil
}

func (s *Store) verifyImage(ctx context.Context, i Image, steps map[digest.Digest]*step, known map[digest.Digest][]Damage) (Verification, error) {
	v := Verification{Image: i}
	r, metas, release, err := s.holdImage(ctx, i.ID)
	if err != nil {
		return v, err
	}
	defer release()
	for _, m := range metas {
		if m.Archive == 0 {
			v.Unverifiable = append(v.Unverifiable, m.DiffID)
			continue
		}
		v.Bytes += m.Archive
		found, done := known[m.DiffID]
		if !done {
			if found, err = verifyLayer(ctx, s.layerPath(m.DiffID), m, steps[m.DiffID]); err != nil {
				return v, err
			}
			known[m.DiffID] = found
		}
		v.Damage = append(v.Damage, found...)
	}
	if r.Dirs != "" {
		v.Damage = append(v.Damage, s.verifyDirs(r, metas)...)
	}
	v.Unverifiable = unique(v.Unverifiable)
	v.Users = s.users(v.Damage)
	return v, nil
}

// verifyLayer returns what is wrong with the layer in dir. An error means that it could
// not be found out.
func verifyLayer(ctx context.Context, dir string, m layerMeta, st *step) ([]Damage, error) {
	v := &verifier{layer: m.DiffID, seed: maphash.MakeSeed(), seen: make(map[uint64]struct{}), dirs: make(map[string]attributes)}
	l, err := openLayer(dir)
	if err != nil {
		v.damage("", err)
		return v.found, nil
	}
	defer l.close()
	l.damaged = v.damage
	v.l = l
	if st == nil {
		st = (*Progress)(nil).add(m.DiffID, m.Archive)
	}
	meter := st.begin()
	defer meter.end(StepDone)
	hashed := newHashReader(meter.reader(l), digest.SHA256)
	if err := v.all(ctx, tar.NewReader(hashed)); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		v.damage("", err)
		return v.found, nil
	}
	if _, err := io.Copy(io.Discard, hashed); err != nil {
		v.damage("", err)
	}
	v.rest(m)
	if got := hashed.digest(digest.SHA256); got != m.DiffID && len(v.found) == 0 {
		v.damage("", fmt.Errorf("its archive has the digest %s", got))
	}
	klog.FromContext(ctx).V(4).Info("Verified layer", "digest", m.DiffID, "bytes", hashed.n, "damage", len(v.found))
	return v.found, nil
}

// verifier compares one layer's files with its archive.
type verifier struct {
	layer digest.Digest
	l     *layerReader
	seed  maphash.Seed
	seen  map[uint64]struct{}   // hashes of the paths that the archive has: paths may be long, and millions
	dirs  map[string]attributes // of folders; the last entry of each counts
	found []Damage
	more  int // damage not in found
}

func (v *verifier) damage(p string, what error) {
	if len(v.found) >= maxDamage {
		v.more++
		return
	}
	d := Damage{Layer: v.layer, What: what.Error()}
	if p != "" || errors.Is(what, errRoot) {
		d.Path = "/" + p
	}
	v.found = append(v.found, d)
}

// errRoot marks what is said of the root folder, whose path is "".
var errRoot = errors.New("the root folder")

func (v *verifier) all(ctx context.Context, tr *tar.Reader) error {
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read its archive: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		all, err := v.l.made()
		if err != nil {
			return err
		}
		for _, m := range all {
			if !m.stays {
				continue
			}
			v.seen[maphash.String(v.seed, m.path)] = struct{}{}
			if err := v.entry(tr, h, m); err != nil {
				v.damage(m.path, err)
			}
		}
	}
}

// entry compares what one entry has made.
func (v *verifier) entry(tr *tar.Reader, h *tar.Header, m made) error {
	switch {
	case m.kind == itemOpaque:
		return v.opaque(m.path)
	case m.kind == itemEntry && h.Typeflag == tar.TypeDir:
		a, err := attributesOf(h)
		v.dirs[m.path] = a
		return err
	}
	v.l.fs.trim()
	parent, err := v.parent(m.path)
	if err != nil {
		return err
	}
	name := path.Base(m.path)
	st, err := parent.Lstat(name)
	switch {
	case errors.Is(err, dirfd.ErrNotExist):
		return errors.New("it is missing")
	case err != nil:
		return err
	case m.kind == itemWhiteout && st.IsDir():
		return v.opaque(m.path)
	case m.kind == itemWhiteout:
		return nil // the mark, or a file of this layer that takes its place
	case h.Typeflag == tar.TypeLink:
		return v.hardLink(st, h)
	}
	return v.file(tr, h, parent, name, st)
}

// parent is the folder that path p is in, which no link may lead to.
func (v *verifier) parent(p string) (place, error) {
	at, err := v.l.fs.dir(parentOf(p))
	if err != nil {
		return at, fmt.Errorf("its folder: %w", err)
	}
	if at.path != parentOf(p) {
		return at, errors.New("a link has taken the place of a folder in its path")
	}
	return at, nil
}

func (v *verifier) opaque(p string) error {
	v.l.fs.trim()
	at, err := v.l.fs.dir(p)
	if err != nil {
		return err
	}
	if string(at.Self().Xattr(opaqueXattr)) != "y" {
		return errors.New("it no longer hides what the layers below have in it")
	}
	return nil
}

// hardLink checks that a further name still leads to the file, where that is
// sure to be the one.
func (v *verifier) hardLink(st dirfd.Stat, h *tar.Header) error {
	to, err := cleanName(h.Linkname)
	if err != nil || to == "" {
		return err
	}
	if _, gone := v.l.departed(to, v.l.entries-1); gone {
		return nil
	}
	parent, err := v.l.fs.dir(parentOf(to))
	if err != nil || parent.path != parentOf(to) {
		return nil //nolint:nilerr // reached through a link, which may have been another then
	}
	target, err := parent.Lstat(path.Base(to))
	if err == nil && target.Inode != st.Inode {
		return fmt.Errorf("it is no longer the same file as %q", "/"+to)
	}
	return nil
}

// rest checks what is known only at the end: folders, and files that the archive
// does not have.
func (v *verifier) rest(m layerMeta) {
	implied := make(map[string]bool)
	for _, p := range m.Implied {
		v.seen[maphash.String(v.seed, p)], implied[p] = struct{}{}, true
		if _, ok := v.dirs[p]; !ok {
			v.dirs[p] = attributes{mode: 0o755}
		}
	}
	for p, a := range v.dirs {
		v.l.fs.trim()
		at, err := v.l.fs.dir(p)
		if err == nil && at.path != p {
			err = errors.New("it is a link, not a folder")
		}
		if err == nil {
			err = a.compareDir(at.Dir, implied[p])
		}
		if err != nil && p == "" {
			err = fmt.Errorf("%w: %w", errRoot, err)
		}
		if err != nil {
			v.damage(p, err)
		}
	}
	if err := v.walk(v.l.fs.root, ""); err != nil {
		v.damage("", err)
	}
	if v.more > 0 {
		v.found = append(v.found, Damage{Layer: v.layer, What: fmt.Sprintf("and %d more files", v.more)})
	}
}

// walk looks for files that the archive does not have.
func (v *verifier) walk(d *dirfd.Dir, at string) error {
	names, err := d.Names()
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		p := join(at, name)
		if _, ok := v.seen[maphash.String(v.seed, p)]; !ok {
			v.damage(p, errors.New("it is not in the layer's archive"))
			continue
		}
		sub, err := d.OpenDir(name)
		if errors.Is(err, dirfd.ErrNotDir) || errors.Is(err, dirfd.ErrLoop) {
			continue
		}
		if err != nil {
			return err
		}
		err = v.walk(sub, p)
		_ = sub.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// verifyDirs checks an image's layer of folders, which follows from those below.
func (s *Store) verifyDirs(r *record, metas []layerMeta) (found []Damage) {
	say := func(p string, err error) { found = append(found, Damage{Layer: r.Dirs, Path: p, What: err.Error()}) }
	var lower []string
	for _, m := range slices.Backward(metas) {
		lower = append(lower, filepath.Join(s.layerPath(m.DiffID), layerFS))
	}
	entries, err := dirEntries(metas, lower)
	if err == nil {
		var id digest.Digest
		if id, err = dirsDigest(entries); err == nil && id != r.Dirs {
			err = errors.New("it is not what follows from the layers below; is one of them damaged?")
		}
	}
	if err != nil {
		say("", err)
		return found
	}
	for _, e := range entries {
		d, err := dirfd.Open(filepath.Join(s.layerPath(r.Dirs), layerFS, e.Path))
		if err == nil {
			a := e.attributes()
			err = errors.Join(a.compareDir(d, false), d.Close())
		}
		if err != nil {
			say("/"+e.Path, err)
		}
	}
	return found
}
