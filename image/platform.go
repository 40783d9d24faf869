package image

import (
	"os"
	"runtime"
	"strings"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// hostPlatform is that of this machine. On amd64 it has the level of the x86-64
// psABI that the processor has, so that of an index with images for several levels
// the best is taken; the library tells only the variants of ARM.
func hostPlatform() ocispec.Platform {
	p := platforms.DefaultSpec()
	if runtime.GOARCH == "amd64" {
		info, _ := os.ReadFile("/proc/cpuinfo") // without it the first level is taken
		p.Variant = amd64Level(string(info))
	}
	return p
}

// amd64Level is the variant that /proc/cpuinfo tells, "" for the first level. The
// flags are those of the x86-64 psABI, as the kernel names them.
func amd64Level(cpuinfo string) string {
	has := make(map[string]bool)
	for line := range strings.Lines(cpuinfo) {
		if name, flags, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "flags" {
			for _, flag := range strings.Fields(flags) {
				has[flag] = true
			}
			break // every processor of a machine has the same
		}
	}
	level := ""
	for _, l := range []struct{ variant, flags string }{
		{"v2", "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3"},
		{"v3", "abm avx avx2 bmi1 bmi2 f16c fma movbe xsave"},
		{"v4", "avx512bw avx512cd avx512dq avx512f avx512vl"},
	} {
		for _, flag := range strings.Fields(l.flags) {
			if !has[flag] {
				return level
			}
		}
		level = l.variant
	}
	return level
}
