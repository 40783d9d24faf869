package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/internal/testutil"
)

// verifier is crid-verify beside the crid that is tested, or one made for the test:
// without the race detector, since its libraries take minutes to build with it.
func verifier(t *testing.T) string {
	t.Helper()
	path := filepath.Join(filepath.Dir(programs(t).Crid), "crid-verify")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	path = filepath.Join(t.TempDir(), "crid-verify")
	if out, err := exec.Command("go", "build", "-C", "../..", "-o", path, "./cmd/crid-verify").CombinedOutput(); err != nil {
		t.Fatalf("build crid-verify: %v\n%s", err, out)
	}
	return path
}

// TestSignaturePolicy pulls through a mirror: what counts is the name as the pod
// has it. kubelet looks for the beginning of the text.
func TestSignaturePolicy(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	policy := filepath.Join(t.TempDir(), "policy.json")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(policy, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"default": [{"type": "reject"}]}`)
	n := NewNode(t, NodeOptions{NoNetwork: true, Config: map[string]string{
		"images.signature_policy": quote(policy), "images.signature_verifier": quote(verifier(t)),
	}})
	digest := n.pushMerged()
	direct := n.Registry.Addr + "/e2e/merged:1"
	refused := func(ref, want string) {
		t.Helper()
		_, err := n.Images.PullImage(n.Ctx(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
		wantCode(t, "PullImage of "+ref, err, codes.Unknown, want)
		if m := status.Convert(err).Message(); !strings.HasPrefix(m, "SignatureValidationFailed: image "+ref+": signature policy "+policy) {
			t.Errorf("PullImage of %s = %q, want it to begin with SignatureValidationFailed", ref, m)
		}
	}
	refused(direct, "default[0] rejects it")
	// Read for the next pull.
	signed := fmt.Sprintf(`[{"type": "sigstoreSigned", "keyData": %q, "signedIdentity": {"type": "matchRepository"}}]`,
		testutil.KeyData(t, key.Public()))
	write(fmt.Sprintf(`{"default": [{"type": "reject"}], "transports": {"docker": {
		"registry.k8s.io/e2e": %s, %q: %s, "e2e.test": [{"type": "insecureAcceptAnything"}]}}}`, signed, n.Registry.Addr, signed))
	refused(direct, "the registry has no signature of it")
	n.noImageFiles()
	id := n.Pull("e2e.test/e2e/merged:1")
	refused(direct, "the registry has no signature of it") // though its layers are there

	payload := fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":"registry.k8s.io/e2e/merged"},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"}}`, digest)
	sum := sha256.Sum256(payload)
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.Append(mutate.MediaType(empty.Image, types.OCIManifestSchema1), mutate.Addendum{
		Layer:       static.NewLayer(payload, "application/vnd.dev.cosign.simplesigning.v1+json"),
		Annotations: map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(sig)},
	})
	if err != nil {
		t.Fatal(err)
	}
	n.Registry.Push("e2e/merged:sha256-"+digest.Hex+".sig", img)
	if got := n.Pull("registry.k8s.io/e2e/merged:1"); got != id {
		t.Errorf("the signed image has id %s, want %s", got, id)
	}
	refused(direct, "which is not the name that matchRepository asks for")
}
