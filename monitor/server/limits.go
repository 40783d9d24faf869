package server

import (
	"bufio"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// limits is what this process may give to a container. Without CAP_SYS_RESOURCE,
// as on nested and rootless nodes, nobody can lower oom_score_adj or raise a
// hard rlimit; a container gets the nearest that is possible.
type limits struct {
	log         klog.Logger
	free        bool // has CAP_SYS_RESOURCE
	oomScoreAdj int  // the lowest
	hard        map[string]uint64

	saidOOM, saidRlimit *sync.Once
}

func readLimits(log klog.Logger) limits {
	l := limits{
		log: log, free: hasCapability(unix.CAP_SYS_RESOURCE), hard: map[string]uint64{},
		saidOOM: new(sync.Once), saidRlimit: new(sync.Once),
	}
	b, _ := os.ReadFile("/proc/self/oom_score_adj")
	l.oomScoreAdj, _ = strconv.Atoi(strings.TrimSpace(string(b)))
	for name, n := range rlimits {
		var r unix.Rlimit
		if err := unix.Getrlimit(n, &r); err == nil {
			l.hard[name] = r.Max
		}
	}
	return l
}

// clamp changes what would fail in spec to what is possible.
func (l *limits) clamp(spec *specs.Spec) {
	if l.free || spec.Process == nil {
		return
	}
	if p := spec.Process.OOMScoreAdj; p != nil {
		score := l.oom(*p)
		spec.Process.OOMScoreAdj = &score
	}
	for i := range spec.Process.Rlimits {
		r := &spec.Process.Rlimits[i]
		hard, ok := l.hard[r.Type]
		if !ok || r.Hard <= hard {
			continue
		}
		l.saidRlimit.Do(func() {
			l.log.Info("Containers get a lower rlimit than they ask for: this process has no CAP_SYS_RESOURCE",
				"rlimit", r.Type, "wanted", r.Hard, "got", hard)
		})
		r.Hard = hard
		r.Soft = min(r.Soft, hard)
	}
}

// oom is the oom_score_adj nearest to wanted that this process may set.
func (l *limits) oom(wanted int) int {
	if l.free || wanted >= l.oomScoreAdj {
		return wanted
	}
	l.saidOOM.Do(func() {
		l.log.Info("Containers get a higher oom_score_adj than they ask for: this process has no CAP_SYS_RESOURCE",
			"wanted", wanted, "got", l.oomScoreAdj)
	})
	return l.oomScoreAdj
}

// slot waits for room to start a process: more at a time than there are
// processors only cost memory. Nobody waits long, because one that hangs in
// the kernel must not stop the others.
func (r *ociRuntime) slot() (release func()) {
	select {
	case r.slots <- struct{}{}:
		return func() { <-r.slots }
	default:
	}
	limit := time.NewTimer(time.Second)
	defer limit.Stop()
	select {
	case r.slots <- struct{}{}:
		return func() { <-r.slots }
	case <-limit.C:
		return func() {}
	}
}

// hasCapability reports whether this process has a capability in effect.
func hasCapability(n int) bool {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return false
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), "CapEff:"); ok {
			caps, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			return err == nil && caps&(1<<n) != 0
		}
	}
	return false
}

// inUserNamespace reports whether this process is in a user namespace other than
// the machine's first.
func inUserNamespace() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	f := strings.Fields(string(b))
	return err == nil && (len(f) != 3 || f[0] != "0" || f[1] != "0" || f[2] != "4294967295")
}

// rlimits is the kernel's numbers of what an OCI spec names.
var rlimits = map[string]int{
	"RLIMIT_CPU":        unix.RLIMIT_CPU,
	"RLIMIT_FSIZE":      unix.RLIMIT_FSIZE,
	"RLIMIT_DATA":       unix.RLIMIT_DATA,
	"RLIMIT_STACK":      unix.RLIMIT_STACK,
	"RLIMIT_CORE":       unix.RLIMIT_CORE,
	"RLIMIT_RSS":        unix.RLIMIT_RSS,
	"RLIMIT_NPROC":      unix.RLIMIT_NPROC,
	"RLIMIT_NOFILE":     unix.RLIMIT_NOFILE,
	"RLIMIT_MEMLOCK":    unix.RLIMIT_MEMLOCK,
	"RLIMIT_AS":         unix.RLIMIT_AS,
	"RLIMIT_LOCKS":      unix.RLIMIT_LOCKS,
	"RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING,
	"RLIMIT_MSGQUEUE":   unix.RLIMIT_MSGQUEUE,
	"RLIMIT_NICE":       unix.RLIMIT_NICE,
	"RLIMIT_RTPRIO":     unix.RLIMIT_RTPRIO,
	"RLIMIT_RTTIME":     unix.RLIMIT_RTTIME,
}
