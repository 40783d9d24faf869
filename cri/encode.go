package cri

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/image"
	"github.com/cridproject/crid/sandbox"
	"github.com/cridproject/crid/sandbox/config"
)

// encodeSandbox is a sandbox as lists show it.
func encodeSandbox(st *sandbox.SandboxStatus) *v1.PodSandbox {
	return &v1.PodSandbox{
		Id:             string(st.ID),
		Metadata:       sandboxMetadata(&st.Config),
		State:          sandboxState(st.State),
		CreatedAt:      nanos(st.CreatedAt),
		Labels:         st.Config.Labels,
		Annotations:    st.Config.Annotations,
		RuntimeHandler: st.Config.RuntimeHandler,
	}
}

func encodeSandboxStatus(st *sandbox.SandboxStatus) *v1.PodSandboxStatus {
	return &v1.PodSandboxStatus{
		Id:             string(st.ID),
		Metadata:       sandboxMetadata(&st.Config),
		State:          sandboxState(st.State),
		CreatedAt:      nanos(st.CreatedAt),
		Network:        networkStatus(st),
		Linux:          &v1.LinuxPodSandboxStatus{Namespaces: &v1.Namespace{Options: encodeNamespaces(st.Config.Namespaces)}},
		Labels:         st.Config.Labels,
		Annotations:    st.Config.Annotations,
		RuntimeHandler: st.Config.RuntimeHandler,
	}
}

func sandboxMetadata(c *config.Sandbox) *v1.PodSandboxMetadata {
	return &v1.PodSandboxMetadata{Name: c.Name, Uid: c.UID, Namespace: c.Namespace, Attempt: c.Attempt}
}

// sandboxState: whatever is on its way up or down is not ready.
func sandboxState(s sandbox.SandboxState) v1.PodSandboxState {
	if s == sandbox.SandboxReady {
		return v1.PodSandboxState_SANDBOX_READY
	}
	return v1.PodSandboxState_SANDBOX_NOTREADY
}

// networkStatus is never nil. The node's addresses are not the pod's to report:
// with the node's network, kubelet expects none.
func networkStatus(st *sandbox.SandboxStatus) *v1.PodSandboxNetworkStatus {
	n := &v1.PodSandboxNetworkStatus{}
	if st.Config.HostNetwork() || len(st.IPs) == 0 {
		return n
	}
	n.Ip = ipText(st.IPs[0])
	for _, ip := range st.IPs[1:] {
		n.AdditionalIps = append(n.AdditionalIps, &v1.PodIP{Ip: ipText(ip)})
	}
	return n
}

// ipText writes an IPv4 address as such, also when it comes in 16 bytes.
func ipText(ip netip.Addr) string { return ip.Unmap().String() }

// encodeNamespaces echoes the request.
func encodeNamespaces(n config.Namespaces) *v1.NamespaceOption {
	return &v1.NamespaceOption{
		Network:       keyOf(networkModes, n.Network),
		Pid:           keyOf(pidModes, n.PID),
		Ipc:           keyOf(ipcModes, n.IPC),
		TargetId:      string(n.Target),
		UsernsOptions: encodeUserNamespace(n),
	}
}

// encodeContainer is a container as lists show it.
func encodeContainer(st *sandbox.ContainerStatus) *v1.Container {
	return &v1.Container{
		Id:           string(st.ID),
		PodSandboxId: string(st.Sandbox),
		Metadata:     containerMetadata(&st.Config),
		Image:        imageSpec(&st.Config, nil),
		ImageRef:     imageRef(st),
		State:        containerState(st.State),
		CreatedAt:    nanos(st.CreatedAt),
		Labels:       st.Config.Labels,
		Annotations:  st.Config.Annotations,
		ImageId:      st.ImageID,
	}
}

// encodeContainerStatus takes the tags that the container's image has now.
func encodeContainerStatus(st *sandbox.ContainerStatus, tags []string) *v1.ContainerStatus {
	out := &v1.ContainerStatus{
		Id:          string(st.ID),
		Metadata:    containerMetadata(&st.Config),
		State:       containerState(st.State),
		CreatedAt:   nanos(st.CreatedAt),
		StartedAt:   nanos(st.StartedAt),
		FinishedAt:  nanos(st.FinishedAt),
		ExitCode:    int32(st.ExitCode),
		Image:       imageSpec(&st.Config, tags),
		ImageRef:    imageRef(st),
		Reason:      utf8Text(st.Reason),
		Message:     utf8Text(st.Message),
		Labels:      st.Config.Labels,
		Annotations: st.Config.Annotations,
		Mounts:      encodeMounts(st),
		LogPath:     st.LogPath,
		Resources:   &v1.ContainerResources{Linux: encodeResources(&st.Resources)},
		ImageId:     st.ImageID,
		User: &v1.ContainerUser{Linux: &v1.LinuxContainerUser{
			Uid: st.User.UID, Gid: st.User.GID, SupplementalGroups: st.User.Groups,
		}},
		StopSignal: signalValue(st.StopSignal),
	}
	return out
}

func containerMetadata(c *config.Container) *v1.ContainerMetadata {
	return &v1.ContainerMetadata{Name: c.Name, Attempt: c.Attempt}
}

func containerState(s sandbox.ContainerState) v1.ContainerState {
	for k, v := range containerStates {
		if v == s {
			return k
		}
	}
	return v1.ContainerState_CONTAINER_UNKNOWN
}

// imageRef is never empty: clients refuse a status without it.
func imageRef(st *sandbox.ContainerStatus) string {
	if st.ImageRef != "" {
		return st.ImageRef
	}
	return st.ImageID
}

// imageSpec echoes the request, but shows a tag where there is one: kubelet asks
// for containers by image ID, and publishes this as the image's name. The tag
// that the user wrote goes before others.
func imageSpec(c *config.Container, tags []string) *v1.ImageSpec {
	name := c.Image.Ref
	if len(tags) > 0 {
		name = tags[0]
		for _, tag := range tags {
			if sameTag(tag, c.Image.UserSpecified) {
				name = tag
			}
		}
	}
	return &v1.ImageSpec{
		Image:              name,
		Annotations:        c.Image.Annotations,
		UserSpecifiedImage: c.Image.UserSpecified,
		RuntimeHandler:     c.Image.RuntimeHandler,
	}
}

// sameTag compares a full name, such as docker.io/library/busybox:latest, with
// what a user may have written for it. A wrong guess shows another tag of the
// same image.
func sameTag(tag, written string) bool {
	if written == "" {
		return false
	}
	for _, w := range []string{written, written + ":latest"} {
		if tag == w || strings.HasSuffix(tag, "/"+w) {
			return true
		}
	}
	return false
}

// encodeMounts echoes the request: kubelet finds the termination log by the
// container_path that it sent, and reads its host_path.
func encodeMounts(st *sandbox.ContainerStatus) []*v1.Mount {
	var out []*v1.Mount
	for i, m := range st.Config.Mounts {
		o := &v1.Mount{
			Image:             encodeVolume(m.Image, st.Volumes[i]),
			ImageSubPath:      m.ImageSubPath,
			ContainerPath:     m.ContainerPath,
			HostPath:          string(m.HostPath),
			Readonly:          m.Readonly,
			SelinuxRelabel:    m.SELinuxRelabel,
			Propagation:       keyOf(propagations, m.Propagation),
			RecursiveReadOnly: m.RecursiveReadonly,
			MountOptions:      m.Options,
		}
		if m.IDMap != nil {
			o.UidMappings, o.GidMappings = encodeIDMapping(m.IDMap.UIDs), encodeIDMapping(m.IDMap.GIDs)
		}
		out = append(out, o)
	}
	return out
}

// encodeVolume echoes the image that is a mount, with its ID as the digest: what
// PullImage has answered, by which clients find it again.
func encodeVolume(img *config.Image, id string) *v1.ImageSpec {
	if img == nil {
		return nil
	}
	return &v1.ImageSpec{
		Image:              img.Ref,
		Annotations:        img.Annotations,
		UserSpecifiedImage: img.UserSpecified,
		RuntimeHandler:     img.RuntimeHandler,
		ImageRef:           id,
	}
}

// encodeResources reports what is set now; kubelet waits here for its resizes.
func encodeResources(r *config.Resources) *v1.LinuxContainerResources {
	out := &v1.LinuxContainerResources{
		CpuPeriod:              r.CPUPeriod,
		CpuQuota:               r.CPUQuota,
		CpuShares:              r.CPUShares,
		MemoryLimitInBytes:     r.MemoryLimit,
		OomScoreAdj:            r.OOMScoreAdj,
		CpusetCpus:             r.CpusetCPUs,
		CpusetMems:             r.CpusetMems,
		Unified:                r.Unified,
		MemorySwapLimitInBytes: r.MemorySwap,
	}
	for _, size := range slices.Sorted(maps.Keys(r.HugepageMax)) {
		out.HugepageLimits = append(out.HugepageLimits, &v1.HugepageLimit{PageSize: size, Limit: r.HugepageMax[size]})
	}
	return out
}

func encodeImage(img *image.Image) *v1.Image {
	out := &v1.Image{
		Id:          string(img.ID),
		RepoTags:    img.RepoTags,
		RepoDigests: img.RepoDigests,
		Size:        img.Size,
		Username:    img.Username,
		Spec:        &v1.ImageSpec{},
		Pinned:      img.Pinned,
	}
	if img.UID != nil {
		out.Uid = &v1.Int64Value{Value: *img.UID}
	} else if img.Username == "" {
		out.Uid = &v1.Int64Value{Value: 0} // one of the two is always there: root
	}
	return out
}

// keyOf is the CRI value that a decoding table maps to v; the zero value, which
// is CRI's default, when there is none.
func keyOf[E ~int32, T comparable](table map[E]T, v T) E {
	for k, t := range table {
		if t == v {
			return k
		}
	}
	return 0
}

// nanos is CRI's time. What has not happened has the time 0.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// utf8Text keeps a message with a program's output in it from failing the
// response: protobuf strings must be UTF-8.
func utf8Text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
