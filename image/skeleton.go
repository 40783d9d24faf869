package image

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/klauspost/compress/zstd"

	"github.com/cridproject/crid/image/dirfd"
)

// A layer's archive is not kept, but it can be put together again, to the byte:
// from its files and from its skeleton, which is all of the archive that is in
// no file: headers, padding, what follows the end. So a layer can be verified
// by its diff ID and exported as the same layer.
//
// The skeleton is written while the layer is unpacked. It is a zstd stream of
// items, each a byte that says which and then:
//
//	r  length, bytes          the next bytes of the archive
//	z  length                 as many zeros
//	e  length, path           the entry whose header this was has made path
//	w  length, path           it was a whiteout of path
//	o  length, path           it has made the folder path opaque
//	p  size, CRC-32C          the next bytes are the contents of the last e
//	g  number, length, path   what was at path has gone: to replaced/<number>,
//	                          or for good if that is 0
//	.  size                   the archive's end
//
// Lengths, sizes and numbers are varints, the checksum four bytes, little endian;
// paths are below fs/ and free of symbolic links. Contents that are on disk in
// another form, those of sparse files, are in r. A file that a later entry of the
// same archive replaces is moved to replaced/, as it is still part of the archive.
const (
	skeletonFile = "skeleton.zst"
	replacedDir  = "replaced"
	skeletonMark = "crid skeleton 1\n"

	itemRaw      = 'r'
	itemZeros    = 'z'
	itemEntry    = 'e'
	itemWhiteout = 'w'
	itemOpaque   = 'o'
	itemPayload  = 'p'
	itemGone     = 'g'
	itemEnd      = '.'

	rawChunk   = 64 << 10 // bytes of one r at most
	zeroRun    = 24       // zeros that are worth an item of their own: most of a header is
	maxItem    = 1 << 20  // bytes of one item that reading takes for possible
	zstdMemory = 256 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// skeletonWriter passes an archive on to who unpacks it and writes its skeleton.
// A nil one writes nothing.
type skeletonWriter struct {
	r    io.Reader // the archive
	dir  string    // of the layer
	file *os.File
	z    *zstd.Encoder

	raw      []byte // read and not written yet
	scratch  []byte
	total    int64 // bytes of the archive so far
	payload  bool  // what is read is in a file
	size     int64 // of the payload so far
	crc      uint32
	replaced *dirfd.Dir // nil until something is
	kept     uint64     // number of the last one
}

// newSkeleton makes the skeleton of r in the layer's folder dir. The caller
// closes it.
func newSkeleton(r io.Reader, dir string) (*skeletonWriter, error) {
	f, err := os.OpenFile(filepath.Join(dir, skeletonFile), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	// Headers resemble the one before: a small window finds that, and many layers
	// are unpacked at once.
	z, err := zstd.NewWriter(f, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(zstdMemory), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	s := &skeletonWriter{r: r, dir: dir, file: f, z: z, raw: make([]byte, 0, rawChunk)}
	_, err = z.Write([]byte(skeletonMark))
	return s, err
}

func (s *skeletonWriter) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.total += int64(n)
	if s.payload {
		s.crc = crc32.Update(s.crc, castagnoli, p[:n])
		s.size += int64(n)
		return n, err
	}
	for rest := p[:n]; len(rest) > 0; {
		m := min(len(rest), rawChunk-len(s.raw))
		s.raw = append(s.raw, rest[:m]...)
		rest = rest[m:]
		if len(s.raw) == rawChunk {
			if err := s.flush(); err != nil {
				return n, err
			}
		}
	}
	return n, err
}

// flush writes what is raw.
func (s *skeletonWriter) flush() error {
	b := s.scratch[:0]
	for rest := s.raw; len(rest) > 0; {
		text := notZeros(rest)
		if text > 0 {
			b = append(b, itemRaw)
			b = binary.AppendUvarint(b, uint64(text))
			b = append(b, rest[:text]...)
		}
		rest = rest[text:]
		if n := zeros(rest); n > 0 {
			b = append(b, itemZeros)
			b = binary.AppendUvarint(b, uint64(n))
			rest = rest[n:]
		}
	}
	s.raw, s.scratch = s.raw[:0], b
	return s.write()
}

// notZeros is where in b the first long run of zeros begins, its length if there
// is none.
func notZeros(b []byte) int {
	for at := 0; ; {
		i := bytes.IndexByte(b[at:], 0)
		if i < 0 {
			return len(b)
		}
		at += i
		n := zeros(b[at:])
		if n >= zeroRun {
			return at
		}
		at += n
	}
}

// zeros is the number of zeros that b begins with.
func zeros(b []byte) (n int) {
	for len(b)-n >= 8 && binary.NativeEndian.Uint64(b[n:]) == 0 {
		n += 8
	}
	for n < len(b) && b[n] == 0 {
		n++
	}
	return n
}

// write writes what is in scratch.
func (s *skeletonWriter) write() error {
	if len(s.scratch) == 0 {
		return nil
	}
	_, err := s.z.Write(s.scratch)
	s.scratch = s.scratch[:0]
	return err
}

// item writes one item: its numbers, then what is text in it with its length.
func (s *skeletonWriter) item(kind byte, number []uint64, text string) error {
	b := append(s.scratch[:0], kind)
	for _, n := range number {
		b = binary.AppendUvarint(b, n)
	}
	if kind != itemEnd {
		b = binary.AppendUvarint(b, uint64(len(text)))
		b = append(b, text...)
	}
	s.scratch = b
	return s.write()
}

// entry notes what the entry that was read last has made.
func (s *skeletonWriter) entry(kind byte, path string) error {
	if s == nil {
		return nil
	}
	if err := s.flush(); err != nil {
		return err
	}
	return s.item(kind, nil, path)
}

// begin says that what is read until end goes into the file of the last entry.
func (s *skeletonWriter) begin() error {
	if s == nil {
		return nil
	}
	s.payload, s.size, s.crc = true, 0, 0
	return s.flush()
}

func (s *skeletonWriter) end() error {
	if s == nil {
		return nil
	}
	s.payload = false
	if s.size == 0 {
		return nil
	}
	b := append(s.scratch[:0], itemPayload)
	b = binary.AppendUvarint(b, uint64(s.size))
	b = binary.LittleEndian.AppendUint32(b, s.crc)
	s.scratch = b
	return s.write()
}

// replace makes name in parent go away. What has contents is kept.
func (s *skeletonWriter) replace(parent place, name string, st dirfd.Stat) error {
	hasContents := st.IsDir() || st.IsRegular() && st.Size > 0
	if s == nil || !hasContents {
		if err := s.gone(0, join(parent.path, name)); err != nil {
			return err
		}
		if st.IsDir() {
			return parent.RemoveAll(name)
		}
		return parent.Unlink(name)
	}
	if s.replaced == nil {
		path := filepath.Join(s.dir, replacedDir)
		if err := os.Mkdir(path, 0o700); err != nil {
			return err
		}
		var err error
		if s.replaced, err = dirfd.Open(path); err != nil {
			return err
		}
	}
	s.kept++
	if err := parent.Rename(name, s.replaced, strconv.FormatUint(s.kept, 10)); err != nil {
		return err
	}
	return s.gone(s.kept, join(parent.path, name))
}

func (s *skeletonWriter) gone(number uint64, path string) error {
	if s == nil {
		return nil
	}
	if err := s.flush(); err != nil {
		return err
	}
	return s.item(itemGone, []uint64{number}, path)
}

// finish writes the end, when all of the archive has been read, and returns the
// size of the skeleton.
func (s *skeletonWriter) finish() (size int64, err error) {
	if err := s.flush(); err != nil {
		return 0, err
	}
	if err := s.item(itemEnd, []uint64{uint64(s.total)}, ""); err != nil {
		return 0, err
	}
	if err := s.z.Close(); err != nil {
		return 0, err
	}
	fi, err := s.file.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

// close closes the files. After finish its error says whether all is written.
func (s *skeletonWriter) close() error {
	if s.replaced != nil {
		_ = s.replaced.Close()
	}
	_ = s.z.Close()
	return s.file.Close()
}

// item is one of a skeleton.
type item struct {
	kind   byte
	bytes  []byte // of r; good until the next item is read
	path   string // of e, w, o, g
	number uint64 // of z, p and ".": a size; of g: where it is now
	crc    uint32 // of p
}

// skeletonReader reads the items of a skeleton.
type skeletonReader struct {
	file *os.File
	z    *zstd.Decoder
	r    *bufio.Reader
	raw  []byte
}

// openSkeleton opens the skeleton of the layer in dir.
func openSkeleton(dir string) (*skeletonReader, error) {
	f, err := os.Open(filepath.Join(dir, skeletonFile))
	if err != nil {
		return nil, err
	}
	z, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(zstdMemory))
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	s := &skeletonReader{file: f, z: z, r: bufio.NewReaderSize(z, 32<<10)}
	mark := make([]byte, len(skeletonMark))
	if _, err := io.ReadFull(s.r, mark); err != nil || string(mark) != skeletonMark {
		s.close()
		return nil, fmt.Errorf("%s: it does not begin as a skeleton does: %w", f.Name(), cmp.Or(err, errFormat))
	}
	return s, nil
}

var errFormat = errors.New("not in its format")

func (s *skeletonReader) close() {
	s.z.Close()
	_ = s.file.Close()
}

// next reads one item. It must not be called after the end has been read.
func (s *skeletonReader) next() (item, error) {
	i, err := s.read()
	if err != nil {
		return i, fmt.Errorf("%s: %w", s.file.Name(), noEOF(err))
	}
	return i, nil
}

func (s *skeletonReader) read() (i item, err error) {
	if i.kind, err = s.r.ReadByte(); err != nil {
		return i, err
	}
	switch i.kind {
	case itemRaw:
		i.bytes, err = s.text()
	case itemEntry, itemWhiteout, itemOpaque:
		err = s.path(&i)
	case itemGone:
		if i.number, err = binary.ReadUvarint(s.r); err == nil {
			err = s.path(&i)
		}
	case itemPayload:
		if i.number, err = binary.ReadUvarint(s.r); err == nil {
			var sum [4]byte
			_, err = io.ReadFull(s.r, sum[:])
			i.crc = binary.LittleEndian.Uint32(sum[:])
		}
	case itemEnd, itemZeros:
		i.number, err = binary.ReadUvarint(s.r)
	default:
		err = fmt.Errorf("item %q: %w", i.kind, errFormat)
	}
	return i, err
}

func (s *skeletonReader) path(i *item) error {
	text, err := s.text()
	i.path = string(text)
	return err
}

func (s *skeletonReader) text() ([]byte, error) {
	n, err := binary.ReadUvarint(s.r)
	if err != nil {
		return nil, err
	}
	if n > maxItem {
		return nil, fmt.Errorf("an item of %d bytes: %w", n, errFormat)
	}
	if uint64(cap(s.raw)) < n {
		s.raw = make([]byte, n)
	}
	_, err = io.ReadFull(s.r, s.raw[:n])
	return s.raw[:n], err
}
