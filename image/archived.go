package image

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cridproject/crid/image/dirfd"
)

// layerReader reads the archive of a stored layer: the very bytes that were
// unpacked, if nothing has changed.
type layerReader struct {
	skeleton *skeletonReader
	dir      string
	fs       tree // of the layer's files
	gone     departures
	// damaged is told of each file whose contents are not those of the archive; zeros
	// or rubbish stand in their place. nil makes that the end of reading.
	damaged func(path string, what error)

	raw     []byte // of the item under way
	entries int    // so far
	last    string // path of the last entry
	stashed *item
	total   int64
	ended   bool

	file *dirfd.File // whose contents are being read; nil when it cannot be
	left int64
	crc  uint32
	want uint32
}

var zeroBytes [rawChunk]byte // never written to

// departures are in the order of the archive by path: an archive may have as many as
// entries, so they are looked up and not gone through.
type departures map[string][]departure

// departure is a path that has had something else later in the archive.
type departure struct {
	path   string
	order  int    // of all departures
	number uint64 // in replaced/; 0 means that there is nothing left
	before int    // number of the first entry that is not affected
}

// made is what an entry of the archive has made.
type made struct {
	kind byte // itemEntry, itemWhiteout or itemOpaque
	path string
	// stays says that it is in fs/, and no later entry has replaced it.
	stays bool
}

// openLayer opens the layer in dir, which has a skeleton.
func openLayer(dir string) (*layerReader, error) {
	gone, err := readDepartures(dir)
	if err != nil {
		return nil, err
	}
	s, err := openSkeleton(dir)
	if err != nil {
		return nil, err
	}
	root, err := dirfd.Open(filepath.Join(dir, layerFS))
	if err != nil {
		s.close()
		return nil, err
	}
	return &layerReader{skeleton: s, dir: dir, fs: newTree(root), gone: gone}, nil
}

// readDepartures reads the skeleton for what was replaced: seldom anything.
func readDepartures(dir string) (departures, error) {
	s, err := openSkeleton(dir)
	if err != nil {
		return nil, err
	}
	defer s.close()
	gone := make(departures)
	for entries, order := 0, 0; ; {
		i, err := s.next()
		if err != nil {
			return nil, err
		}
		switch i.kind {
		case itemEnd:
			return gone, nil
		case itemEntry, itemWhiteout, itemOpaque:
			entries++
		case itemGone:
			gone[i.path] = append(gone[i.path], departure{i.path, order, i.number, entries})
			order++
		}
	}
}

func (l *layerReader) close() {
	l.endFile()
	l.fs.close()
	l.skeleton.close()
}

// departed finds what became of the path that the entry of that number made: the
// first departure after it, of the path or of a folder that it is in.
func (l *layerReader) departed(p string, entry int) (first departure, found bool) {
	for len(l.gone) > 0 {
		of := l.gone[p]
		n, _ := slices.BinarySearchFunc(of, entry+1, func(d departure, least int) int { return d.before - least })
		if n < len(of) && (!found || of[n].order < first.order) {
			first, found = of[n], true
		}
		if p == "" {
			break
		}
		p = parentOf(p)
	}
	return first, found
}

func (l *layerReader) Read(p []byte) (int, error) {
	for {
		switch {
		case len(p) == 0:
			return 0, nil
		case len(l.raw) > 0:
			n := copy(p, l.raw)
			l.raw = l.raw[n:]
			l.total += int64(n)
			return n, nil
		case l.left > 0:
			n, err := l.readFile(p[:min(int64(len(p)), l.left)])
			l.total += int64(n)
			return n, err
		case l.ended:
			return 0, io.EOF
		}
		if err := l.advance(); err != nil {
			return 0, err
		}
	}
}

// advance goes to the next item that has bytes, or to the end.
func (l *layerReader) advance() error {
	i, err := l.item()
	if err != nil {
		return err
	}
	switch i.kind {
	case itemRaw:
		l.raw = i.bytes
	case itemZeros:
		if i.number > rawChunk {
			return fmt.Errorf("%s: %d zeros: %w", l.skeleton.file.Name(), i.number, errFormat)
		}
		l.raw = zeroBytes[:i.number]
	case itemPayload:
		return l.startFile(i)
	case itemEnd:
		if l.ended = true; l.total != int64(i.number) {
			return fmt.Errorf("%s: %d bytes, but the archive has had %d: %w", l.skeleton.file.Name(), l.total, i.number, errFormat)
		}
	case itemEntry, itemWhiteout, itemOpaque:
		l.note(i)
	}
	return nil
}

func (l *layerReader) item() (item, error) {
	if i := l.stashed; i != nil {
		l.stashed = nil
		return *i, nil
	}
	return l.skeleton.next()
}

func (l *layerReader) note(i item) made {
	m := made{kind: i.kind, path: i.path}
	_, gone := l.departed(i.path, l.entries)
	m.stays = !gone
	l.entries++
	l.last = i.path
	return m
}

// made returns what the entry whose header was read last has made. Nothing of
// its contents must have been read.
func (l *layerReader) made() ([]made, error) {
	var all []made
	for len(l.raw) == 0 && l.left == 0 && !l.ended {
		i, err := l.item()
		if err != nil {
			return nil, err
		}
		switch i.kind {
		case itemEntry, itemWhiteout, itemOpaque:
			all = append(all, l.note(i))
		case itemGone:
		default:
			l.stashed = &i
			return all, nil
		}
	}
	return all, nil
}

// startFile begins the contents of the last entry.
func (l *layerReader) startFile(i item) error {
	if i.number == 0 || i.number > 1<<62 {
		return fmt.Errorf("%s: a file of %d bytes: %w", l.skeleton.file.Name(), i.number, errFormat)
	}
	l.left, l.want, l.crc = int64(i.number), i.crc, 0
	f, err := l.open()
	if err != nil {
		return l.damage(err)
	}
	l.file = f
	return nil
}

func (l *layerReader) open() (*dirfd.File, error) {
	p := l.last
	d, replaced := l.departed(p, l.entries-1)
	if !replaced {
		l.fs.trim()
		parent, err := l.fs.dir(parentOf(p))
		if err != nil {
			return nil, err
		}
		return parent.OpenFile(path.Base(p))
	}
	root, err := dirfd.Open(filepath.Join(l.dir, replacedDir))
	if err != nil {
		return nil, err
	}
	t := newTree(root)
	defer t.close()
	p = strconv.FormatUint(d.number, 10) + strings.TrimPrefix(p, d.path)
	parent, err := t.dir(parentOf(p))
	if err != nil {
		return nil, err
	}
	return parent.OpenFile(path.Base(p))
}

// readFile reads contents; what is missing reads as zeros.
func (l *layerReader) readFile(p []byte) (int, error) {
	n := len(p)
	if l.file == nil {
		clear(p)
	} else {
		var err error
		if n, err = l.file.Read(p); err != nil {
			l.endFile()
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("it is %d bytes too short", l.left)
			}
			return 0, l.damage(err)
		}
		l.crc = crc32.Update(l.crc, castagnoli, p[:n])
	}
	if l.left -= int64(n); l.left > 0 || l.file == nil {
		return n, nil
	}
	l.endFile()
	if l.crc != l.want {
		return n, l.damage(errors.New("its contents have changed"))
	}
	return n, nil
}

func (l *layerReader) endFile() {
	if l.file != nil {
		_ = l.file.Close()
		l.file = nil
	}
}

func (l *layerReader) damage(what error) error {
	if l.damaged == nil {
		return fmt.Errorf("/%s: %w", l.last, what)
	}
	l.damaged(l.last, what)
	return nil
}
