package cri

import (
	"google.golang.org/grpc"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/sandbox"
)

// GetContainerEvents is open for as long as crid and its client want: a stream that
// ends sends kubelet back to asking.
func (s *Server) GetContainerEvents(_ *v1.GetEventsRequest, stream grpc.ServerStreamingServer[v1.ContainerEventResponse]) error {
	// The header now, and not with the first event: the client may wait to know that
	// it is told of everything from here on.
	subscribed := func() error { return stream.SendHeader(nil) }
	return s.o.Sandboxes.WatchEvents(stream.Context(), subscribed, func(e *sandbox.Event) error {
		return stream.Send(s.encodeEvent(e))
	})
}

func (s *Server) encodeEvent(e *sandbox.Event) *v1.ContainerEventResponse {
	out := &v1.ContainerEventResponse{
		ContainerId:        e.ID,
		ContainerEventType: eventTypes[e.Kind],
		CreatedAt:          e.At.UnixNano(),
		ContainersStatuses: s.encodeStatuses(e.Containers),
	}
	if e.Sandbox != nil {
		out.PodSandboxStatus = encodeSandboxStatus(e.Sandbox)
	}
	return out
}

var eventTypes = map[sandbox.EventKind]v1.ContainerEventType{
	sandbox.EventCreated: v1.ContainerEventType_CONTAINER_CREATED_EVENT,
	sandbox.EventStarted: v1.ContainerEventType_CONTAINER_STARTED_EVENT,
	sandbox.EventStopped: v1.ContainerEventType_CONTAINER_STOPPED_EVENT,
	sandbox.EventDeleted: v1.ContainerEventType_CONTAINER_DELETED_EVENT,
}

func (s *Server) encodeStatuses(all []*sandbox.ContainerStatus) []*v1.ContainerStatus {
	var out []*v1.ContainerStatus
	for _, st := range all {
		out = append(out, encodeContainerStatus(st, s.tags(st)))
	}
	return out
}
