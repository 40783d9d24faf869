package cri

import (
	"context"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// unimplemented is every RPC that crid does not have, with the reason that its
// callers are told. Clients have another way for each of them, or do without.
var unimplemented = map[string]string{
	"CheckpointContainer": "there are no checkpoints yet",
	"CheckpointPod":       "there are no checkpoints yet",
	"RestorePod":          "there are no checkpoints yet",
}

func refuse(rpc string) error { return &unimplementedError{rpc, unimplemented[rpc]} }

// The methods below are those of the table, one for one.

func (*Server) CheckpointContainer(context.Context, *v1.CheckpointContainerRequest) (*v1.CheckpointContainerResponse, error) {
	return nil, refuse("CheckpointContainer")
}

func (*Server) CheckpointPod(context.Context, *v1.CheckpointPodRequest) (*v1.CheckpointPodResponse, error) {
	return nil, refuse("CheckpointPod")
}

func (*Server) RestorePod(context.Context, *v1.RestorePodRequest) (*v1.RestorePodResponse, error) {
	return nil, refuse("RestorePod")
}
