package cri

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/reflect/protoreflect"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2/textlogger"

	"github.com/cridproject/crid/image"
	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
	"github.com/cridproject/crid/sandbox"
	"github.com/cridproject/crid/sandbox/config"
)

// fakeNode is sandboxes and images in memory. It does nothing but remember what
// it was asked for.
type fakeNode struct {
	err        error // of everything that can fail, when set
	panics     bool  // Run does
	sandboxes  []sandbox.SandboxStatus
	containers []sandbox.ContainerStatus
	images     []image.Image
	exec       sandbox.ExecResult

	got     []any    // arguments of the last call that changes something
	yielded chan int // if not nil, how many items of sandbox stats were taken
}

func (f *fakeNode) call(args ...any) error {
	f.got = args
	return f.err
}

func (f *fakeNode) Run(_ context.Context, w config.Sandbox) (config.SandboxID, error) {
	if f.panics {
		panic("the fake was told to")
	}
	return "sandbox", f.call(w)
}
func (f *fakeNode) StopSandbox(_ context.Context, id string) error   { return f.call(id) }
func (f *fakeNode) RemoveSandbox(_ context.Context, id string) error { return f.call(id) }
func (f *fakeNode) Sandboxes() []sandbox.SandboxStatus               { return f.sandboxes }
func (f *fakeNode) Sandbox(id string) (sandbox.SandboxStatus, error) {
	for _, s := range f.sandboxes {
		if strings.HasPrefix(string(s.ID), id) {
			return s, nil
		}
	}
	return sandbox.SandboxStatus{}, errkind.Errorf(errkind.NotFound, "no sandbox %q", id)
}

func (f *fakeNode) Create(_ context.Context, id string, c config.Container) (config.ContainerID, error) {
	return "container", f.call(id, c)
}
func (f *fakeNode) Start(_ context.Context, id string) error { return f.call(id) }
func (f *fakeNode) UpdateContainer(_ context.Context, id string, r config.Resources) error {
	return f.call(id, r)
}

func (f *fakeNode) UpdateSandbox(_ context.Context, id string, overhead, resources *config.Resources) error {
	return f.call(id, overhead, resources)
}

func (f *fakeNode) Stop(_ context.Context, id string, grace time.Duration) error {
	return f.call(id, grace)
}
func (f *fakeNode) RemoveContainer(_ context.Context, id string) error { return f.call(id) }
func (f *fakeNode) Containers() []sandbox.ContainerStatus              { return f.containers }
func (f *fakeNode) Container(id string) (sandbox.ContainerStatus, error) {
	for _, c := range f.containers {
		if strings.HasPrefix(string(c.ID), id) {
			return c, nil
		}
	}
	return sandbox.ContainerStatus{}, errkind.Errorf(errkind.NotFound, "no container %q", id)
}

func (f *fakeNode) ExecSync(_ context.Context, id string, args []string, timeout time.Duration) (sandbox.ExecResult, error) {
	return f.exec, f.call(id, args, timeout)
}

func (f *fakeNode) ContainerSpec(id string) (json.RawMessage, error) {
	return json.RawMessage(`{"hostname":"of ` + id + `"}`), nil
}

func (f *fakeNode) SandboxSpec(id string) (json.RawMessage, error) {
	return nil, errkind.Errorf(errkind.NotFound, "no spec of %s", id)
}
func (f *fakeNode) ReopenLog(_ context.Context, id string) error { return f.call(id) }

func (f *fakeNode) Pull(_ context.Context, r image.PullRequest) (image.ID, error) {
	return "sha256:pulled", f.call(r)
}
func (f *fakeNode) List() []image.Image { return f.images }
func (f *fakeNode) Image(ref string) (image.Image, error) {
	for _, i := range f.images {
		if string(i.ID) == ref || len(i.RepoTags) > 0 && i.RepoTags[0] == ref {
			return i, nil
		}
	}
	return image.Image{}, errkind.Errorf(errkind.NotFound, "no image %q", ref)
}
func (f *fakeNode) RemoveImage(_ context.Context, ref string) error { return f.call(ref) }
func (f *fakeNode) FsInfo(context.Context) (image.FsInfo, error) {
	u := image.FsUsage{Mountpoint: "/var/lib/crid", UsedBytes: 12, Inodes: 3, At: time.Unix(0, 5)}
	return image.FsInfo{Images: u, Containers: u}, f.err
}

// Remove is there twice, once for containers and once for images.
type (
	fakeSandboxes struct{ *fakeNode }
	fakeImages    struct{ *fakeNode }
)

func (f fakeSandboxes) Remove(ctx context.Context, id string) error {
	return f.RemoveContainer(ctx, id)
}
func (f fakeImages) Remove(ctx context.Context, ref string) error { return f.RemoveImage(ctx, ref) }

// testServer is a server and its clients, over a connection in memory.
type testServer struct {
	conn *grpc.ClientConn
	v1.RuntimeServiceClient
	images v1.ImageServiceClient
	log    *logText
}

// logText is what was logged.
type logText struct {
	mu   sync.Mutex
	text bytes.Buffer // +checklocks:mu
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func newTestServer(t *testing.T, node *fakeNode, change ...func(*Options)) *testServer {
	t.Helper()
	testutil.LeakCheck(t)
	o := Options{
		Sandboxes:     fakeSandboxes{node},
		Images:        fakeImages{node},
		Streams:       node,
		NetworkStatus: func() error { return nil },
		CgroupDriver:  "cgroupfs",
		Version:       "1.2.3",
		Node:          &Node{RecursiveReadOnly: true},
	}
	for _, c := range change {
		c(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	log := &logText{}
	logger := textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(log), textlogger.Verbosity(6)))
	g := grpc.NewServer(grpc.UnaryInterceptor(UnaryInterceptor(logger)), grpc.StreamInterceptor(StreamInterceptor(logger)))
	s.Register(g)
	l := bufconn.Listen(1 << 20)
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	conn, err := grpc.NewClient("passthrough:bufconn",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		g.Stop()
		if err := <-served; err != nil {
			t.Errorf("Serve = %v, want nil", err)
		}
	})
	return &testServer{conn, v1.NewRuntimeServiceClient(conn), v1.NewImageServiceClient(conn), log}
}

func TestNewRefuses(t *testing.T) {
	good := Options{
		Sandboxes: fakeSandboxes{}, Images: fakeImages{}, Streams: &fakeNode{}, NetworkStatus: func() error { return nil },
		CgroupDriver: "systemd", Version: "v",
	}
	if _, err := New(good); err != nil {
		t.Fatalf("New = %v, want no error", err)
	}
	for name, spoil := range map[string]func(*Options){
		"Sandboxes":     func(o *Options) { o.Sandboxes = nil },
		"Images":        func(o *Options) { o.Images = nil },
		"Streams":       func(o *Options) { o.Streams = nil },
		"NetworkStatus": func(o *Options) { o.NetworkStatus = nil },
		"Version":       func(o *Options) { o.Version = "" },
		"CgroupDriver":  func(o *Options) { o.CgroupDriver = "auto" },
	} {
		o := good
		spoil(&o)
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("New with a bad %s = %v, want an error that names it", name, err)
		}
	}
}

func TestConnect(t *testing.T) {
	s := newTestServer(t, &fakeNode{}, func(o *Options) { o.CgroupDriver = "systemd" })
	v, err := s.Version(t.Context(), &v1.VersionRequest{})
	if err != nil || v.RuntimeName != "crid" || v.RuntimeApiVersion != "v1" || v.RuntimeVersion != "1.2.3" || v.Version == "" {
		t.Errorf("Version = %v, %v", v, err)
	}
	fs, err := s.images.ImageFsInfo(t.Context(), &v1.ImageFsInfoRequest{})
	if err != nil || len(fs.ImageFilesystems) != 1 || len(fs.ContainerFilesystems) != 1 {
		t.Fatalf("ImageFsInfo = %v, %v, want one file system in each list", fs, err)
	}
	for _, u := range append(fs.ImageFilesystems, fs.ContainerFilesystems...) {
		if u.Timestamp != 5 || u.FsId.GetMountpoint() != "/var/lib/crid" || u.UsedBytes.GetValue() != 12 || u.InodesUsed.GetValue() != 3 {
			t.Errorf("ImageFsInfo has %v", u)
		}
	}
	c, err := s.RuntimeConfig(t.Context(), &v1.RuntimeConfigRequest{})
	if err != nil || c.Linux == nil || c.Linux.CgroupDriver != v1.CgroupDriver_SYSTEMD {
		t.Errorf("RuntimeConfig = %v, %v, want systemd", c, err)
	}
	if _, err := s.UpdateRuntimeConfig(t.Context(), &v1.UpdateRuntimeConfigRequest{
		RuntimeConfig: &v1.RuntimeConfig{NetworkConfig: &v1.NetworkConfig{PodCidr: "10.1.0.0/16,fd00::/64"}},
	}); err != nil {
		t.Errorf("UpdateRuntimeConfig = %v, want no error", err)
	}
}

func TestStatus(t *testing.T) {
	var network error
	s := newTestServer(t, &fakeNode{}, func(o *Options) {
		o.NetworkStatus = func() error { return network }
		o.Config = map[string]string{"stateDir": "/run/crid"}
		o.MonitorDump = func(context.Context) (any, error) { return nil, errors.New("no monitor") }
	})
	condition := func(kind string, verbose bool) (*v1.RuntimeCondition, *v1.StatusResponse) {
		t.Helper()
		resp, err := s.Status(t.Context(), &v1.StatusRequest{Verbose: verbose})
		if err != nil {
			t.Fatalf("Status = %v, want no error", err)
		}
		for _, c := range resp.Status.Conditions {
			if c.Type == kind {
				return c, resp
			}
		}
		t.Fatalf("Status has no condition %s: %v", kind, resp)
		return nil, nil
	}
	if c, _ := condition("RuntimeReady", false); !c.Status {
		t.Errorf("Status = %v, want ready", c)
	}
	c, resp := condition("NetworkReady", false)
	if !c.Status || len(resp.Info) != 0 {
		t.Errorf("Status = %v, want ready and no info", resp)
	}
	if h := resp.RuntimeHandlers; len(h) != 1 || h[0].Name != "" || !h[0].Features.RecursiveReadOnlyMounts || h[0].Features.UserNamespaces {
		t.Errorf("Status has handlers %v", h)
	}
	if f := resp.Features; !f.SupplementalGroupsPolicy || !f.MountOptions {
		t.Errorf("Status has features %v", f)
	}
	network = errors.New("no network configuration in /etc/cni/net.d")
	c, resp = condition("NetworkReady", true)
	if c.Status || c.Reason != "NetworkPluginNotReady" || c.Message != network.Error() {
		t.Errorf("Status without a network = %v", c)
	}
	for key, want := range map[string]string{
		"config": `{"stateDir":"/run/crid"}`, "monitor": `{"error":"no monitor"}`, "golang": `"go`,
	} {
		if !strings.HasPrefix(resp.Info[key], want) {
			t.Errorf("Status has info[%q] = %s, want %s", key, resp.Info[key], want)
		}
	}
}

// Every error keeps its text from the first letter, and its kind becomes a code.
func TestErrors(t *testing.T) {
	want := map[errkind.Kind]codes.Code{
		errkind.Other: codes.Internal, errkind.Invalid: codes.InvalidArgument, errkind.NotFound: codes.NotFound,
		errkind.Exists: codes.AlreadyExists, errkind.BadState: codes.FailedPrecondition,
		errkind.Unavailable: codes.Unavailable, errkind.Timeout: codes.DeadlineExceeded,
	}
	if len(code) != len(errkind.Kinds) {
		t.Errorf("the table of codes has %d rows, want %d", len(code), len(errkind.Kinds))
	}
	node := &fakeNode{}
	s := newTestServer(t, node)
	for _, kind := range errkind.Kinds {
		node.err = errkind.Errorf(kind, "Image of kind: %s", kind)
		_, err := s.images.PullImage(t.Context(), &v1.PullImageRequest{Image: &v1.ImageSpec{Image: "busybox"}})
		if status.Code(err) != want[kind] || status.Convert(err).Message() != node.err.Error() {
			t.Errorf("PullImage that fails with kind %s = %v, want %s and the text as it was", kind, err, want[kind])
		}
	}
	for err, want := range map[error]codes.Code{
		errkind.Errorf(errkind.Unavailable, "RegistryUnavailable: x"):    codes.Unknown,
		errkind.Errorf(errkind.BadState, "SignatureValidationFailed: x"): codes.Unknown,
		errkind.Errorf(errkind.NotFound, "x: RegistryUnavailable: y"):    codes.NotFound,
		context.Canceled:                                                 codes.Canceled,
		fmt.Errorf("pull: %w", context.Canceled):                         codes.Canceled,
		fmt.Errorf("run: %w", context.DeadlineExceeded):                  codes.DeadlineExceeded,
		errkind.Errorf(errkind.Unavailable, "x: %w", context.Canceled):   codes.Unavailable,
		errors.Join(errors.New("a"), errkind.Errorf(errkind.Exists, "")): codes.AlreadyExists,
	} {
		if got := codeOf(err); got != want {
			t.Errorf("codeOf(%v) = %v, want %v", err, got, want)
		}
	}
}

func TestPanicEndsOneRequest(t *testing.T) {
	node := &fakeNode{panics: true}
	s := newTestServer(t, node)
	_, err := s.RunPodSandbox(t.Context(), goodSandbox())
	if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "request=1") {
		t.Errorf("RunPodSandbox that panics = %v, want Internal and where to look", err)
	}
	if log := s.log.String(); !strings.Contains(log, "the fake was told to") || !strings.Contains(log, "server_test.go") {
		t.Errorf("the log has neither the panic nor its stack:\n%s", log)
	}
	node.panics = false
	if r, err := s.RunPodSandbox(t.Context(), goodSandbox()); err != nil || r.PodSandboxId != "sandbox" {
		t.Errorf("RunPodSandbox after a panic = %v, %v, want an ID", r, err)
	}
}

func TestLogHasNoSecrets(t *testing.T) {
	node := &fakeNode{}
	s := newTestServer(t, node)
	if _, err := s.images.PullImage(t.Context(), &v1.PullImageRequest{
		Image: &v1.ImageSpec{Image: "registry.example.com/a"},
		Auth: &v1.AuthConfig{
			Username: "alice", Password: "hush-1", Auth: "aHVzaDoy", IdentityToken: "hush-3", RegistryToken: "hush-4",
			ServerAddress: "https://registry.example.com",
		},
	}); err != nil {
		t.Fatal(err)
	}
	want := image.Auth{Username: "alice", Password: "hush-1", Auth: "aHVzaDoy", IdentityToken: "hush-3", RegistryToken: "hush-4", ServerAddress: "https://registry.example.com"}
	if got := node.got[0].(image.PullRequest); got.Ref != "registry.example.com/a" || *got.Auth != want {
		t.Errorf("PullImage passed on something else than it was given")
	}
	c := goodContainer()
	c.Config.Envs = []*v1.KeyValue{{Key: "TOKEN", Value: []byte("hush-5")}}
	if _, err := s.CreateContainer(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	log := s.log.String()
	for _, word := range []string{"alice", "registry.example.com/a", "TOKEN", `rpc="PullImage"`, "request=2", "duration="} {
		if !strings.Contains(log, word) {
			t.Errorf("the log lacks %q:\n%s", word, log)
		}
	}
	if strings.Contains(log, "hush") || strings.Contains(log, "aHVzaDoy") {
		t.Errorf("the log has a secret:\n%s", log)
	}
}

// Handlers pass on what they were given.
func TestCalls(t *testing.T) {
	node := &fakeNode{exec: sandbox.ExecResult{Stdout: []byte("out"), Stderr: []byte("err"), Code: 3}}
	s := newTestServer(t, node)
	ctx := t.Context()
	for name, test := range map[string]struct {
		call func() error
		want string
	}{
		"StopPodSandbox": {func() error {
			_, err := s.StopPodSandbox(ctx, &v1.StopPodSandboxRequest{PodSandboxId: "p"})
			return err
		}, "[p]"},
		"RemovePodSandbox": {func() error {
			_, err := s.RemovePodSandbox(ctx, &v1.RemovePodSandboxRequest{PodSandboxId: "p"})
			return err
		}, "[p]"},
		"StartContainer": {func() error {
			_, err := s.StartContainer(ctx, &v1.StartContainerRequest{ContainerId: "c"})
			return err
		}, "[c]"},
		"StopContainer": {func() error {
			_, err := s.StopContainer(ctx, &v1.StopContainerRequest{ContainerId: "c", Timeout: 30})
			return err
		}, "[c 30s]"},
		"StopContainer, in centuries": {func() error {
			_, err := s.StopContainer(ctx, &v1.StopContainerRequest{ContainerId: "c", Timeout: math.MaxInt64})
			return err
		}, fmt.Sprint([]any{"c", 9223372036 * time.Second})},
		"RemoveContainer": {func() error {
			_, err := s.RemoveContainer(ctx, &v1.RemoveContainerRequest{ContainerId: "c"})
			return err
		}, "[c]"},
		"ReopenContainerLog": {func() error {
			_, err := s.ReopenContainerLog(ctx, &v1.ReopenContainerLogRequest{ContainerId: "c"})
			return err
		}, "[c]"},
		"RemoveImage": {func() error {
			_, err := s.images.RemoveImage(ctx, &v1.RemoveImageRequest{Image: &v1.ImageSpec{Image: "i"}})
			return err
		}, "[i]"},
		"ExecSync": {func() error {
			r, err := s.ExecSync(ctx, &v1.ExecSyncRequest{ContainerId: "c", Cmd: []string{"ls", "-l"}, Timeout: 2})
			if err == nil && (string(r.Stdout) != "out" || string(r.Stderr) != "err" || r.ExitCode != 3) {
				t.Errorf("ExecSync = %v", r)
			}
			return err
		}, "[c [ls -l] 2s]"},
	} {
		if err := test.call(); err != nil || fmt.Sprint(node.got) != test.want {
			t.Errorf("%s passed on %v, %v, want %s", name, node.got, err, test.want)
		}
	}
	node.err = errkind.Errorf(errkind.NotFound, "gone")
	if _, err := s.images.RemoveImage(ctx, &v1.RemoveImageRequest{Image: &v1.ImageSpec{Image: "i"}}); err != nil {
		t.Errorf("RemoveImage of what is gone = %v, want no error", err)
	}
}

// Output that does not fit into one message is cut, the longer one first.
func TestCut(t *testing.T) {
	for _, test := range [][4]int{{3, 4, 3, 4}, {10, 0, 10, 0}, {11, 0, 10, 0}, {0, 20, 0, 10}, {20, 20, 5, 5}, {20, 2, 8, 2}, {2, 20, 2, 8}, {6, 6, 5, 5}} {
		a, b := cut(make([]byte, test[0]), make([]byte, test[1]), 10)
		if len(a) != test[2] || len(b) != test[3] {
			t.Errorf("cut(%d bytes, %d bytes, 10) = %d, %d, want %d, %d", test[0], test[1], len(a), len(b), test[2], test[3])
		}
	}
}

// Requests without the ID they are about are malformed, whatever they ask for.
func TestBadIDs(t *testing.T) {
	s := newTestServer(t, &fakeNode{})
	for _, rpc := range rpcs() {
		if _, refused := unimplemented[string(rpc.Name())]; refused {
			continue
		}
		for _, field := range []string{"pod_sandbox_id", "container_id", "image"} {
			f := rpc.Input().Fields().ByName(protoreflect.Name(field))
			if f == nil {
				continue
			}
			err := callRPC(t.Context(), s.conn, rpc)
			if status.Code(err) != codes.InvalidArgument || !strings.HasPrefix(status.Convert(err).Message(), field) {
				t.Errorf("%s without %s = %v, want InvalidArgument that names it", rpc.Name(), field, err)
			}
		}
	}
	ctx := t.Context()
	if _, err := s.ExecSync(ctx, &v1.ExecSyncRequest{ContainerId: "c", Cmd: []string{""}, Timeout: -1}); err == nil ||
		!strings.Contains(err.Error(), "cmd: ") || !strings.Contains(err.Error(), "timeout: ") {
		t.Errorf("ExecSync of nothing for -1 s = %v, want both fields named", err)
	}
	if _, err := s.StopContainer(ctx, &v1.StopContainerRequest{ContainerId: "c", Timeout: -1}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("StopContainer with timeout -1 = %v, want InvalidArgument", err)
	}
	if _, err := s.PodSandboxStatus(ctx, &v1.PodSandboxStatusRequest{PodSandboxId: "no"}); status.Code(err) != codes.NotFound {
		t.Errorf("PodSandboxStatus of an unknown sandbox = %v, want NotFound", err)
	}
	if _, err := s.ContainerStatus(ctx, &v1.ContainerStatusRequest{ContainerId: "no"}); status.Code(err) != codes.NotFound {
		t.Errorf("ContainerStatus of an unknown container = %v, want NotFound", err)
	}
}
