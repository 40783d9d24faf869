package image

import (
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cridproject/crid/internal/errkind"
)

func TestPattern(t *testing.T) {
	i := &Image{
		ID:          ID("sha256:" + strings.Repeat("ab", 32)),
		RepoTags:    []string{"docker.io/library/busybox:1", "registry.k8s.io/a/b:v2"},
		RepoDigests: []string{"registry.k8s.io/a/b@sha256:" + strings.Repeat("cd", 32)},
	}
	for _, c := range []struct {
		pattern string
		want    bool
	}{
		{"busybox:1", true},
		{"busybox", true}, // any tag
		{"docker.io/library/busybox", true},
		{"busybox:2", false},
		{"busybox:latest", false},
		{"busy", false},
		{"busybo*", false}, // stars are for full names
		{"docker.io/library/busybo*", true},
		{"*busybox:1", true},
		{"registry.k8s.io/a/b", true},
		{"registry.k8s.io/a", false},
		{"registry.k8s.io/*", true},
		{"registry.k8s.io/*:v2", true},
		{"registry.k8s.io/*:v3", false},
		{"*k8s*", true},
		{"*k8s*a/b*v2", true},
		{"*k8s*a/b*v2*v2", false},
		{"*", true},
		{"**", true},
		{"quay.io/*", false},
		{"registry.k8s.io/a/b@sha256:" + strings.Repeat("cd", 32), true},
		{"other.io/a/b@sha256:" + strings.Repeat("cd", 32), false},
		{"sha256:" + strings.Repeat("ab", 32), true},
		{"sha256:" + strings.Repeat("cd", 32), false},
	} {
		p, err := ParsePattern(c.pattern)
		if err != nil || p.Matches(i) != c.want {
			t.Errorf("ParsePattern(%q) = %v; Matches = %v, want %v", c.pattern, err, p.Matches(i), c.want)
		}
	}
	for _, bad := range []string{"", " ", "UPPER", "a b*", "registry.k8s.io/", "a*[0-9]", "sha256:12", strings.Repeat("ab", 32), "a,b*", "*\n"} {
		if p, err := ParsePattern(bad); !errkind.Is(err, errkind.Invalid) {
			t.Errorf("ParsePattern(%q) = %+v, %v, want Invalid", bad, p, err)
		}
	}
	if _, err := New(Options{Root: t.TempDir(), Pinned: []string{"a", "UPPER"}}); !errkind.Is(err, errkind.Invalid) {
		t.Errorf("New with a bad pattern = %v, want Invalid", err)
	}
}

// TestPinned: what is pinned follows the image's names, and the next start's patterns.
func TestPinned(t *testing.T) {
	srv := newServer(t)
	img := imageOf(t, layerOf(t, file("f", "x")))
	free, kept := srv.push(t, "app:free", img), srv.push(t, "app:kept", img)
	root := filepath.Join(fastDir(t), "store")
	open := func(patterns ...string) *Store {
		s, err := New(Options{Root: root, RegistryDirs: []string{}, Pinned: patterns})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	pinned := func(s *Store) bool { return s.List()[0].Pinned }
	s := open("*/app:kept")
	pull(t, s, free)
	if pinned(s) {
		t.Error("the image is pinned without the name")
	}
	pull(t, s, kept)
	if !pinned(s) {
		t.Error("the image is not pinned by its name")
	}
	srv.push(t, "app:kept", imageOf(t))
	pull(t, s, kept)
	if i, err := s.Image(free); err != nil || i.Pinned {
		t.Errorf("the image that has lost the name: %v, pinned %v", err, i.Pinned)
	}
	if err := s.Remove(t.Context(), kept); err != nil { // by hand
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open("*:free")
	defer s.Close()
	if !pinned(s) {
		t.Error("after another start the image is not pinned")
	}
}

// TestImageUser: what kubelet judges runAsNonRoot by. One of the two is always there.
func TestImageUser(t *testing.T) {
	number := func(n int64) *int64 { return &n }
	for _, c := range []struct {
		user string
		uid  *int64
		name string
	}{
		{"", number(0), ""},
		{"root", number(0), ""},
		{"0", number(0), ""},
		{":5", number(0), ""},
		{"root:www", number(0), ""},
		{"1000", number(1000), ""},
		{"1000:1000", number(1000), ""},
		{"1000:www", number(1000), ""},
		{"4294967295", number(4294967295), ""},
		{"4294967296", nil, "4294967296"},
		{"-1", nil, "-1"},
		{"www", nil, "www"},
		{"www:33", nil, "www"},
		{"1000x", nil, "1000x"},
	} {
		uid, name := imageUser(c.user)
		if name != c.name || (uid == nil) != (c.uid == nil) || uid != nil && *uid != *c.uid {
			t.Errorf("imageUser(%q) = %v, %q, want %v, %q", c.user, uid, name, c.uid, c.name)
		}
	}
}

// TestRepoDigest: of several repositories that an image was pulled from, a container
// shows the one that its pod names.
func TestRepoDigest(t *testing.T) {
	d := "@sha256:" + strings.Repeat("ab", 32)
	i := &Image{RepoDigests: []string{"docker.io/library/app" + d, "quay.io/app" + d}}
	for _, c := range []struct {
		refs []string
		want string
	}{
		{nil, "docker.io/library/app" + d},
		{[]string{"quay.io/app:1"}, "quay.io/app" + d},
		{[]string{"quay.io/app:1" + d}, "quay.io/app" + d},
		{[]string{"", "quay.io/app"}, "quay.io/app" + d},
		{[]string{"app", "quay.io/app"}, "docker.io/library/app" + d},
		{[]string{"quay.io/ap", "UPPER", "sha256:12"}, "docker.io/library/app" + d},
	} {
		if got := i.RepoDigest(c.refs...); got != c.want {
			t.Errorf("RepoDigest(%q) = %s, want %s", c.refs, got, c.want)
		}
	}
	if got := (&Image{}).RepoDigest("app"); got != "" {
		t.Errorf("RepoDigest without any = %q", got)
	}
}

// TestManyNames: an image may have any number of names; each finds it, and all go
// with it.
func TestManyNames(t *testing.T) {
	srv := newServer(t)
	img := imageOf(t, layerOf(t, file("f", "x")))
	s := newStore(t, inMemory(t))
	var refs []string
	for _, repo := range strings.Fields("a b c d") {
		for _, tag := range strings.Fields("1 2 3 4 5") {
			ref := srv.push(t, repo+":"+tag, img)
			pull(t, s, ref)
			refs = append(refs, ref)
		}
	}
	d, _ := img.Digest()
	for _, ref := range append(refs, srv.host+"/a@"+d.String(), srv.host+"/a:77@"+d.String()) {
		if i, err := s.Image(ref); err != nil || i.ID != idOf(t, img) {
			t.Errorf("Image(%s) = %v, %v", ref, i.ID, err)
		}
	}
	i := s.List()[0]
	if len(s.List()) != 1 || len(i.RepoTags) != len(refs) || len(i.RepoDigests) != 4 {
		t.Errorf("%d images, the first with %d tags and %d digests, want 1, %d and 4", len(s.List()), len(i.RepoTags), len(i.RepoDigests), len(refs))
	}
	for _, unwanted := range []string{refs[3], srv.host + "/b@" + d.String(), string(i.ID), i.ID.Short()} {
		pull(t, s, refs[3])
		pull(t, s, refs[7])
		if err := s.Remove(t.Context(), unwanted); err != nil {
			t.Fatal(err)
		}
		if left := s.List(); len(left) != 0 {
			t.Errorf("after Remove(%s) List = %v, want none", unwanted, left)
		}
	}
	wantEmpty(t, s)
}

// TestTagsOfOtherImages: one row each, with its own tag.
func TestTagsOfOtherImages(t *testing.T) {
	srv := newServer(t)
	s := newStore(t, inMemory(t))
	want := make(map[ID]string)
	for _, tag := range []string{"1", "2", "3"} {
		img := configured(t, imageOf(t), func(c *v1.Config) { c.User = tag })
		ref := srv.push(t, "app:"+tag, img)
		want[pull(t, s, ref)] = ref
	}
	for _, i := range s.List() {
		if len(i.RepoTags) != 1 || i.RepoTags[0] != want[i.ID] {
			t.Errorf("image %s has tags %v, want %s", i.ID.Short(), i.RepoTags, want[i.ID])
		}
	}
	if len(want) != 3 || len(s.List()) != 3 {
		t.Errorf("%d IDs and %d rows, want 3", len(want), len(s.List()))
	}
}
