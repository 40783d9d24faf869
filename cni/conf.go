package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/cridproject/crid/internal/errkind"
)

// extensions of files that are network configurations. What is in a file, a
// list of plugins or a single one, is seen from its contents.
var extensions = [...]string{".conf", ".conflist", ".json"}

// loadDir reads the network configuration of dir: of the files with a known
// extension the one whose name sorts first. A file that cannot be used is an
// error naming it, and the next file is not used in its place: pods on a
// network that nobody chose for them would be worse than no pods.
func loadDir(dir string) (file string, list *libcni.NetworkConfigList, err error) {
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", nil, errkind.Errorf(errkind.Unavailable, "read CNI configuration folder: %w", err)
	}
	for _, e := range entries {
		if !isConf(e) {
			continue
		}
		file = filepath.Join(dir, e.Name())
		list, err = loadFile(file)
		if err != nil {
			return file, nil, errkind.Errorf(errkind.Unavailable, "CNI configuration %s: %w", file, err)
		}
		return file, list, nil
	}
	return "", nil, errkind.Errorf(errkind.Unavailable,
		"no CNI configuration in %s: install a network add-on, or put a .conflist file there", dir)
}

func isConf(e fs.DirEntry) bool {
	// A leading dot is what editors and atomic writers name their unfinished files by.
	if e.IsDir() || strings.HasPrefix(e.Name(), ".") {
		return false
	}
	for _, ext := range extensions {
		if filepath.Ext(e.Name()) == ext {
			return true
		}
	}
	return false
}

// loadFile reads one configuration and completes it: a single plugin becomes a
// list of one, and plugins kept in a folder of their own (specification 1.1)
// are taken in. Bytes of the result says all of it.
func loadFile(file string) (*libcni.NetworkConfigList, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var shape struct {
		Plugins *json.RawMessage `json:"plugins"`
		Type    *string          `json:"type"`
	}
	if err := json.Unmarshal(b, &shape); err != nil {
		return nil, fmt.Errorf("parse JSON: %w", err)
	}
	var list *libcni.NetworkConfigList
	if shape.Plugins == nil && shape.Type != nil {
		plugin, err := libcni.NetworkPluginConfFromBytes(b)
		if err != nil {
			return nil, err
		}
		list = &libcni.NetworkConfigList{
			Name:       plugin.Network.Name,
			CNIVersion: plugin.Network.CNIVersion,
			Plugins:    []*libcni.PluginConfig{plugin},
		}
	} else if list, err = libcni.NetworkConfFromFile(file); err != nil {
		return nil, err
	}
	if err := checkList(list); err != nil {
		return nil, err
	}
	if list.Bytes, err = encodeList(list); err != nil {
		return nil, err
	}
	return list, nil
}

// checkList finds at load time what would make every call fail later.
func checkList(list *libcni.NetworkConfigList) error {
	if err := utils.ValidateNetworkName(list.Name); err != nil {
		return fmt.Errorf("network name %q: %w", list.Name, err)
	}
	for _, p := range list.Plugins {
		if strings.ContainsRune(p.Network.Type, os.PathSeparator) {
			return fmt.Errorf("plugin type %q: must be a file name", p.Network.Type)
		}
	}
	if list.CNIVersion == "" {
		return nil // the specification's default, 0.1.0
	}
	newer, err := version.GreaterThan(list.CNIVersion, version.Current())
	if err != nil {
		return fmt.Errorf("cniVersion %q: %w", list.CNIVersion, err)
	}
	if newer {
		return fmt.Errorf("cniVersion %s is not supported: the newest that is, is %s", list.CNIVersion, version.Current())
	}
	return nil
}

// encodeList says everything that is in list in one file's form.
func encodeList(list *libcni.NetworkConfigList) ([]byte, error) {
	whole := struct {
		Name         string            `json:"name"`
		CNIVersion   string            `json:"cniVersion,omitempty"`
		DisableCheck bool              `json:"disableCheck,omitempty"`
		DisableGC    bool              `json:"disableGC,omitempty"`
		Inlined      bool              `json:"loadOnlyInlinedPlugins"`
		Plugins      []json.RawMessage `json:"plugins"`
	}{Name: list.Name, CNIVersion: list.CNIVersion, DisableCheck: list.DisableCheck, DisableGC: list.DisableGC, Inlined: true}
	for _, p := range list.Plugins {
		whole.Plugins = append(whole.Plugins, p.Bytes)
	}
	return json.Marshal(whole)
}
