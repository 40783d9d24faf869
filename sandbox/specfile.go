package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/sandbox/config"
)

// The spec of a container is kept for people who look at it: in a file beside
// the record, because it is ten times as long and crid itself does not need it.
//
//	root/containers/<id>.spec

const specSuffix = ".spec"

func (st *store) specPath(id string) string {
	return strings.TrimSuffix(st.path(containerKind, id), ".json") + specSuffix
}

// putSpec is called while the record says that the container is being made: a
// file that a crash has cut is removed with the container.
func (st *store) putSpec(id string, spec []byte) error {
	if err := os.WriteFile(st.specPath(id), spec, recordPerm); err != nil {
		return fmt.Errorf("keep spec of container %s: %w", id, err)
	}
	return nil
}

// deleteSpec goes before the record, so that no spec is without one. Idempotent.
func (st *store) deleteSpec(id string) error {
	if err := os.Remove(st.specPath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete spec of container %s: %w", id, err)
	}
	return nil
}

// ContainerSpec is the OCI spec that the container was made from, as JSON. NotFound
// when there is no such container.
func (m *Manager) ContainerSpec(id string) (json.RawMessage, error) {
	c, err := m.findContainer(id)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(m.store.specPath(string(c.id)))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, errkind.Errorf(errkind.NotFound, "container %s has no spec any more", c.id.Short())
	case err != nil:
		return nil, fmt.Errorf("read spec of container %s: %w", c.id.Short(), err)
	}
	return data, nil
}

// SandboxSpec is what a spec of the sandbox would be, if it had a process: scripts
// look there for its namespaces, which are pinned at the paths given. NotFound when
// there is no such sandbox.
func (m *Manager) SandboxSpec(id string) (json.RawMessage, error) {
	s, err := m.findSandbox(id)
	if err != nil {
		return nil, err
	}
	r := s.record()
	spec := specs.Spec{
		Version:     specs.Version,
		Annotations: s.config.Annotations,
		Linux:       &specs.Linux{Sysctl: s.config.Sysctls, CgroupsPath: m.cgroupParent(&s.config)},
	}
	add := func(kind specs.LinuxNamespaceType, path string) {
		if !r.Released {
			spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: kind, Path: path})
		}
	}
	if s.config.Namespaces.UserMap != nil {
		add(specs.UserNamespace, m.sandboxFile(s.id, fileUser))
	}
	if !s.config.HostNetwork() {
		spec.Hostname = m.hostname(&s.config)
		add(specs.NetworkNamespace, m.netNS(s.id))
		add(specs.UTSNamespace, m.sandboxFile(s.id, fileUTS))
	}
	if s.config.Namespaces.IPC != config.NamespaceNode {
		add(specs.IPCNamespace, m.sandboxFile(s.id, fileIPC))
	}
	if r.Holder != nil && r.Holder.PID != 0 {
		add(specs.PIDNamespace, pidNS(r.Holder.PID))
	}
	return json.Marshal(spec)
}

// cleanSpecs removes specs whose record has gone by other ways than crid's.
func (st *store) cleanSpecs() error {
	found, err := filepath.Glob(st.specPath("*"))
	if err != nil {
		return fmt.Errorf("look for specs: %w", err)
	}
	for _, path := range found {
		id := strings.TrimSuffix(filepath.Base(path), specSuffix)
		if _, err := os.Lstat(st.path(containerKind, id)); errors.Is(err, fs.ErrNotExist) {
			if err := st.deleteSpec(id); err != nil {
				return err
			}
		}
	}
	return nil
}
