package cri

import (
	"context"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/sandbox"
)

// CreateContainer makes a container whose first process waits for StartContainer.
func (s *Server) CreateContainer(ctx context.Context, r *v1.CreateContainerRequest) (*v1.CreateContainerResponse, error) {
	wanted, err := s.decoder().container(r)
	if err != nil {
		return nil, err
	}
	id, err := s.o.Sandboxes.Create(ctx, r.GetPodSandboxId(), wanted)
	if err != nil {
		return nil, err
	}
	return &v1.CreateContainerResponse{ContainerId: string(id)}, nil
}

// StartContainer lets a created container run.
func (s *Server) StartContainer(ctx context.Context, r *v1.StartContainerRequest) (*v1.StartContainerResponse, error) {
	if err := oneID("container_id", r.GetContainerId()); err != nil {
		return nil, err
	}
	if err := s.o.Sandboxes.Start(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	return &v1.StartContainerResponse{}, nil
}

// StopContainer sends the stop signal, and after timeout seconds kills all of
// the container.
func (s *Server) StopContainer(ctx context.Context, r *v1.StopContainerRequest) (*v1.StopContainerResponse, error) {
	var d decoder
	d.check("container_id", badID(r.GetContainerId()))
	grace := d.seconds("timeout", r.GetTimeout())
	if err := d.err(); err != nil {
		return nil, err
	}
	if err := s.o.Sandboxes.Stop(ctx, r.GetContainerId(), grace); err != nil {
		return nil, err
	}
	return &v1.StopContainerResponse{}, nil
}

// RemoveContainer removes a container, whatever its state. Its log stays: it is
// the client's.
func (s *Server) RemoveContainer(ctx context.Context, r *v1.RemoveContainerRequest) (*v1.RemoveContainerResponse, error) {
	if err := oneID("container_id", r.GetContainerId()); err != nil {
		return nil, err
	}
	if err := s.o.Sandboxes.Remove(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	return &v1.RemoveContainerResponse{}, nil
}

// ListContainers lists the containers that the filter lets through.
func (s *Server) ListContainers(_ context.Context, r *v1.ListContainersRequest) (*v1.ListContainersResponse, error) {
	match, err := containerFilter(r.GetFilter())
	if err != nil {
		return nil, err
	}
	resp := &v1.ListContainersResponse{}
	all := s.o.Sandboxes.Containers()
	for i := range all {
		if match(&all[i]) {
			resp.Containers = append(resp.Containers, encodeContainer(&all[i]))
		}
	}
	return resp, nil
}

// ContainerStatus reports one container. A NotFound is news to kubelet, which
// ignores it: the container went between List and this call.
func (s *Server) ContainerStatus(_ context.Context, r *v1.ContainerStatusRequest) (*v1.ContainerStatusResponse, error) {
	if err := oneID("container_id", r.GetContainerId()); err != nil {
		return nil, err
	}
	st, err := s.o.Sandboxes.Container(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	resp := &v1.ContainerStatusResponse{Status: encodeContainerStatus(&st, s.tags(&st))}
	if r.GetVerbose() {
		spec, err := s.o.Sandboxes.ContainerSpec(string(st.ID))
		resp.Info = containerInfo(&st, orError(spec, err))
	}
	return resp, nil
}

// tags of a container's image; none when it is gone or was pulled by digest.
func (s *Server) tags(st *sandbox.ContainerStatus) []string {
	img, err := s.o.Images.Image(st.ImageID)
	if err != nil {
		return nil
	}
	return img.RepoTags
}

// ReopenContainerLog returns when nothing more is written to the old file.
func (s *Server) ReopenContainerLog(ctx context.Context, r *v1.ReopenContainerLogRequest) (*v1.ReopenContainerLogResponse, error) {
	if err := oneID("container_id", r.GetContainerId()); err != nil {
		return nil, err
	}
	if err := s.o.Sandboxes.ReopenLog(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	return &v1.ReopenContainerLogResponse{}, nil
}
