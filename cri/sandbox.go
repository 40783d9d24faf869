package cri

import (
	"context"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// RunPodSandbox makes a sandbox and returns when it is ready.
func (s *Server) RunPodSandbox(ctx context.Context, r *v1.RunPodSandboxRequest) (*v1.RunPodSandboxResponse, error) {
	wanted, err := s.decoder().sandbox(r)
	if err != nil {
		return nil, err
	}
	id, err := s.o.Sandboxes.Run(ctx, wanted)
	if err != nil {
		return nil, err
	}
	return &v1.RunPodSandboxResponse{PodSandboxId: string(id)}, nil
}

// StopPodSandbox kills the sandbox's containers and takes it off the network. It
// may be called any number of times.
func (s *Server) StopPodSandbox(ctx context.Context, r *v1.StopPodSandboxRequest) (*v1.StopPodSandboxResponse, error) {
	if err := oneID("pod_sandbox_id", r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	if err := s.o.Sandboxes.StopSandbox(ctx, r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &v1.StopPodSandboxResponse{}, nil
}

// RemovePodSandbox removes the sandbox and its containers, whatever their state.
func (s *Server) RemovePodSandbox(ctx context.Context, r *v1.RemovePodSandboxRequest) (*v1.RemovePodSandboxResponse, error) {
	if err := oneID("pod_sandbox_id", r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	if err := s.o.Sandboxes.RemoveSandbox(ctx, r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &v1.RemovePodSandboxResponse{}, nil
}

// PodSandboxStatus has the containers and the time, both of them: a client that
// finds a timestamp takes the containers beside it for all there are
// (containerd/containerd#10740).
func (s *Server) PodSandboxStatus(_ context.Context, r *v1.PodSandboxStatusRequest) (*v1.PodSandboxStatusResponse, error) {
	if err := oneID("pod_sandbox_id", r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	p, err := s.o.Sandboxes.PodStatus(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	st := p.Sandbox
	resp := &v1.PodSandboxStatusResponse{
		Status: encodeSandboxStatus(st), ContainersStatuses: s.encodeStatuses(p.Containers), Timestamp: p.At.UnixNano(),
	}
	if r.GetVerbose() {
		spec, err := s.o.Sandboxes.SandboxSpec(string(st.ID))
		resp.Info = sandboxInfo(st, orError(spec, err))
	}
	return resp, nil
}

// ListPodSandbox lists the sandboxes that the filter lets through.
func (s *Server) ListPodSandbox(_ context.Context, r *v1.ListPodSandboxRequest) (*v1.ListPodSandboxResponse, error) {
	match, err := sandboxFilter(r.GetFilter())
	if err != nil {
		return nil, err
	}
	resp := &v1.ListPodSandboxResponse{}
	all := s.o.Sandboxes.Sandboxes()
	for i := range all {
		if match(&all[i]) {
			resp.Items = append(resp.Items, encodeSandbox(&all[i]))
		}
	}
	return resp, nil
}
