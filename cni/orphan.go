package cni

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cridproject/crid/internal/sys"
	"k8s.io/klog/v2"
)

// When crid is killed, a plugin that it has called goes on. The DEL that the
// next crid calls for the same sandbox must come after that ADD, or what the ADD
// still makes stays for ever. So every plugin carries a mark in its environment;
// New looks for processes with it, and the first call for a sandbox waits for
// those of the sandbox, and at the time limit kills them. A crid that is left
// alone to end (systemd: KillMode=process) needs none of this.

// killWait is how long killed processes may take to be gone.
const killWait = 10 * time.Second

// markOf tells plugins of this Network from those of others.
func markOf(cacheDir string) string { return "CRID_CNI_CACHE=" + filepath.Clean(cacheDir) }

// orphans are plugins that an earlier crid has left at work.
type orphans struct {
	mu   sync.Mutex
	pids map[string][]int // by sandbox; +checklocks:mu
}

func (o *orphans) all() (ids []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for id := range o.pids {
		ids = append(ids, id)
	}
	return ids
}

func (o *orphans) of(id string) []int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.pids[id]
}

func (o *orphans) forget(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.pids, id)
}

// findOrphans looks at all processes; those that end meanwhile, or are not ours
// to look at, are none.
func findOrphans(mark string) map[string][]int {
	found := map[string][]int{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return found
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if id, ok := pluginOf(pid, mark); ok {
			found[id] = append(found[id], pid)
		}
	}
	return found
}

// pluginOf reports whether a process is a plugin with the mark, and its sandbox.
// What a plugin has started is none: it is in the plugin's process group, or has
// left it for a session of its own, as a daemon does that is to stay.
func pluginOf(pid int, mark string) (id string, ok bool) {
	environ, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ"))
	if err != nil {
		return "", false
	}
	env := strings.Split(string(environ), "\x00")
	if !slices.Contains(env, mark) {
		return "", false
	}
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return "", false
	}
	// After the name in parentheses: state, parent, process group, session.
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	self := strconv.Itoa(pid)
	if len(f) < 4 || f[2] != self || f[3] == self {
		return "", false
	}
	id = lookup(env, "CNI_CONTAINERID")
	return id, id != ""
}

// settle waits until what an earlier crid had plugins do for a sandbox is done.
//
// Preconditions: the caller holds n.ids for id.
func (n *Network) settle(ctx context.Context, id string) error {
	for _, pid := range n.orphans.of(id) {
		if err := n.outlive(ctx, pid, id); err != nil {
			return err
		}
	}
	n.orphans.forget(id)
	return nil
}

func (n *Network) outlive(ctx context.Context, pid int, id string) error {
	f, err := sys.PidfdOpen(pid)
	if err != nil {
		return nil // it is gone
	}
	defer func() { _ = f.Close() }()
	// Looked at again, with the descriptor open: it may be another by now.
	if was, ok := pluginOf(pid, n.exec.mark); !ok || was != id {
		return nil
	}
	klog.FromContext(ctx).Info("Waiting for a CNI plugin that was at work when crid was killed", "sandbox", id, "pid", pid)
	limited, cancel := context.WithTimeout(ctx, n.exec.limit)
	defer cancel()
	if sys.PidfdWait(limited, f) == nil {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	klog.FromContext(ctx).Info("Killing a CNI plugin that was at work when crid was killed", "sandbox", id, "pid", pid)
	_ = syscall.Kill(-pid, syscall.SIGKILL)
	limited, cancel = context.WithTimeout(ctx, killWait)
	defer cancel()
	return sys.PidfdWait(limited, f)
}
