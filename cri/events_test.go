package cri

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/sandbox"
)

func (f *fakeNode) PodStatus(id string) (sandbox.PodStatus, error) {
	st, err := f.Sandbox(id)
	p := sandbox.PodStatus{At: time.Unix(0, 55), Sandbox: &st}
	for i := range f.containers {
		if f.containers[i].Sandbox == st.ID {
			p.Containers = append(p.Containers, &f.containers[i])
		}
	}
	return p, err
}

// WatchEvents tells of each kind of event of the first pod's first container.
func (f *fakeNode) WatchEvents(_ context.Context, subscribed func() error, each func(*sandbox.Event) error) error {
	if err := subscribed(); err != nil {
		return err
	}
	if f.err != nil {
		return f.err
	}
	for kind := sandbox.EventCreated; kind <= sandbox.EventDeleted; kind++ {
		p, err := f.PodStatus(string(f.sandboxes[0].ID))
		if kind == sandbox.EventDeleted {
			p.Sandbox = nil
		}
		if err = errors.Join(err, each(&sandbox.Event{Kind: kind, ID: "c", PodStatus: p})); err != nil {
			return err
		}
	}
	return nil
}

func TestGetContainerEvents(t *testing.T) {
	s := newTestServer(t, figuresNode(1))
	stream, err := s.GetContainerEvents(t.Context(), &v1.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	status, err := s.PodSandboxStatus(t.Context(), &v1.PodSandboxStatusRequest{PodSandboxId: "p000"})
	if err != nil || status.Timestamp != 55 || len(status.ContainersStatuses) != 2 {
		t.Fatalf("PodSandboxStatus = %v, %v, want a time and two containers", status, err)
	}
	for _, kind := range []v1.ContainerEventType{
		v1.ContainerEventType_CONTAINER_CREATED_EVENT, v1.ContainerEventType_CONTAINER_STARTED_EVENT,
		v1.ContainerEventType_CONTAINER_STOPPED_EVENT, v1.ContainerEventType_CONTAINER_DELETED_EVENT,
	} {
		want := &v1.ContainerEventResponse{
			ContainerId: "c", ContainerEventType: kind, CreatedAt: 55,
			PodSandboxStatus: status.Status, ContainersStatuses: status.ContainersStatuses,
		}
		if kind == v1.ContainerEventType_CONTAINER_DELETED_EVENT {
			want.PodSandboxStatus = nil
		}
		got, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		wantMessage(t, "event", got, want)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the end = %v", err)
	}
}

// A client that is given up learns why.
func TestContainerEventsEndWithAReason(t *testing.T) {
	s := newTestServer(t, &fakeNode{err: errkind.Errorf(errkind.Unavailable, "the client of the events is too slow")})
	stream, err := s.GetContainerEvents(t.Context(), &v1.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "too slow") {
		t.Errorf("the end = %v, want Unavailable, with the reason", err)
	}
}
