package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/monitor"
)

func (s *Server) update(ctx context.Context, r monitor.UpdateRequest) (reply, error) {
	var res specs.LinuxResources
	if err := json.Unmarshal(r.Resources, &res); err != nil {
		return reply{}, errkind.Errorf(errkind.Invalid, "resources of container %s: %w", r.ID, err)
	}
	unlock, err := s.ops.Lock(ctx, r.ID)
	if err != nil {
		return reply{}, err
	}
	defer unlock()
	c, err := s.table.container(r.ID)
	if err != nil {
		return reply{}, err
	}
	if err := c.wants("update", stateCreated, stateRunning); err != nil {
		return reply{}, err
	}
	if p := r.OOMScoreAdj; p != nil {
		score := s.runtime.limits.oom(*p)
		r.OOMScoreAdj = &score
	}
	if err := s.runtime.update(c, &res, r.OOMScoreAdj); err != nil {
		return reply{}, err
	}
	if p := r.OOMScoreAdj; p != nil {
		if err := c.cgroup.adjustOOM(c.pid, *p); err != nil {
			// The limits are set, and what became of this one is in the reply.
			klog.FromContext(ctx).Error(err, "Could not change oom_score_adj of a container", "container", c.id)
		}
	}
	return reply{body: monitor.UpdateReply{Applied: c.cgroup.applied(c.pid, &res, r.OOMScoreAdj)}}, nil
}

// before is what sets back all that want changes.
func (c *cgroup) before(want *specs.LinuxResources) *specs.LinuxResources {
	was := c.values(want)
	if cgroups.IsCgroup2UnifiedMode() && want.CPU != nil && want.CPU.Shares != nil {
		unified := maps.Clone(was.Unified)
		if unified == nil {
			unified = map[string]string{}
		}
		unified["cpu.weight"] = c.text("cpu", "cpu.weight", "100")
		was.Unified = unified
	}
	return was
}

// fits refuses a memory limit below what is in use, for with v2 the kernel would
// make room with the OOM killer; with v1 it refuses by itself. Files that were read
// and not used lately do not count: the kernel drops them.
func (c *cgroup) fits(m *specs.LinuxMemory) error {
	if m == nil || m.Limit == nil || *m.Limit < 0 || !cgroups.IsCgroup2UnifiedMode() {
		return nil
	}
	used, err := strconv.ParseInt(c.text("memory", "memory.current", ""), 10, 64)
	if err != nil {
		return nil //nolint:nilerr // without the controller there is nothing to set either
	}
	stat, _ := os.ReadFile(filepath.Join(c.m.Path(""), "memory.stat"))
	for line := range strings.Lines(string(stat)) {
		if v, ok := strings.CutPrefix(line, "inactive_file "); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			used = max(0, used-n)
		}
	}
	if *m.Limit < used {
		return errkind.Errorf(errkind.BadState, "update resources: a memory limit of %d bytes is less than what the container uses, %d", *m.Limit, used)
	}
	return nil
}

// adjustOOM gives score to the processes that have the first one's until now, and
// so have not chosen their own. A few rounds, for those that fork meanwhile.
func (c *cgroup) adjustOOM(first, score int) error {
	was, err := oomScoreAdj(first)
	if err != nil || was == score {
		return err
	}
	for range 5 {
		pids, err := c.pids()
		if err != nil {
			return fmt.Errorf("list processes of cgroup: %w", err)
		}
		changed := false
		for _, pid := range pids {
			if now, err := oomScoreAdj(pid); err != nil || now != was {
				continue
			}
			err := os.WriteFile(oomFile(pid), []byte(strconv.Itoa(score)), 0)
			if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("process %d: %w", pid, err)
			}
			changed = true
		}
		if !changed {
			return nil
		}
	}
	return nil
}
