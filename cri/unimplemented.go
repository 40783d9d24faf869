package cri

import (
	"context"

	"google.golang.org/grpc"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// unimplemented is every RPC that crid does not have, with the reason that its
// callers are told. Clients have another way for each of them, or do without.
var unimplemented = map[string]string{
	"StreamPodSandboxes":      "use ListPodSandbox",
	"StreamContainers":        "use ListContainers",
	"StreamImages":            "use ListImages",
	"Exec":                    "there are no streams yet; use ExecSync",
	"Attach":                  "there are no streams yet",
	"PortForward":             "there are no streams yet",
	"ContainerStats":          "there are no figures yet",
	"ListContainerStats":      "there are no figures yet",
	"StreamContainerStats":    "there are no figures yet",
	"PodSandboxStats":         "there are no figures yet",
	"ListPodSandboxStats":     "there are no figures yet",
	"StreamPodSandboxStats":   "there are no figures yet",
	"ListMetricDescriptors":   "there are no metrics yet",
	"ListPodSandboxMetrics":   "there are no metrics yet",
	"StreamPodSandboxMetrics": "there are no metrics yet",
	"GetContainerEvents":      "there are no events yet; kubelet lists instead",
	"CheckpointContainer":     "there are no checkpoints yet",
	"CheckpointPod":           "there are no checkpoints yet",
	"RestorePod":              "there are no checkpoints yet",
}

func refuse(rpc string) error { return &unimplementedError{rpc, unimplemented[rpc]} }

// The methods below are those of the table, one for one.

func (*Server) Exec(context.Context, *v1.ExecRequest) (*v1.ExecResponse, error) {
	return nil, refuse("Exec")
}

func (*Server) Attach(context.Context, *v1.AttachRequest) (*v1.AttachResponse, error) {
	return nil, refuse("Attach")
}

func (*Server) PortForward(context.Context, *v1.PortForwardRequest) (*v1.PortForwardResponse, error) {
	return nil, refuse("PortForward")
}

func (*Server) ContainerStats(context.Context, *v1.ContainerStatsRequest) (*v1.ContainerStatsResponse, error) {
	return nil, refuse("ContainerStats")
}

func (*Server) ListContainerStats(context.Context, *v1.ListContainerStatsRequest) (*v1.ListContainerStatsResponse, error) {
	return nil, refuse("ListContainerStats")
}

func (*Server) PodSandboxStats(context.Context, *v1.PodSandboxStatsRequest) (*v1.PodSandboxStatsResponse, error) {
	return nil, refuse("PodSandboxStats")
}

func (*Server) ListPodSandboxStats(context.Context, *v1.ListPodSandboxStatsRequest) (*v1.ListPodSandboxStatsResponse, error) {
	return nil, refuse("ListPodSandboxStats")
}

func (*Server) ListMetricDescriptors(context.Context, *v1.ListMetricDescriptorsRequest) (*v1.ListMetricDescriptorsResponse, error) {
	return nil, refuse("ListMetricDescriptors")
}

func (*Server) ListPodSandboxMetrics(context.Context, *v1.ListPodSandboxMetricsRequest) (*v1.ListPodSandboxMetricsResponse, error) {
	return nil, refuse("ListPodSandboxMetrics")
}

func (*Server) CheckpointContainer(context.Context, *v1.CheckpointContainerRequest) (*v1.CheckpointContainerResponse, error) {
	return nil, refuse("CheckpointContainer")
}

func (*Server) CheckpointPod(context.Context, *v1.CheckpointPodRequest) (*v1.CheckpointPodResponse, error) {
	return nil, refuse("CheckpointPod")
}

func (*Server) RestorePod(context.Context, *v1.RestorePodRequest) (*v1.RestorePodResponse, error) {
	return nil, refuse("RestorePod")
}

func (*Server) StreamPodSandboxes(*v1.StreamPodSandboxesRequest, grpc.ServerStreamingServer[v1.StreamPodSandboxesResponse]) error {
	return refuse("StreamPodSandboxes")
}

func (*Server) StreamContainers(*v1.StreamContainersRequest, grpc.ServerStreamingServer[v1.StreamContainersResponse]) error {
	return refuse("StreamContainers")
}

func (*Server) StreamImages(*v1.StreamImagesRequest, grpc.ServerStreamingServer[v1.StreamImagesResponse]) error {
	return refuse("StreamImages")
}

func (*Server) StreamContainerStats(*v1.StreamContainerStatsRequest, grpc.ServerStreamingServer[v1.StreamContainerStatsResponse]) error {
	return refuse("StreamContainerStats")
}

func (*Server) StreamPodSandboxStats(*v1.StreamPodSandboxStatsRequest, grpc.ServerStreamingServer[v1.StreamPodSandboxStatsResponse]) error {
	return refuse("StreamPodSandboxStats")
}

func (*Server) StreamPodSandboxMetrics(*v1.StreamPodSandboxMetricsRequest, grpc.ServerStreamingServer[v1.StreamPodSandboxMetricsResponse]) error {
	return refuse("StreamPodSandboxMetrics")
}

func (*Server) GetContainerEvents(*v1.GetEventsRequest, grpc.ServerStreamingServer[v1.ContainerEventResponse]) error {
	return refuse("GetContainerEvents")
}
