package cri

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"time"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

const (
	runtimeName = "crid"
	apiVersion  = "v1"
	// kubeletAPIVersion is what runtimes have answered since there is a CRI.
	kubeletAPIVersion = "0.1.0"

	cgroupfs = "cgroupfs"
	systemd  = "systemd"

	// dumpLimit bounds what a verbose Status waits for the monitor.
	dumpLimit = 2 * time.Second
)

// Version is the first thing kubelet asks.
func (s *Server) Version(context.Context, *v1.VersionRequest) (*v1.VersionResponse, error) {
	return &v1.VersionResponse{
		Version:           kubeletAPIVersion,
		RuntimeName:       runtimeName,
		RuntimeVersion:    s.o.Version,
		RuntimeApiVersion: apiVersion,
	}, nil
}

// Status reads cached verdicts: kubelet takes a slow answer for a dead runtime,
// so no stuck plugin may hold it up.
func (s *Server) Status(ctx context.Context, r *v1.StatusRequest) (*v1.StatusResponse, error) {
	ready := func() error { return nil }
	if s.o.RuntimeStatus != nil {
		ready = s.o.RuntimeStatus
	}
	resp := &v1.StatusResponse{
		Status: &v1.RuntimeStatus{Conditions: []*v1.RuntimeCondition{
			condition(v1.RuntimeReady, "RuntimeNotReady", ready()),
			condition(v1.NetworkReady, "NetworkPluginNotReady", s.o.NetworkStatus()),
		}},
		RuntimeHandlers: []*v1.RuntimeHandler{{
			Name: "", // the default, and the only one
			Features: &v1.RuntimeHandlerFeatures{
				RecursiveReadOnlyMounts: s.node.RecursiveReadOnly,
				UserNamespaces:          s.node.UserNamespaces,
			},
		}},
		Features: &v1.RuntimeFeatures{
			SupplementalGroupsPolicy:  true,
			UserNamespacesHostNetwork: s.node.UserNamespaces,
			MountOptions:              true,
		},
	}
	if r.GetVerbose() {
		resp.Info = s.info(ctx)
	}
	return resp, nil
}

func condition(kind, reason string, err error) *v1.RuntimeCondition {
	c := &v1.RuntimeCondition{Type: kind, Status: err == nil}
	if err != nil {
		c.Reason, c.Message = reason, err.Error()
	}
	return c
}

// info is what `crictl info` shows besides the conditions.
func (s *Server) info(ctx context.Context) map[string]string {
	info := map[string]string{
		"golang":     toJSON(runtime.Version()),
		"goroutines": toJSON(runtime.NumGoroutine()),
	}
	if s.o.Config != nil {
		info["config"] = toJSON(s.o.Config)
	}
	if s.o.Devices != nil {
		info["cdi"] = toJSON(s.o.Devices(ctx))
	}
	if s.o.WritableLayers != nil {
		info["writableLayers"] = toJSON(s.o.WritableLayers)
	}
	if s.o.MonitorDump != nil {
		ctx, cancel := context.WithTimeout(ctx, dumpLimit)
		defer cancel()
		dump, err := s.o.MonitorDump(ctx)
		if err != nil {
			dump = map[string]string{"error": err.Error()}
		}
		info["monitor"] = toJSON(dump)
	}
	return info
}

// toJSON is for what is shown to people: what cannot be shown must not fail the
// request.
func toJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		b, _ = json.Marshal(map[string]string{"error": fmt.Sprintf("show as JSON: %v", err)})
	}
	return string(b)
}

// RuntimeConfig tells kubelet the cgroup driver, which it then uses too.
func (s *Server) RuntimeConfig(context.Context, *v1.RuntimeConfigRequest) (*v1.RuntimeConfigResponse, error) {
	driver := v1.CgroupDriver_CGROUPFS
	if s.o.CgroupDriver == systemd {
		driver = v1.CgroupDriver_SYSTEMD
	}
	return &v1.RuntimeConfigResponse{Linux: &v1.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

// UpdateRuntimeConfig gives the node's pod CIDR, which network plugins learn
// from the cluster themselves. It must succeed.
func (s *Server) UpdateRuntimeConfig(ctx context.Context, r *v1.UpdateRuntimeConfigRequest) (*v1.UpdateRuntimeConfigResponse, error) {
	klog.FromContext(ctx).V(2).Info("Ignored pod CIDR, network plugins have their own",
		"cidr", r.GetRuntimeConfig().GetNetworkConfig().GetPodCidr())
	return &v1.UpdateRuntimeConfigResponse{}, nil
}
