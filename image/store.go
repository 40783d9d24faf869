// Package image pulls images, stores them, and hands out root file systems.
//
// An image is a record (images/<hex>.json) and a stack of layers. A layer is
// stored once, unpacked, as a folder that overlayfs takes as it is
// (layers/<hex of the diff ID>/); compressed blobs are not kept. A record is
// written last and removed first, so an image that is listed runs, whatever
// moment the power went. Below the root:
//
//	images/<hex>.json        records; see record
//	layers/<hex>/            layers; held by records, root file systems, pulls
//	rootfs/<key>/            root file systems: rootfs.json, upper/, work/
//	ingest/                  unfinished pulls and imports; emptied at start
//	trash/                   what is being deleted in the background; emptied at start
//	quarantine/              records that could not be understood, for people
//	mark.json                how the store was left; see mark
//	lock                     held by the one process that has the store open
//
// Methods may be called concurrently. List and Image read a published snapshot:
// they wait for nothing. Lock order: write, then mu.
package image

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
	"k8s.io/klog/v2"

	"github.com/cridproject/crid/image/signature"
	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/keylock"
	"github.com/cridproject/crid/internal/sys"
)

// Options of a store.
type Options struct {
	Root string // folder of the store; required; on a local file system that overlayfs can use
	// RegistryDirs are trees of hosts.toml files, the first that knows a host wins.
	// nil means /etc/crid/certs.d and /etc/containerd/certs.d.
	RegistryDirs    []string
	MaxDownloads    int               // layers of one pull that are fetched at once; 0 means 6
	ProgressTimeout time.Duration     // a download without a byte for so long fails; 0 means 5 minutes, less means never
	Platform        *ocispec.Platform // of the images; nil means that of this machine
	Limits          Limits            // of one layer; the zero value has defaults
	WritableLimit   WritableLimit     // of each writable layer that is prepared from now on; see ErrNoLimit
	FirstProject    uint32            // of 1048576 project IDs for writable layers; 0 means 1<<30
	Pinned          []string          // images that kubelet is to keep; see ParsePattern
	// Signatures decides which images may be pulled or imported; nil: all.
	Signatures *signature.Checker
	Observer   Observer // nil means that nobody is told
}

// Observer is told of what a Store does, for figures. It must not wait.
type Observer interface {
	// Pulled is the end of a pull; err is nil for success.
	Pulled(took time.Duration, err error)
	// Fetched is bytes that came from a registry or archive, as they came.
	Fetched(bytes int)
	// Unpacked is a layer that is new in the store, of files of so many bytes.
	Unpacked(bytes uint64)
}

type noObserver struct{}

func (noObserver) Pulled(time.Duration, error) {}
func (noObserver) Fetched(int)                 {}
func (noObserver) Unpacked(uint64)             {}

// Store is the images of a node. New makes one, Close ends it.
type Store struct {
	root            string
	registryDirs    []string
	maxDownloads    int
	progressTimeout time.Duration
	retryPause      time.Duration // before a registry is asked for something once more
	pinned          []Pattern

	ranges  *semaphore.Weighted // parts of layers fetched ahead, see rangeReader
	buffers sync.Pool           // *[]byte, for these

	platform     platforms.MatchComparer
	platformName string
	limits       Limits

	signatures *signature.Checker // nil accepts all
	observer   Observer

	lock      *os.File
	recovered bool // the store is open; immutable from then on
	trash     trash
	usage     usageCache
	projects  projects

	keys keylock.Map[string] // of root file systems; taken before write and mu

	// write serialises what changes images/ and the names in layers/. It is held
	// over the writing of a record or a rename, never over a download or a tree.
	write   sync.Mutex
	current uint64    // epoch; see mark. +checklocks:write
	began   time.Time // the epoch. +checklocks:write

	mu      sync.Mutex // never held across I/O
	images  map[ID]*record
	layers  map[digest.Digest]*layer
	rootfs  map[string]*rootfsRecord
	flights map[flightKey]*flight
	seq     uint64 // of the last name given
	// Each is +checklocks:mu.

	published atomic.Pointer[index]
}

// layer is a stored layer.
type layer struct {
	meta layerMeta
	// refs are the records, root file systems and pulls under way that hold it; at
	// none it goes. +checklocks:Store.mu
	refs int
	// durable says that a sync has come after it was unpacked. +checklocks:Store.mu
	durable bool
}

// New opens the store at o.Root and makes it if need be. What a crash has left
// half done is removed; an image whose record or layers are damaged is set
// aside and logged, and can be pulled again. Only one process can have a store
// open: for another the error is BadState.
func New(o Options) (*Store, error) {
	if o.Root == "" {
		return nil, errkind.Errorf(errkind.Invalid, "image store: no root folder given")
	}
	s := &Store{
		root: o.Root, registryDirs: o.RegistryDirs, limits: o.Limits, signatures: o.Signatures, observer: o.Observer,
		maxDownloads: o.MaxDownloads, progressTimeout: o.ProgressTimeout, retryPause: firstPause,
		images: make(map[ID]*record), layers: make(map[digest.Digest]*layer),
		rootfs: make(map[string]*rootfsRecord), flights: make(map[flightKey]*flight),
	}
	var err error
	if s.pinned, err = parsePatterns(o.Pinned); err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	if s.registryDirs == nil {
		s.registryDirs = []string{"/etc/crid/certs.d", "/etc/containerd/certs.d"}
	}
	if s.observer == nil {
		s.observer = noObserver{}
	}
	if s.maxDownloads <= 0 {
		s.maxDownloads = 6
	}
	s.ranges = semaphore.NewWeighted(int64(s.maxDownloads))
	if s.progressTimeout == 0 {
		s.progressTimeout = 5 * time.Minute
	}
	platform := hostPlatform()
	if o.Platform != nil {
		platform = platforms.Normalize(*o.Platform)
	}
	s.platform, s.platformName = platforms.Only(platform), platforms.Format(platform)
	if err := s.openFolders(); err != nil {
		return nil, fmt.Errorf("image store %s: %w", s.root, err)
	}
	s.trash.dir, s.trash.life, s.trash.limit = s.path("trash"), rand.Text(), settleLimit
	err = s.recover(klog.Background())
	if err == nil {
		err = s.openProjects(o)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("image store %s: %w", s.root, err), s.Close())
	}
	s.recovered = true
	return s, nil
}

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.root}, elem...)...)
}

func (s *Store) layerPath(d digest.Digest) string { return s.path("layers", d.Encoded()) }

// openFolders makes the folders and takes the lock. Nobody but root may look
// into them: layers hold setuid programs.
func (s *Store) openFolders() error {
	if err := os.MkdirAll(s.root, 0o711); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), sys.LockGrace)
	defer cancel()
	lock, err := sys.LockFile(ctx, s.path("lock"))
	if errors.Is(err, sys.ErrLocked) {
		return errkind.Errorf(errkind.BadState, "%w; is crid running?", err)
	}
	if err != nil {
		return err
	}
	for _, dir := range []string{"images", "layers", "rootfs", "ingest", "trash"} {
		if err == nil {
			err = os.MkdirAll(s.path(dir), 0o700)
		}
	}
	if err != nil {
		return errors.Join(err, lock.Close())
	}
	s.lock = lock
	return nil
}

// Close waits for deletions in the background and gives the store back. No
// other method may be under way or come later.
func (s *Store) Close() error {
	s.usage.end()
	s.trash.wait()
	var err error
	if s.recovered {
		err = s.writeMark(true)
	}
	return errors.Join(err, s.projects.close(), s.lock.Close())
}

// stage makes a new folder for unfinished things. The caller discards it.
func (s *Store) stage() (string, error) { return os.MkdirTemp(s.path("ingest"), "") }

// discard removes an unfinished folder, in the background.
func (s *Store) discard(ctx context.Context, dir string) {
	if err := s.trash.add(dir); err != nil {
		klog.FromContext(ctx).Error(err, "Could not remove unfinished files, will try again at the next start", "path", dir)
	}
}
