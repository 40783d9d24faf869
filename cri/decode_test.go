package cri

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/internal/testutil"
)

// newDecoder is that of a node with all that decoding depends on.
func newDecoder() *decoder { return &decoder{node: Node{RecursiveReadOnly: true}} }

// readRequest reads a request from testdata: protojson, except that the values of
// environment variables are written as they are rather than in base64.
func readRequest(t testing.TB, path string, into proto.Message) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var request map[string]any
	if err := json.Unmarshal(data, &request); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	config, _ := request["config"].(map[string]any)
	envs, _ := config["envs"].([]any)
	for _, e := range envs {
		env := e.(map[string]any)
		if value, ok := env["value"].(string); ok {
			env["value"] = base64.StdEncoding.EncodeToString([]byte(value))
		}
	}
	if data, err = json.Marshal(request); err != nil {
		t.Fatal(err)
	}
	if err := protojson.Unmarshal(data, into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// requests are the recorded requests of one kind.
func requests(t testing.TB, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join("testdata", pattern))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no requests in testdata for %s: %v", pattern, err)
	}
	return paths
}

// TestDecode decodes the requests of testdata, which are as kubelet sends them
// (its volumes' paths shortened) or the least that is possible.
func TestDecode(t *testing.T) {
	for _, path := range requests(t, "run-*.json") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			var r v1.RunPodSandboxRequest
			readRequest(t, path, &r)
			d := newDecoder()
			d.systemd = strings.HasSuffix(r.Config.GetLinux().GetCgroupParent(), ".slice")
			got, err := d.sandbox(&r)
			golden(t, path, got, err)
		})
	}
	for _, path := range requests(t, "create-*.json") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			var r v1.CreateContainerRequest
			readRequest(t, path, &r)
			got, err := newDecoder().container(&r)
			golden(t, path, got, err)
		})
	}
}

func golden(t *testing.T, path string, got any, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("decoding %s = %v, want no error", path, err)
	}
	text, err := json.MarshalIndent(got, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	testutil.Golden(t, strings.TrimSuffix(path, ".json")+".config", append(text, '\n'))
}

// A retried request must give an equal wanted sandbox: the manager compares.
func TestDecodeTwice(t *testing.T) {
	var r v1.RunPodSandboxRequest
	readRequest(t, "testdata/run-kubelet.json", &r)
	first, err1 := (&decoder{systemd: true}).sandbox(&r)
	second, err2 := (&decoder{systemd: true}).sandbox(proto.Clone(&r).(*v1.RunPodSandboxRequest))
	if err1 != nil || err2 != nil || !equalJSON(t, first, second) {
		t.Errorf("decoding twice = %v (%v) and %v (%v), want the same", first, err1, second, err2)
	}
}

func equalJSON(t testing.TB, a, b any) bool {
	t.Helper()
	x, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(x) == string(y)
}

func TestKernelAtLeast(t *testing.T) {
	for release, want := range map[string]bool{
		"5.12.0": true, "5.11.99": false, "6.1.0-13-amd64": true, "4.19": false, "10.0-rc1": true, "": false, "new": false,
	} {
		if got := kernelAtLeast(release, 5, 12); got != want {
			t.Errorf("kernelAtLeast(%q, 5, 12) = %v, want %v", release, got, want)
		}
	}
}
