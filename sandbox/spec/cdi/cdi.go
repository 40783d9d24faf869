//lint:file-ignore SA1019 vendors still write prestart hooks

// Package cdi gives containers the devices of the Container Device Interface:
// what a vendor's spec file says belongs to a device (device nodes, mounts,
// variables, hooks, groups) goes into a container's OCI spec.
//
// Spec files are read when they are needed, not kept and watched: only pods with
// such devices pay for them, and a container gets what the files say at its
// creation, also when it comes right after a change, which a watch may not have
// told yet. Methods may be called concurrently.
package cdi

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"k8s.io/klog/v2"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/cridproject/crid/internal/errkind"
)

// Folders are the folders of spec files. In each of them files ending in .json and
// .yaml count; a device in a later folder replaces one of its name in an earlier.
type Folders struct {
	dirs []string

	mu     sync.Mutex
	broken map[string]string // +checklocks:mu; what was last logged
}

// New is the spec files in dirs, which need not exist. None means that there are
// no devices.
func New(dirs []string) *Folders {
	setChecks()
	return &Folders{dirs: slices.Clone(dirs)}
}

// Inject puts the devices, named as in "vendor.com/class=name", into a container's
// spec. It may wait for file systems. The kind is Invalid for a device that no file
// has, and for one that cannot be used; the spec is then not to be used.
func (f *Folders) Inject(log klog.Logger, spec *specs.Spec, devices []string) error {
	if len(devices) == 0 {
		return nil
	}
	if len(f.dirs) == 0 {
		return errkind.Errorf(errkind.Invalid, "CDI devices %s: this node has none, as cdi_spec_dirs is empty", strings.Join(devices, ", "))
	}
	cache, broken := f.read()
	f.report(log, broken)
	missing, err := cache.InjectDevices(spec, devices...)
	switch {
	case len(missing) > 0:
		return errkind.Errorf(errkind.Invalid, "CDI devices %s: no file in %s has them%s",
			strings.Join(missing, ", "), strings.Join(f.dirs, ", "), sentence(broken))
	case err != nil:
		return errkind.Errorf(errkind.Invalid, "CDI devices %s: %w", strings.Join(devices, ", "), err)
	}
	limitHooks(spec.Hooks)
	return nil
}

// hookLimit, in seconds, is for hooks whose file has no timeout: one that hangs
// would hold its container for ever, which could not even be removed.
const hookLimit = 60

func limitHooks(h *specs.Hooks) {
	if h == nil {
		return
	}
	//nolint:staticcheck // Prestart is deprecated, and in vendors' files
	for _, list := range [][]specs.Hook{h.Prestart, h.CreateRuntime, h.CreateContainer, h.StartContainer, h.Poststart, h.Poststop} {
		for i := range list {
			if list[i].Timeout == nil {
				limit := hookLimit
				list[i].Timeout = &limit
			}
		}
	}
}

// sentence says which files could not be read, for an error that they may explain.
func sentence(broken map[string]string) string {
	text := ""
	for _, path := range slices.Sorted(maps.Keys(broken)) {
		text += fmt.Sprintf("; %s cannot be used: %s", path, broken[path])
	}
	return text
}

// Status is what the folders have now, for people.
type Status struct {
	Dirs    []string          `json:"dirs"`
	Devices []string          `json:"devices"`
	Broken  map[string]string `json:"broken,omitempty"` // file or folder → why it is not used
}

// Status reads the spec files, and logs what is wrong with them, if that is news.
func (f *Folders) Status(log klog.Logger) Status {
	cache, broken := f.read()
	f.report(log, broken)
	return Status{Dirs: f.dirs, Devices: cache.ListDevices(), Broken: broken}
}

// read reads the spec files. A broken one costs only its own devices, and a folder
// that cannot be read, its own.
func (f *Folders) read() (cache *cdi.Cache, broken map[string]string) {
	broken = map[string]string{}
	var dirs []string
	for _, dir := range f.dirs {
		// The library stops at such a folder, and says nothing.
		if _, err := os.ReadDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			broken[dir] = err.Error()
			continue
		}
		dirs = append(dirs, dir)
	}
	cache, _ = cdi.NewCache(cdi.WithAutoRefresh(false), cdi.WithSpecDirs(dirs...)) // its error is always nil
	for path, errs := range cache.GetErrors() {
		var why []string
		for _, err := range errs {
			why = append(why, err.Error())
		}
		broken[path] = strings.Join(why, "; ")
	}
	return cache, broken
}

func (f *Folders) report(log klog.Logger, broken map[string]string) {
	f.mu.Lock()
	was := f.broken
	f.broken = broken
	f.mu.Unlock()
	for path, why := range broken {
		if was[path] != why {
			log.Info("Left out CDI specs, their devices cannot be used", "path", path, "reason", why)
		}
	}
}
