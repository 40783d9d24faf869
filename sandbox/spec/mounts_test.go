package spec

import (
	"slices"
	"strings"
	"testing"

	"github.com/cridproject/crid/sandbox/config"
)

func TestVolumes(t *testing.T) {
	img := &config.Image{Ref: "tools"}
	for _, tt := range []struct {
		name   string
		mounts []config.Mount
		want   []string // destination source options
	}{
		{
			"the later of two at one place",
			[]config.Mount{{ContainerPath: "/a", HostPath: "/1"}, {ContainerPath: "/b", HostPath: "/2"}, {ContainerPath: "/a/", HostPath: "/3"}},
			[]string{"/b /2 rbind,rprivate,rw", "/a /3 rbind,rprivate,rw"},
		},
		{
			"parents first",
			[]config.Mount{{ContainerPath: "/a/b/c", HostPath: "/1"}, {ContainerPath: "/a", HostPath: "/2"}, {ContainerPath: "/a/b", HostPath: "/3"}},
			[]string{"/a /2 rbind,rprivate,rw", "/a/b /3 rbind,rprivate,rw", "/a/b/c /1 rbind,rprivate,rw"},
		},
		{
			"image",
			[]config.Mount{{ContainerPath: "/a", HostPath: "/1"}, {ContainerPath: "/i", Image: img, Readonly: true, Options: []string{"noexec"}}},
			[]string{"/a /1 rbind,rprivate,rw", "/i image:1 rbind,rprivate,ro,nosuid,nodev,noexec"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := readInput(t, "testdata/minimal.in.json")
			in.Container.Mounts = tt.mounts
			r, err := Build(in)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, m := range r.Spec.Mounts {
				if m.Type == "bind" && strings.ContainsAny(m.Source, "123") {
					got = append(got, m.Destination+" "+m.Source+" "+strings.Join(m.Options, ","))
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("mounts = %q, want %q", got, tt.want)
			}
		})
	}
	in := readInput(t, "testdata/minimal.in.json")
	in.Container.Mounts = []config.Mount{{ContainerPath: "/a", HostPath: "/1", Options: []string{"nodev", "ro"}}}
	if _, err := Build(in); err == nil || err.Error() != `config.mounts[0].mount_options[1]: "ro" is said by the field readonly` {
		t.Errorf("Build with the option ro = %v", err)
	}
	in.Container.Mounts = []config.Mount{{ContainerPath: "/i", Image: img}}
	if _, err := Build(in); err == nil || !strings.HasPrefix(err.Error(), "config.mounts[0].readonly: ") {
		t.Errorf("Build with a writable image = %v", err)
	}
}
