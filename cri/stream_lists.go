package cri

import (
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The streaming lists say what the lists say, in as many messages as it takes:
// each item once, at least one in a message, and the end of the stream after the
// last. Without items there is no message.

// Limits of one message, which ends with the item that reaches one of them. Clients
// take 16 MiB by default, and an item cannot be larger than the request that it was
// made of.
const (
	streamItems = 64
	streamBytes = 1 << 20
)

// batch sends items in messages.
type batch[T proto.Message] struct {
	send  func([]T) error
	items []T
	bytes int
}

func (b *batch[T]) add(item T) error {
	b.items = append(b.items, item)
	b.bytes += proto.Size(item)
	if len(b.items) < streamItems && b.bytes < streamBytes {
		return nil
	}
	return b.flush()
}

// flush sends what is left, if anything.
func (b *batch[T]) flush() error {
	if len(b.items) == 0 {
		return nil
	}
	err := b.send(b.items)
	b.items, b.bytes = nil, 0
	return err
}

// StreamPodSandboxes is ListPodSandbox.
func (s *Server) StreamPodSandboxes(r *v1.StreamPodSandboxesRequest, stream grpc.ServerStreamingServer[v1.StreamPodSandboxesResponse]) error {
	match, err := sandboxFilter(r.GetFilter())
	if err != nil {
		return err
	}
	b := batch[*v1.PodSandbox]{send: func(items []*v1.PodSandbox) error {
		return stream.Send(&v1.StreamPodSandboxesResponse{PodSandboxes: items})
	}}
	all := s.o.Sandboxes.Sandboxes()
	for i := range all {
		if !match(&all[i]) {
			continue
		}
		if err := b.add(encodeSandbox(&all[i])); err != nil {
			return err
		}
	}
	return b.flush()
}

// StreamContainers is ListContainers.
func (s *Server) StreamContainers(r *v1.StreamContainersRequest, stream grpc.ServerStreamingServer[v1.StreamContainersResponse]) error {
	match, err := containerFilter(r.GetFilter())
	if err != nil {
		return err
	}
	b := batch[*v1.Container]{send: func(items []*v1.Container) error {
		return stream.Send(&v1.StreamContainersResponse{Containers: items})
	}}
	all := s.o.Sandboxes.Containers()
	for i := range all {
		if !match(&all[i]) {
			continue
		}
		if err := b.add(encodeContainer(&all[i])); err != nil {
			return err
		}
	}
	return b.flush()
}

// StreamImages is ListImages.
func (s *Server) StreamImages(r *v1.StreamImagesRequest, stream grpc.ServerStreamingServer[v1.StreamImagesResponse]) error {
	all, err := s.images(r.GetFilter())
	if err != nil {
		return err
	}
	b := batch[*v1.Image]{send: func(items []*v1.Image) error {
		return stream.Send(&v1.StreamImagesResponse{Images: items})
	}}
	for i := range all {
		if err := b.add(encodeImage(&all[i])); err != nil {
			return err
		}
	}
	return b.flush()
}

// StreamContainerStats is ListContainerStats.
func (s *Server) StreamContainerStats(r *v1.StreamContainerStatsRequest, stream grpc.ServerStreamingServer[v1.StreamContainerStatsResponse]) error {
	b := batch[*v1.ContainerStats]{send: func(items []*v1.ContainerStats) error {
		return stream.Send(&v1.StreamContainerStatsResponse{ContainerStats: items})
	}}
	for st := range s.o.Sandboxes.AllContainerStats(containerStatsFilter(r.GetFilter())) {
		if err := b.add(encodeContainerStats(&st)); err != nil {
			return err
		}
	}
	return b.flush()
}

// StreamPodSandboxStats is ListPodSandboxStats.
func (s *Server) StreamPodSandboxStats(r *v1.StreamPodSandboxStatsRequest, stream grpc.ServerStreamingServer[v1.StreamPodSandboxStatsResponse]) error {
	b := batch[*v1.PodSandboxStats]{send: func(items []*v1.PodSandboxStats) error {
		return stream.Send(&v1.StreamPodSandboxStatsResponse{PodSandboxStats: items})
	}}
	for st := range s.o.Sandboxes.AllSandboxStats(sandboxStatsFilter(r.GetFilter())) {
		if err := b.add(encodeSandboxStats(&st)); err != nil {
			return err
		}
	}
	return b.flush()
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics.
func (s *Server) StreamPodSandboxMetrics(_ *v1.StreamPodSandboxMetricsRequest, stream grpc.ServerStreamingServer[v1.StreamPodSandboxMetricsResponse]) error {
	b := batch[*v1.PodSandboxMetrics]{send: func(items []*v1.PodSandboxMetrics) error {
		return stream.Send(&v1.StreamPodSandboxMetricsResponse{PodSandboxMetrics: items})
	}}
	for m := range s.o.Sandboxes.AllMetrics() {
		if err := b.add(encodeSandboxMetrics(&m)); err != nil {
			return err
		}
	}
	return b.flush()
}
