package image

import (
	"testing"

	ggcrname "github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	ggcr "github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"

	"github.com/cridproject/crid/internal/errkind"
)

// TestArtifactsOfAnImage finds what belongs to an image in its repository, by tag,
// by digest and as a referrer, also at registries without the referrers API.
func TestArtifactsOfAnImage(t *testing.T) {
	t.Run("referrers API", func(t *testing.T) { testArtifacts(t, newServer(t, registry.WithReferrersSupport(true))) })
	t.Run("referrers tag", func(t *testing.T) { testArtifacts(t, newServer(t)) })
}

func testArtifacts(t *testing.T, srv *server) {
	img := imageOf(t, layerOf(t, file("f", "x")))
	srv.push(t, "app:v1", img)
	subject, err := ggcr.Head(mustParse(t, srv.host+"/app:v1"))
	if err != nil {
		t.Fatal(err)
	}
	signature := mutate.Subject(mutate.ConfigMediaType(imageOf(t, layerOf(t, file("s", "x"))), "application/vnd.example.signature"), *subject).(v1.Image)
	srv.push(t, "app:signature", signature)
	want, err := signature.Digest()
	if err != nil {
		t.Fatal(err)
	}
	s := newStore(t)
	ref, err := ParseReference(srv.host + "/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	src, err := connect(t.Context(), ref, credentials{}, nil, s.progressTimeout, s.retryPause)
	if err != nil {
		t.Fatal(err)
	}
	defer src.close()
	for _, name := range []string{"signature", want.String()} {
		desc, data, err := s.fetchManifest(t.Context(), src, name)
		if err != nil || desc.Digest.String() != want.String() || digest.FromBytes(data) != desc.Digest {
			t.Errorf("fetchManifest(%s) = %v, %d bytes, %v, want %s", name, desc, len(data), err, want)
		}
	}
	_, _, err = s.fetchManifest(t.Context(), src, "absent")
	wantError(t, err, errkind.NotFound, "(absent): not found")

	about := digest.Digest(subject.Digest.String())
	for artifactType, n := range map[string]int{"": 1, "application/vnd.example.signature": 1, "application/vnd.example.other": 0} {
		found, err := src.referrers(t.Context(), about, artifactType)
		if err != nil || len(found) != n || n > 0 && found[0].Digest.String() != want.String() {
			t.Errorf("referrers(%q) = %v, %v, want %d", artifactType, found, err, n)
		}
	}
	if found, err := src.referrers(t.Context(), digest.FromString("absent"), ""); err != nil || len(found) != 0 {
		t.Errorf("referrers of nothing = %v, %v, want none", found, err)
	}
}

func mustParse(t *testing.T, name string) ggcrname.Reference {
	t.Helper()
	ref, err := ggcrname.ParseReference(name)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}
