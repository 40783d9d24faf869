package sandbox

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/cridproject/crid/cni"
	"github.com/cridproject/crid/monitor"
	"github.com/cridproject/crid/sandbox/config"
	"github.com/cridproject/crid/sandbox/spec"
)

// recordVersion is of both kinds of record. docs/state-on-disk.md says what
// each version changed; upgrade reads the one before.
const recordVersion = 1

// sandboxRecord is what is on disk of a sandbox. It says what may exist, not
// what does: each part is written down before it is made, and taken out after
// it is gone.
type sandboxRecord struct {
	Version int
	ID      config.SandboxID
	BootID  string // of the boot in which its processes and mounts were made
	State   SandboxState
	// CreatedAt is when it became ready. Until it is set, clients do not see it.
	CreatedAt time.Time
	Config    config.Sandbox

	NetNS      string          // where the network namespace is pinned; "" with the node's network
	Attachment *cni.Attachment // from before ADD until after DEL; nil: not attached
	IPs        []netip.Addr
	CNIResult  json.RawMessage `json:",omitempty"` // the plugins' answer
	Holder     *holderRecord   // of a PID namespace; from before Hold until after Release
	Released   bool            // stopped: no process, namespace, mount or attachment is left

	Overhead, Resources *config.Resources `json:",omitempty"` // as last updated; nil: those of Config
}

// holderRecord is the process that holds the PID namespace of a sandbox.
type holderRecord struct {
	CgroupsPath string // as in an OCI spec
	PID         int    // 0 until it runs
}

// containerRecord is what is on disk of a container.
type containerRecord struct {
	Version int
	ID      config.ContainerID
	Sandbox config.SandboxID
	BootID  string
	State   ContainerState
	Config  config.Container

	// CreatedAt is when it was made. Until it is set, clients do not see it.
	CreatedAt  time.Time
	StartedAt  time.Time // when its start was asked for; zero: never
	FinishedAt time.Time
	ExitCode   int
	Reason     string
	Message    string

	ImageID     string
	ImageRef    string         // a repository digest of the image, or its ID
	Volumes     map[int]string `json:",omitempty"` // images that are mounts: index in Config.Mounts → image ID
	LogPath     string         // absolute; "" means no log
	CgroupsPath string         // as in an OCI spec
	StopSignal  string
	Signal      int // the number of StopSignal
	User        spec.User
	PID         int
	Request     monitor.CreateRequest // without Spec: what Adopt needs

	Resources config.Resources  // wanted now: those of Config and what updates have changed
	Actual    config.Resources  // what the kernel has of them
	Update    *config.Resources `json:",omitempty"` // what Resources is becoming, from before the kernel is asked; nil: nothing
}

// check refuses a record that does not belong to the file it was in, or is in a
// state that this crid does not know: there would be no way out of it.
func (r *sandboxRecord) check(id string) error {
	return checkRecord(r.Version, string(r.ID), id, r.State, sandboxStates[:])
}

func (r *containerRecord) check(id string) error {
	return checkRecord(r.Version, string(r.ID), id, r.State, containerStates[:])
}

func checkRecord[S ~string](version int, id, want string, state S, states []S) error {
	if version != recordVersion {
		return fmt.Errorf("record of version %d: this crid reads version %d", version, recordVersion)
	}
	if id != want {
		return fmt.Errorf("record is of %q", id)
	}
	if !slices.Contains(states, state) {
		return fmt.Errorf("record has the state %q, which this crid does not know", state)
	}
	return nil
}

// decodeRecord is the only reader of records. When there is a version 2, it
// looks at the version first and upgrades a record of version 1.
func decodeRecord[R any, P interface {
	*R
	check(id string) error
}](data []byte, id string) (R, error) {
	var r R
	if err := json.Unmarshal(data, &r); err != nil {
		return r, err
	}
	return r, P(&r).check(id)
}
