package sandbox

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
)

// With CRID_VERIFY=1, after each operation what clients see, what is recorded and
// what lives in memory must be the same. A difference is a bug, and a panic.

func (m *Manager) check(s *sandbox) {
	if !m.verify {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	m.checkRecord(sandboxKind, string(s.id), &s.rec, s.gone, s.unsaved || s.corrupt)
	seen := s.status.Load()
	s.publish()
	if now := s.status.Load(); !reflect.DeepEqual(seen, now) {
		panic(fmt.Sprintf("sandbox: clients see sandbox %s as %+v, it is %+v", s.id, seen, now))
	}
}

func (m *Manager) checkContainer(c *container) {
	if !m.verify {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	m.checkRecord(containerKind, string(c.id), &c.rec, c.gone, c.unsaved || c.corrupt)
	seen := c.status.Load()
	c.publish()
	if now := c.status.Load(); !reflect.DeepEqual(seen, now) {
		panic(fmt.Sprintf("sandbox: clients see container %s as %+v, it is %+v", c.id, seen, now))
	}
	if c.gone || !c.rec.State.lives() && c.rec.State != ContainerCreating {
		if c.hold != nil && c.rec.State != ContainerRemoving {
			panic(fmt.Sprintf("sandbox: descriptors of container %s are kept though it is %s", c.id, c.rec.State))
		}
	}
}

// checkRecord compares a record in memory with the one on disk. unsaved says that
// it could not be written.
func (m *Manager) checkRecord(kind, id string, rec any, gone, unsaved bool) {
	if unsaved {
		return
	}
	want, err := json.Marshal(rec)
	if err != nil {
		panic("sandbox: " + err.Error())
	}
	got, err := os.ReadFile(m.store.path(kind, id))
	switch {
	case gone && err == nil:
		panic(fmt.Sprintf("sandbox: %s %s is gone, its record is not", kind, id))
	case !gone && (err != nil || !bytes.Equal(bytes.TrimSpace(got), want)):
		panic(fmt.Sprintf("sandbox: record of %s %s is %s (%v), want %s", kind, id, got, err, want))
	}
}
