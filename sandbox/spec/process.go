package spec

import (
	"path"
	"slices"
	"strings"
)

// defaultPath is PATH where neither image nor request has one: what Docker,
// containerd and CRI-O use.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// args merges entrypoint and command as Docker does: a command replaces both
// the image's entrypoint and its command, arguments replace only the latter.
// gRPC cannot tell an empty list from none, so empty means the image's.
func args(b *builder) error {
	entry, cmd := b.Container.Command, b.Container.Args
	if len(entry) == 0 {
		entry = b.Image.Entrypoint
		if len(cmd) == 0 {
			cmd = b.Image.Cmd
		}
	}
	all := slices.Concat(entry, cmd)
	if len(all) == 0 {
		return invalid("config.command", "no command specified, neither in the request nor in the image")
	}
	if all[0] == "" {
		return invalid("config.command", "the program's name is empty")
	}
	b.Spec.Process.Args = all
	return nil
}

// env is the defaults, over them the image's variables, over them the request's.
// Order is kept, a name occurs once, empty values stay.
func env(b *builder) error {
	e := envList{index: map[string]int{}}
	// First, so that an image may set its own.
	host := b.Sandbox.Hostname
	if host == "" {
		host = b.Host.NodeHostname
	}
	e.set("HOSTNAME", host)
	if b.Container.TTY {
		e.set("TERM", "xterm")
	}
	for _, kv := range b.Image.Env {
		// An entry without "=" sets nothing; Docker treats it so, and the
		// request is not to blame for the image.
		if name, value, ok := strings.Cut(kv, "="); ok && name != "" {
			e.set(name, value)
		}
	}
	for i, v := range b.Container.Env {
		if v.Name == "" || strings.ContainsAny(v.Name, "=\x00") || strings.Contains(v.Value, "\x00") {
			return invalid(indexed("config.envs", i, "key"),
				"%q: a name must be given, without '=', and no NUL in name or value", v.Name)
		}
		e.set(v.Name, v.Value)
	}
	e.setDefault("PATH", defaultPath)
	e.setDefault("HOME", b.User.Home)
	b.Spec.Process.Env = e.list
	return nil
}

// envList is variables in the order in which they were first set.
type envList struct {
	list  []string
	index map[string]int
}

func (e *envList) set(name, value string) {
	kv := name + "=" + value
	if i, ok := e.index[name]; ok {
		e.list[i] = kv
		return
	}
	e.index[name] = len(e.list)
	e.list = append(e.list, kv)
}

func (e *envList) setDefault(name, value string) {
	if _, ok := e.index[name]; !ok {
		e.set(name, value)
	}
}

// workingDir is the request's, the image's, or /. An image's relative one
// starts at the root, as with Docker.
func workingDir(b *builder) error {
	cwd := b.Container.WorkingDir
	switch {
	case cwd == "":
		cwd = path.Join("/", b.Image.WorkingDir)
	case !path.IsAbs(cwd):
		return invalid("config.working_dir", "%q is not an absolute path", cwd)
	}
	b.Spec.Process.Cwd = path.Clean(cwd)
	return nil
}

// limits are rlimits and the OOM score. A node without CAP_SYS_RESOURCE cannot
// lower the score: the wish is raised to what can be had, since a container
// that the kernel kills sooner is better than one that cannot start.
func limits(b *builder) error {
	b.Spec.Process.Rlimits = slices.Clone(b.Host.Rlimits)
	adj := b.Container.Resources.OOMScoreAdj
	if adj < -1000 || adj > 1000 {
		return invalid(fieldResources+"oom_score_adj", "%d is not between -1000 and 1000", adj)
	}
	score := int(adj)
	if score < b.Host.MinOOMScoreAdj {
		b.warn(fieldResources+"oom_score_adj", "%d raised to %d, the lowest that this node allows crid to set",
			score, b.Host.MinOOMScoreAdj)
		score = b.Host.MinOOMScoreAdj
	}
	b.Spec.Process.OOMScoreAdj = &score
	return nil
}
