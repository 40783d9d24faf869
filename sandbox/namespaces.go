package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cridproject/crid/internal/atomicfile"
	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/trace"
	"github.com/cridproject/crid/sandbox/config"
)

// checkSandbox refuses what could only fail later, and what the node cannot do.
func (m *Manager) checkSandbox(w *config.Sandbox) error {
	switch {
	case w.Name == "" || w.Namespace == "":
		return errkind.Errorf(errkind.Invalid, "config.metadata: name and namespace are required")
	case w.RuntimeHandler != "":
		return errkind.Errorf(errkind.Invalid, "runtime_handler: no handler %q", w.RuntimeHandler)
	case m.o.SystemdCgroup && w.CgroupParent != "" && !strings.HasSuffix(w.CgroupParent, ".slice"):
		return errkind.Errorf(errkind.Invalid, "config.linux.cgroup_parent: %q is not a slice, and the cgroup driver is systemd", w.CgroupParent)
	}
	if err := m.checkUserNS(w); err != nil {
		return err
	}
	for _, name := range sortedKeys(w.Sysctls) {
		if err := checkSysctl(name, w); err != nil {
			return err
		}
	}
	return nil
}

// checkSysctl refuses a sysctl that is not of a namespace which the sandbox has
// for itself: it would change the node.
func checkSysctl(name string, w *config.Sandbox) error {
	invalid := func(why string) error {
		return errkind.Errorf(errkind.Invalid, "config.linux.sysctls[%q]: %s", name, why)
	}
	dotted := name
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '/' {
		dotted = strings.ReplaceAll(name, "/", ".")
	}
	switch {
	case strings.HasPrefix(dotted, "net."):
		if w.HostNetwork() {
			return invalid("the sandbox uses the node's network, whose sysctls are not for pods to change")
		}
	case dotted == "kernel.domainname":
		if w.HostNetwork() {
			return invalid("the sandbox uses the node's host name, which is not for pods to change")
		}
	case dotted == "kernel.hostname":
		return invalid("the host name is set by config.hostname")
	case dotted == "kernel.sem", strings.HasPrefix(dotted, "kernel.shm"), strings.HasPrefix(dotted, "kernel.msg"),
		strings.HasPrefix(dotted, "fs.mqueue."):
		if w.Namespaces.IPC == config.NamespaceNode {
			return invalid("the sandbox uses the node's IPC namespace, whose sysctls are not for pods to change")
		}
	default:
		return invalid("it is not namespaced: it would change the node")
	}
	return nil
}

// defaultSysctls are what other runtimes give to pods with a network of their
// own: without capabilities a program can listen on low ports, and ping.
var defaultSysctls = map[string]string{
	"net.ipv4.ip_unprivileged_port_start": "0",
	pingGroupRange:                        "0 2147483647",
}

// makeNamespaces pins the namespaces that the sandbox does not share with the node.
func (m *Manager) makeNamespaces(ctx context.Context, s *sandbox) error {
	w := &s.config
	p := Pins{Sysctls: w.Sysctls}
	if !w.HostNetwork() {
		p.Net, p.UTS = m.netNS(s.id), m.sandboxFile(s.id, fileUTS)
		p.Hostname = m.hostname(w)
		p.Defaults = defaultSysctls
	}
	if w.Namespaces.IPC != config.NamespaceNode {
		p.IPC = m.sandboxFile(s.id, fileIPC)
	}
	if p.UserMap = w.Namespaces.UserMap; p.UserMap != nil {
		p.User = m.sandboxFile(s.id, fileUser)
	}
	if p.Net == "" && p.IPC == "" {
		return nil
	}
	_, end := trace.Start(ctx, "sandbox.namespaces")
	err := m.o.Kernel.Pin(p)
	end(err)
	if err != nil {
		return err
	}
	return m.step("sandbox.run.namespaces")
}

func (m *Manager) hostname(w *config.Sandbox) string {
	if w.Hostname != "" {
		return w.Hostname
	}
	return m.o.Host.NodeHostname
}

// makeFiles makes the sandbox's own files and its /dev/shm.
func (m *Manager) makeFiles(ctx context.Context, s *sandbox) (err error) {
	ctx, end := trace.Start(ctx, "sandbox.files")
	defer func() { end(err) }()
	w := &s.config
	if err := os.MkdirAll(m.sandboxDir(s.id), 0o711); err != nil {
		return fmt.Errorf("make the sandbox's folder: %w", err)
	}
	uid, gid := root(w)
	hosts, err := m.etc(fileHosts)
	if err != nil {
		return err
	}
	resolvConf, err := m.resolvConf(w.DNS)
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{
		fileHosts:      hosts,
		fileResolvConf: resolvConf,
		fileHostname:   []byte(m.hostname(w) + "\n"),
	} {
		// With exactly this mode: crid's umask must not keep the pod's users from reading.
		if err := atomicfile.Write(m.sandboxFile(s.id, name), data, 0o644, atomicfile.NoSync); err != nil {
			return fmt.Errorf("make the sandbox's %s: %w", name, err)
		}
		if uid == 0 && gid == 0 {
			continue
		}
		if err := os.Lchown(m.sandboxFile(s.id, name), int(uid), int(gid)); err != nil {
			return fmt.Errorf("make the sandbox's %s: %w", name, err)
		}
	}
	if err := m.step("sandbox.run.files"); err != nil {
		return err
	}
	if w.Namespaces.IPC != config.NamespaceNode {
		shm := m.sandboxFile(s.id, fileShm)
		if err := os.MkdirAll(shm, 0o755); err != nil {
			return fmt.Errorf("make the sandbox's /dev/shm: %w", err)
		}
		if err := m.o.Kernel.MountShm(shm, uid, gid); err != nil {
			return err
		}
		if err := m.step("sandbox.run.shm"); err != nil {
			return err
		}
	}
	if w.LogDirectory == "" {
		return nil
	}
	return m.paths.do(ctx, m.o.HostPathTimeout, string(w.LogDirectory), func() error {
		return makeLogDirectory(string(w.LogDirectory))
	})
}

// etc is a file of the node's /etc; empty when it is missing.
func (m *Manager) etc(name string) ([]byte, error) {
	data, err := os.ReadFile(filepath.Join(m.o.EtcDir, name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("copy the node's %s: %w", name, err)
	}
	return data, nil
}

// resolvConf is the contents of a pod's resolv.conf: a copy of the node's, or
// exactly what was asked for, even if that is nothing.
func (m *Manager) resolvConf(d *config.DNS) ([]byte, error) {
	if d == nil {
		return m.etc(fileResolvConf)
	}
	var b bytes.Buffer
	if len(d.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(d.Searches, " "))
	}
	for _, server := range d.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	if len(d.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(d.Options, " "))
	}
	return b.Bytes(), nil
}

// removeParts takes away everything of a sandbox that is not a process and not
// the network's: namespaces and mounts. All paths follow from the ID, so that
// it does not matter how much of the sandbox was made. Idempotent.
func (m *Manager) removeParts(s *sandbox) error {
	if err := m.step("sandbox.down.namespaces"); err != nil {
		return err
	}
	var errs []error
	for _, name := range []string{fileIPC, fileUTS, fileUser} {
		errs = append(errs, m.o.Kernel.Unpin(m.sandboxFile(s.id, name)))
	}
	errs = append(errs,
		m.o.Kernel.Unpin(m.netNS(s.id)),
		m.o.Kernel.Unmount(m.sandboxFile(s.id, fileShm)))
	return errors.Join(errs...)
}

// removeFiles removes the sandbox's folder.
//
// Preconditions: removeParts has returned nil: what is mounted is not removed
// with the folder, but what is in it would be.
func (m *Manager) removeFiles(s *sandbox) error {
	if err := m.step("sandbox.remove.files"); err != nil {
		return err
	}
	if err := os.RemoveAll(m.sandboxDir(s.id)); err != nil {
		return fmt.Errorf("remove the sandbox's folder: %w", err)
	}
	return nil
}
