package cri

import (
	"encoding/json"

	"github.com/cridproject/crid/image"
	"github.com/cridproject/crid/sandbox"
)

// The maps below are what `crictl inspect`, `inspectp` and `inspecti` show beside
// the status. CRI leaves them open; the keys are those that scripts know from
// containerd and CRI-O, as far as crid has the thing.

func sandboxInfo(st *sandbox.SandboxStatus) map[string]string {
	return map[string]string{"info": toJSON(map[string]any{
		"sandboxID":      st.ID,
		"pid":            st.HolderPID, // 0: crid has no pause process
		"netNamespace":   st.NetNS,
		"runtimeHandler": st.Config.RuntimeHandler,
		"privileged":     st.Config.Privileged,
		"config":         st.Config,
	})}
}

func containerInfo(st *sandbox.ContainerStatus) map[string]string {
	return map[string]string{"info": toJSON(map[string]any{
		"sandboxID":  st.Sandbox,
		"pid":        st.PID,
		"privileged": st.Config.Security.Privileged,
		"config":     st.Config,
	})}
}

// imageInfo shows the image's configuration as it was published.
func imageInfo(img *image.Image) map[string]string {
	return map[string]string{"info": toJSON(map[string]any{
		"chainID":   img.ChainID,
		"imageSpec": json.RawMessage(img.ConfigJSON),
	})}
}
