package sys

import (
	"strings"
	"testing"
)

func TestParseMounts(t *testing.T) {
	tests := []struct {
		name, line string
		want       MountInfo
	}{
		{
			"private",
			"27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard",
			MountInfo{ID: 27, Parent: 1, Major: 254, Root: "/", Point: "/", Options: "rw,relatime", FSType: "ext4", Source: "/dev/vda", SuperOptions: "rw,discard"},
		},
		{
			"all tags, and one of a later kernel",
			"36 35 98:12 /mnt1 /mnt2 rw shared:7 master:1 propagate_from:2 unbindable later:x - ext3 /dev/root rw",
			MountInfo{ID: 36, Parent: 35, Major: 98, Minor: 12, Root: "/mnt1", Point: "/mnt2", Options: "rw", FSType: "ext3", Source: "/dev/root", SuperOptions: "rw", Shared: 7, Master: 1, PropagateFrom: 2, Unbindable: true},
		},
		{
			"escapes: space, tab, newline, backslash, hash; nothing else",
			`40 27 0:40 /a\040b /c\011d\012e\134f\043g\08 rw - tmpfs my\040tmp rw`,
			MountInfo{ID: 40, Parent: 27, Minor: 40, Root: "/a b", Point: "/c\td\ne\\f#g\\08", Options: "rw", FSType: "tmpfs", Source: "my tmp", SuperOptions: "rw"},
		},
		{
			"backslash at the end",
			`40 27 0:40 / /a\04 rw - tmpfs t\ rw`,
			MountInfo{ID: 40, Parent: 27, Minor: 40, Root: "/", Point: `/a\04`, Options: "rw", FSType: "tmpfs", Source: `t\`, SuperOptions: "rw"},
		},
		{
			"pinned namespace",
			"91 90 0:4 net:[4026532281] /run/netns/crid-1 rw shared:5 - nsfs nsfs rw",
			MountInfo{ID: 91, Parent: 90, Minor: 4, Root: "net:[4026532281]", Point: "/run/netns/crid-1", Options: "rw", FSType: "nsfs", Source: "nsfs", SuperOptions: "rw", Shared: 5},
		},
		{
			"empty source, as of old tmpfs mounts",
			"40 27 0:40 / /x rw - tmpfs  rw",
			MountInfo{ID: 40, Parent: 27, Minor: 40, Root: "/", Point: "/x", Options: "rw", FSType: "tmpfs", SuperOptions: "rw"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseMounts(strings.NewReader(tt.line + "\n"))
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != 1 || got[0] != tt.want {
				t.Errorf("parseMounts(%q)\n got %+v\nwant %+v", tt.line, got, tt.want)
			}
		})
	}
}

func TestParseMountsRefuses(t *testing.T) {
	for _, line := range []string{
		"27", "", "27 1 254:0 / / rw", "27 1 254:0 / / rw shared:1 ext4 /dev/vda rw",
		"x 1 254:0 / / rw - ext4 /dev/vda rw", "27 x 254:0 / / rw - ext4 /dev/vda rw",
		"27 1 254 / / rw - ext4 /dev/vda rw", "27 1 254:x / / rw - ext4 /dev/vda rw",
		"27 1 254:0 / / rw shared:x - ext4 /dev/vda rw", "27 1 254:0 / / rw - ext4",
	} {
		if got, err := parseMounts(strings.NewReader(line + "\n")); err == nil {
			t.Errorf("parseMounts(%q) = %+v, want an error", line, got)
		}
	}
}

func FuzzParseMounts(f *testing.F) {
	f.Add("36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw")
	f.Fuzz(func(t *testing.T, s string) {
		ms, err := parseMounts(strings.NewReader(s))
		if err == nil && len(ms) > strings.Count(s, "\n")+1 {
			t.Errorf("%d mounts from %q", len(ms), s)
		}
	})
}
