package cri

import (
	"context"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/sandbox/config"
)

// UpdateContainerResources changes the resources of a created or running
// container. Fields that are not set stay as they are.
func (s *Server) UpdateContainerResources(ctx context.Context, r *v1.UpdateContainerResourcesRequest) (*v1.UpdateContainerResourcesResponse, error) {
	change, err := s.decoder().update(r)
	if err != nil {
		return nil, err
	}
	if err := s.o.Sandboxes.UpdateContainer(ctx, r.GetContainerId(), change); err != nil {
		return nil, err
	}
	return &v1.UpdateContainerResourcesResponse{}, nil
}

func (d *decoder) update(r *v1.UpdateContainerResourcesRequest) (config.Resources, error) {
	d.check("container_id", badID(r.GetContainerId()))
	change := d.resources("linux", r.GetLinux())
	return change, d.err()
}

// UpdatePodSandboxResources notes what kubelet is about to give to a pod. kubelet
// takes any error for an order not to.
func (s *Server) UpdatePodSandboxResources(ctx context.Context, r *v1.UpdatePodSandboxResourcesRequest) (*v1.UpdatePodSandboxResourcesResponse, error) {
	overhead, resources, err := s.decoder().updateSandbox(r)
	if err != nil {
		return nil, err
	}
	if err := s.o.Sandboxes.UpdateSandbox(ctx, r.GetPodSandboxId(), overhead, resources); err != nil {
		return nil, err
	}
	return &v1.UpdatePodSandboxResourcesResponse{}, nil
}

func (d *decoder) updateSandbox(r *v1.UpdatePodSandboxResourcesRequest) (overhead, resources *config.Resources, err error) {
	d.check("pod_sandbox_id", badID(r.GetPodSandboxId()))
	if r.GetOverhead() != nil {
		o := d.resources("overhead", r.GetOverhead())
		overhead = &o
	}
	if r.GetResources() != nil {
		sum := d.resources("resources", r.GetResources())
		resources = &sum
	}
	return overhead, resources, d.err()
}
