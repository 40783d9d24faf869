package host

import (
	"errors"
	"fmt"
	"os/exec"
	"sync"

	"github.com/moby/profiles/apparmor"

	"github.com/cridproject/crid/sandbox/config"
	"github.com/cridproject/crid/sandbox/spec"
)

// AppArmorDefault is the name of the profile of containers that name none.
const AppArmorDefault = "crid-default"

// appArmorParser is the program that compiles profiles and loads them.
const appArmorParser = "apparmor_parser"

// AppArmor loads the default AppArmor profile into the kernel when the first
// container needs it, and again when it has been removed since, as reloading all
// of the node's profiles does. The zero value is ready; methods may be called
// concurrently.
type AppArmor struct {
	mu sync.Mutex // one at a time makes the profile

	// For tests; nil means the kernel's.
	list    func() string
	install func(name string) error
}

// Fill puts the default profile's name into in, or why there is none, if the
// container is to be confined by it. It runs a program of this node when the
// profile is not loaded.
func (a *AppArmor) Fill(in *spec.Input) {
	sec := in.Container.Security
	kind := sec.AppArmor.Kind
	if !in.Host.HasAppArmor || sec.Privileged || kind != "" && kind != config.ProfileRuntimeDefault {
		return
	}
	if err := a.ensure(); err != nil {
		in.Host.AppArmorDefault, in.AppArmorProblem = "", err.Error()
		return
	}
	in.Host.AppArmorDefault = AppArmorDefault
}

// ensure loads the profile unless it is loaded. It tries each time: an operator
// who installs what is missing need not restart crid.
func (a *AppArmor) ensure() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	list, install := a.list, a.install
	if list == nil {
		list, install = func() string { return readTrim(appArmorProfiles) }, installProfile
	}
	if appArmorLoaded(list(), AppArmorDefault) {
		return nil
	}
	if err := install(AppArmorDefault); err != nil {
		return err
	}
	if !appArmorLoaded(list(), AppArmorDefault) {
		return fmt.Errorf("%s has loaded %s, but the kernel does not list it", appArmorParser, AppArmorDefault)
	}
	return nil
}

func installProfile(name string) error {
	if _, err := exec.LookPath(appArmorParser); errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("the program %s is not in PATH; install the node's package apparmor", appArmorParser)
	}
	return apparmor.InstallDefault(name)
}
