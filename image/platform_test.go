package image

import "testing"

func TestAmd64Level(t *testing.T) {
	const v2 = "fpu sse2 cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3"
	const v3 = v2 + " abm avx avx2 bmi1 bmi2 f16c fma movbe xsave"
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"flags\t\t: fpu sse2\n", ""},
		{"processor\t: 0\nflags\t\t: " + v2 + "\nbugs\t: avx avx2\n", "v2"},
		{"flags\t\t: " + v3 + "\n", "v3"},
		{"flags\t\t: fpu sse2 abm avx avx2 bmi1 bmi2 f16c fma movbe xsave\n", ""}, // a level has all below it
		{"flags\t\t: " + v3 + " avx512bw avx512cd avx512dq avx512f avx512vl\n", "v4"},
		{"flags\t\t: " + v2 + "\nprocessor\t: 1\nflags\t\t: " + v3 + "\n", "v2"},
	} {
		if got := amd64Level(c.in); got != c.want {
			t.Errorf("amd64Level(%q) = %q, want %q", c.in, got, c.want)
		}
	}
}
