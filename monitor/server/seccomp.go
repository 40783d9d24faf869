package server

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/seccomp"
	"k8s.io/klog/v2"

	"github.com/cridproject/crid/monitor/server/filter"
)

// RecordMode is the argument with which the monitor starts its own program to
// compile a seccomp filter that containers will share; see RecordFilter.
const RecordMode = "seccomp"

// filterKeyName is, in libcontainer's folder of a container, the key of its
// filter in hexadecimal digits, so that an exec need not work it out.
const filterKeyName = "crid-seccomp"

// RecordFilter is what the program does in RecordMode. It does not return.
func RecordFilter() {
	filter.Record(func(data []byte) error {
		var c configs.Seccomp
		if err := json.Unmarshal(data, &c); err != nil {
			return fmt.Errorf("read seccomp configuration: %w", err)
		}
		_, err := seccomp.InitSeccomp(&c)
		return err
	})
}

func recordCommand(ctx context.Context) *exec.Cmd {
	return exec.CommandContext(ctx, "/proc/self/exe", RecordMode)
}

// filterFor is the recording of the container's filter, nil when it has no filter
// or compiles it itself. The caller closes it.
//
// Preconditions: the reaper knows that something is being started.
func (r *ociRuntime) filterFor(id string, c *configs.Seccomp) *os.File {
	if c == nil {
		return nil
	}
	ctx := klog.NewContext(context.Background(), r.limits.log.WithValues("container", id))
	path := filepath.Join(r.root, id, filterKeyName)
	var key filter.Key
	var data []byte
	config := func() (_ []byte, err error) {
		if data == nil {
			data, err = json.Marshal(c)
		}
		return data, err
	}
	text, err := os.ReadFile(path)
	if n, herr := hex.Decode(key[:], text[:min(len(text), hex.EncodedLen(len(key)))]); err == nil && herr == nil && n == len(key) {
		return r.filters.Get(ctx, key, config)
	}
	if _, err := config(); err != nil {
		return nil
	}
	key = filter.KeyOf(data)
	// A container without the file works it out again.
	_ = os.WriteFile(path, hex.AppendEncode(nil, key[:]), 0o600)
	return r.filters.Get(ctx, key, config)
}
