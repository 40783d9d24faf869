package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"time"

	"google.golang.org/grpc"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/cri/stream"
	"github.com/cridproject/crid/image"
	"github.com/cridproject/crid/sandbox"
	"github.com/cridproject/crid/sandbox/config"
)

// Sandboxes is what the server needs of sandbox.Manager. IDs may be given
// shortened, as long as they are unique. Unknown ones are NotFound, except that
// stopping and removing them succeeds.
type Sandboxes interface {
	// Run returns when the sandbox is ready. A second call with the same wanted
	// sandbox returns the same ID.
	Run(context.Context, config.Sandbox) (config.SandboxID, error)
	StopSandbox(ctx context.Context, id string) error
	RemoveSandbox(ctx context.Context, id string) error
	// Sandbox and Sandboxes read a snapshot: they wait for nothing.
	Sandbox(id string) (sandbox.SandboxStatus, error)
	Sandboxes() []sandbox.SandboxStatus

	Create(ctx context.Context, sandboxID string, c config.Container) (config.ContainerID, error)
	Start(ctx context.Context, id string) error
	// UpdateContainer and UpdateSandbox leave what is zero or nil as it is.
	UpdateContainer(ctx context.Context, id string, change config.Resources) error
	UpdateSandbox(ctx context.Context, id string, overhead, resources *config.Resources) error
	Stop(ctx context.Context, id string, grace time.Duration) error
	Remove(ctx context.Context, id string) error
	// Container and Containers read a snapshot: they wait for nothing.
	Container(id string) (sandbox.ContainerStatus, error)
	Containers() []sandbox.ContainerStatus
	// ContainerSpec and SandboxSpec are OCI specs as JSON, read from a file.
	ContainerSpec(id string) (json.RawMessage, error)
	SandboxSpec(id string) (json.RawMessage, error)

	// PodStatus is Sandbox, and all its containers at the same moment.
	PodStatus(id string) (sandbox.PodStatus, error)
	// WatchEvents tells of what happens until ctx ends, each fails or is too slow.
	WatchEvents(ctx context.Context, subscribed func() error, each func(*sandbox.Event) error) error

	// What is used: it asks the kernel and waits for nothing. The sequences leave out
	// what does not run, and what ends meanwhile.
	ContainerStats(id string) (sandbox.ContainerStats, error)
	AllContainerStats(match func(*sandbox.ContainerStatus) bool) iter.Seq[sandbox.ContainerStats]
	SandboxStats(id string) (sandbox.SandboxStats, error)
	AllSandboxStats(match func(*sandbox.SandboxStatus) bool) iter.Seq[sandbox.SandboxStats]
	AllMetrics() iter.Seq[sandbox.SandboxMetrics]

	// ExecSync with a timeout of 0 waits as long as it takes.
	ExecSync(ctx context.Context, id string, args []string, timeout time.Duration) (sandbox.ExecResult, error)
	ReopenLog(ctx context.Context, id string) error
	// MayExec, MayAttach and MayForward say why a stream to a container or sandbox
	// could not begin now, nil if it could, and the whole ID.
	MayExec(id string) (string, error)
	MayAttach(id string) (string, error)
	MayForward(id string) (string, error)
}

// Streams is what the server needs of stream.Server: URLs for clients to connect
// to, each good once and for a minute.
type Streams interface {
	ExecURL(id string, args []string, w stream.Wanted) (string, error)
	AttachURL(id string, w stream.Wanted) (string, error)
	PortForwardURL(id string, ports []int32) (string, error)
}

// Images is what the server needs of image.Store.
type Images interface {
	Pull(context.Context, image.PullRequest) (image.ID, error)
	// Image and List read a snapshot: they wait for nothing.
	Image(refOrID string) (image.Image, error)
	List() []image.Image
	Remove(ctx context.Context, refOrID string) error
	FsInfo(context.Context) (image.FsInfo, error)
}

// Options of a Server.
type Options struct {
	Sandboxes Sandboxes // required
	Images    Images    // required
	Streams   Streams   // required

	// NetworkStatus says why pods cannot be attached to a network at the moment;
	// nil when they can. It must not wait. Required.
	NetworkStatus func() error
	// RuntimeStatus says why containers cannot be run at the moment; nil when they
	// can. It must not wait. nil means that they always can.
	RuntimeStatus func() error

	CgroupDriver string // "cgroupfs" or "systemd"; kubelet takes it over
	Version      string // of crid; required

	// Config is shown, as JSON, by a verbose Status under "config". Tools look for
	// stateDir in it. nil shows nothing.
	Config any
	// MonitorDump is the monitor's own figures, shown by a verbose Status. nil
	// shows nothing.
	MonitorDump func(context.Context) (any, error)

	// Devices is what there is of CDI devices, shown by a verbose Status. nil shows
	// nothing.
	Devices func(context.Context) any

	// WritableLayers is how these are measured, shown by a verbose Status. nil shows
	// nothing.
	WritableLayers any

	Node *Node // what this machine can do; nil means DetectNode
}

// Server answers CRI requests. It has no state of its own and may be used by any
// number of goroutines.
type Server struct {
	// Unsafe, so that an RPC which the API gains does not compile until someone
	// has decided what becomes of it.
	v1.UnsafeRuntimeServiceServer
	v1.UnsafeImageServiceServer

	o    Options
	node Node
}

// New makes a server. Register makes it part of a gRPC server.
func New(o Options) (*Server, error) {
	switch {
	case o.Sandboxes == nil, o.Images == nil, o.Streams == nil, o.NetworkStatus == nil:
		return nil, errors.New("cri: Sandboxes, Images, Streams and NetworkStatus are required")
	case o.Version == "":
		// The client library of kubelet refuses a runtime without a version.
		return nil, errors.New("cri: Version is required")
	case o.CgroupDriver != cgroupfs && o.CgroupDriver != systemd:
		return nil, fmt.Errorf("cri: CgroupDriver is %q, must be %s or %s", o.CgroupDriver, cgroupfs, systemd)
	}
	s := &Server{o: o}
	if o.Node != nil {
		s.node = *o.Node
	} else {
		s.node = DetectNode()
	}
	return s, nil
}

// Register makes both CRI services part of g, which needs this package's
// interceptors: without them, errors have no codes.
func (s *Server) Register(g *grpc.Server) {
	v1.RegisterRuntimeServiceServer(g, s)
	v1.RegisterImageServiceServer(g, s)
}

func (s *Server) decoder() *decoder {
	return &decoder{node: s.node, systemd: s.o.CgroupDriver == systemd}
}
