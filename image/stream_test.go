package image

import (
	"bytes"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
)

// TestLayerCompressions: a layer is the same however its archive comes. Pieces and
// frames to be skipped are what eStargz, zstd:chunked and parallel compressors make.
func TestLayerCompressions(t *testing.T) {
	raw := tarOf(t, folder("a/"), file("a/f", "x"), file("g", string(make([]byte, 10_000))))
	half := len(raw) / 2
	skipped := []byte{0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'a', 'b', 'c'}
	for name, packed := range map[string][]byte{
		"plain":                      raw,
		"gzip":                       gzipped(t, raw),
		"gzip of several members":    slices.Concat(gzipped(t, raw[:half]), gzipped(t, nil), gzipped(t, raw[half:])),
		"zstd":                       zstdCompressed(t, raw),
		"zstd of several frames":     slices.Concat(zstdCompressed(t, raw[:half]), zstdCompressed(t, raw[half:])),
		"zstd with skipped at first": slices.Concat(skipped, zstdCompressed(t, raw)),
		"zstd with skipped between":  slices.Concat(zstdCompressed(t, raw[:half]), skipped, zstdCompressed(t, raw[half:])),
		"zstd with skipped at last":  slices.Concat(zstdCompressed(t, raw), skipped),
	} {
		t.Run(name, func(t *testing.T) {
			_, m, err := storedLayer(t, packed)
			if err != nil || m.DiffID != digest.FromBytes(raw) || m.Archive != int64(len(raw)) {
				t.Errorf("unpacked it is %s, %d bytes, %v; want %s, %d", m.DiffID, m.Archive, err, digest.FromBytes(raw), len(raw))
			}
		})
	}
	// What is cut, or followed by rubbish, is not taken for whole.
	for name, packed := range map[string][]byte{
		"gzip, cut":          gzipped(t, raw)[:50],
		"gzip, then rubbish": append(gzipped(t, raw), bytes.Repeat([]byte("rubbish"), 10)...),
		"zstd, cut":          zstdCompressed(t, raw)[:30],
		"zstd, then rubbish": append(zstdCompressed(t, raw), bytes.Repeat([]byte("rubbish"), 10)...),
	} {
		t.Run(name, func(t *testing.T) {
			if _, m, err := storedLayer(t, packed); err == nil {
				t.Errorf("unpacked it is %+v, want an error", m)
			}
		})
	}
}
