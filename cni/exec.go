package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/failpoint"
	"github.com/cridproject/crid/internal/trace"
	"k8s.io/klog/v2"
)

const (
	maxResult  = 4 << 20 // bytes of a plugin's stdout
	maxMessage = 4 << 10 // bytes of a plugin's stderr, or message, that are shown

	// pipeGrace is how long a plugin's pipes are read on after the plugin is gone,
	// where something that it started holds them open.
	pipeGrace = time.Second

	busyWait  = 200 * time.Millisecond
	busyTries = 10
)

// runner runs plugin programs for libcni. Each gets a process group of its own
// and a time limit, at which the whole group is killed: what hangs is often
// not the plugin but a program that it has started.
type runner struct {
	version.PluginDecoder
	binDirs []string
	limit   time.Duration
	mark    string // environment variable that every plugin gets; see orphan.go
	onCall  func(plugin, verb string, took time.Duration, err error)
}

// FindInPath is part of libcni's interface.
func (r *runner) FindInPath(plugin string, dirs []string) (string, error) {
	path, err := invoke.FindInPath(plugin, dirs)
	if err != nil {
		return "", errkind.Errorf(errkind.Unavailable,
			"CNI plugin %q is not in %s: install it there", plugin, strings.Join(dirs, " or "))
	}
	return path, nil
}

// ExecPlugin is part of libcni's interface: it runs a plugin with conf as its
// stdin and returns its stdout. Its errors are of type *pluginError.
func (r *runner) ExecPlugin(ctx context.Context, path string, conf []byte, env []string) (out []byte, err error) {
	c := pluginCall{path: path, verb: lookup(env, "CNI_COMMAND"), id: lookup(env, "CNI_CONTAINERID"), began: time.Now()}
	ctx, end := trace.Start(ctx, "cni.plugin", "plugin", c.name(), "verb", c.verb)
	defer func() { end(err) }()
	if err := hit(c.verb, "before"); err != nil {
		return nil, c.failed(errkind.Other, err)
	}
	out, err = c.run(ctx, r.limit, conf, append(env, r.mark))
	took := time.Since(c.began)
	r.onCall(c.name(), c.verb, took, err)
	klog.FromContext(ctx).V(4).Info("Ran CNI plugin", "plugin", c.name(), "verb", c.verb, "sandbox", c.id, "duration", took, "err", err)
	if err != nil {
		return nil, err
	}
	if err := hit(c.verb, "after"); err != nil {
		return nil, c.failed(errkind.Other, err)
	}
	return out, nil
}

// hit is the failpoint cni.<verb>.<moment>. Only the calls that a pod's life
// consists of have them.
func hit(verb, moment string) error {
	switch verb {
	case "ADD", "DEL":
		return failpoint.Hit("cni." + strings.ToLower(verb) + "." + moment)
	}
	return nil
}

func lookup(env []string, key string) string {
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, key+"="); ok {
			return v
		}
	}
	return ""
}

// pluginCall is one run of one plugin.
type pluginCall struct {
	path, verb, id string
	began          time.Time
}

func (c *pluginCall) name() string { return filepath.Base(c.path) }

func (c *pluginCall) run(ctx context.Context, limit time.Duration, conf []byte, env []string) ([]byte, error) {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	stdout, stderr := &bounded{max: maxResult}, &bounded{max: maxMessage}
	err := c.exec(limited, conf, env, stdout, stderr)
	// A busy program is one that is being replaced just now.
	for try := 1; errors.Is(err, syscall.ETXTBSY) && try < busyTries; try++ {
		select {
		case <-limited.Done():
		case <-time.After(busyWait):
			err = c.exec(limited, conf, env, stdout, stderr)
		}
	}
	switch {
	case err == nil && stdout.over:
		return nil, c.failed(errkind.Unavailable, fmt.Errorf("its answer is longer than %d bytes", maxResult))
	case err == nil:
		return stdout.Bytes(), nil
	case ctx.Err() != nil:
		kind := errkind.Unavailable
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			kind = errkind.Timeout
		}
		return nil, c.failed(kind, fmt.Errorf("given up and killed: %w%s", ctx.Err(), quote(stderr)))
	case limited.Err() != nil:
		return nil, c.failed(errkind.Timeout, fmt.Errorf("not done within %v and killed%s", limit, quote(stderr)))
	}
	return c.answered(err, stdout, stderr)
}

// exec starts the program and waits for it, or for its end at the limit. An
// exit that left someone behind holding the pipes counts as what it was.
func (c *pluginCall) exec(ctx context.Context, conf []byte, env []string, stdout, stderr *bounded) error {
	stdout.reset()
	stderr.reset()
	cmd := exec.CommandContext(ctx, c.path)
	cmd.Env = env
	cmd.Stdin = bytes.NewReader(conf)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = pipeGrace
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) && ctx.Err() == nil {
		return nil
	}
	return err
}

// answered is what a plugin that has failed says of it.
func (c *pluginCall) answered(err error, stdout, stderr *bounded) ([]byte, error) {
	var said types.Error
	if json.Unmarshal(stdout.Bytes(), &said) != nil || said.Msg == "" {
		return nil, c.failed(errkind.Unavailable, fmt.Errorf("it ended with %w%s", err, quote(stderr)))
	}
	// Plugins may well be older than the configuration that they are used in. The
	// two newest verbs are optional: not to know them is not to object.
	if c.verb == "STATUS" || c.verb == "GC" {
		unknown := said.Code == types.ErrInvalidEnvironmentVariables && strings.HasPrefix(said.Msg, "unknown CNI_COMMAND")
		if unknown || said.Code == types.ErrIncompatibleCNIVersion {
			return nil, nil
		}
	}
	return nil, c.failed(errkind.Unavailable, &said)
}

func (c *pluginCall) failed(kind errkind.Kind, err error) error {
	return &pluginError{call: *c, took: time.Since(c.began), kind: kind, err: err}
}

// pluginError says which plugin failed at what, after how long, and its words.
type pluginError struct {
	call pluginCall
	took time.Duration
	kind errkind.Kind
	err  error
}

func (e *pluginError) Error() string {
	return fmt.Sprintf("CNI plugin %s, %s, after %v: %v", e.call.name(), e.call.verb, e.took.Round(time.Millisecond), e.err)
}

func (e *pluginError) Unwrap() error { return e.err }

// plain takes off what libcni wraps around a plugin's error, which says the
// same in more words, and sees to it that the error has a kind.
func plain(err error) error {
	var p *pluginError
	if errors.As(err, &p) {
		return errkind.New(p.kind, p)
	}
	var k *errkind.Error
	if errors.As(err, &k) {
		return k
	}
	return err
}

// quote is what a plugin wrote to stderr, for the end of a message.
func quote(b *bounded) string {
	s := strings.TrimSpace(string(b.Bytes()))
	if s == "" {
		return ""
	}
	return fmt.Sprintf("; it wrote: %q", s)
}

// bounded keeps the first max bytes written to it.
type bounded struct {
	max  int
	over bool
	buf  bytes.Buffer
}

func (b *bounded) Write(p []byte) (int, error) {
	n := len(p)
	if room := b.max - b.buf.Len(); n > room {
		b.over = true
		p = p[:room]
	}
	b.buf.Write(p)
	return n, nil
}

func (b *bounded) Bytes() []byte { return b.buf.Bytes() }

func (b *bounded) reset() {
	b.over = false
	b.buf.Reset()
}
