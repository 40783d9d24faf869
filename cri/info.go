package cri

import (
	"encoding/json"

	"github.com/cridproject/crid/image"
	"github.com/cridproject/crid/sandbox"
)

// The maps below are what `crictl inspect`, `inspectp` and `inspecti` show beside
// the status. CRI leaves them open; the keys are those that scripts know from
// containerd and CRI-O, as far as crid has the thing.

// sandboxInfo takes what stands for the spec of the sandbox, see Sandboxes.
func sandboxInfo(st *sandbox.SandboxStatus, spec json.RawMessage) map[string]string {
	return map[string]string{"info": toJSON(map[string]any{
		"sandboxID":      st.ID,
		"pid":            st.HolderPID, // 0: crid has no pause process
		"netNamespace":   st.NetNS,
		"cniResult":      st.CNIResult,
		"runtimeHandler": st.Config.RuntimeHandler,
		"runtimeSpec":    spec,
		"privileged":     st.Config.Privileged,
		"config":         sandboxConfig(&st.Config),
	})}
}

// containerInfo takes the spec that the container was made from.
func containerInfo(st *sandbox.ContainerStatus, spec json.RawMessage) map[string]string {
	return map[string]string{"info": toJSON(map[string]any{
		"sandboxID":   st.Sandbox,
		"pid":         st.PID,
		"snapshotKey": st.ID,
		"snapshotter": "overlayfs",
		"runtimeSpec": spec,
		"privileged":  st.Config.Security.Privileged,
		"config":      containerConfig(st),
	})}
}

// imageInfo shows the image's configuration as it was published.
func imageInfo(img *image.Image) map[string]string {
	type layer struct {
		DiffID string `json:"diffID"`
		Size   uint64 `json:"size"` // bytes of its files
	}
	layers := make([]layer, len(img.Layers))
	for n, d := range img.Layers {
		layers[n] = layer{string(d), img.LayerSizes[n]}
	}
	return map[string]string{"info": toJSON(map[string]any{
		"chainID":   img.ChainID,
		"imageSpec": json.RawMessage(img.ConfigJSON),
		"layers":    layers,
		"pulledAt":  img.Pulled,
	})}
}

// orError shows why there is no spec in its place.
func orError(spec json.RawMessage, err error) json.RawMessage {
	if err != nil {
		return json.RawMessage(toJSON(map[string]string{"error": err.Error()}))
	}
	return spec
}
