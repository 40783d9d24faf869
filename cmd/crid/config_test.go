package main

import (
	"fmt"
	"testing"

	"github.com/cridproject/crid/internal/testutil"
)

// TestConfigurationPage: docs/configuration.md is what the program prints.
func TestConfigurationPage(t *testing.T) {
	text, err := Default().documented()
	if err != nil {
		t.Fatal(err)
	}
	page := fmt.Sprintf("# Configuration\n\n"+
		"crid reads `%s`, or the file that `--config` names. An unknown key or a value that is\n"+
		"not allowed is an error with its line; `crid config check` looks without serving,\n"+
		"also at what it names: the signature policy, and the file system of `root` if there are limits.\n\n"+
		"This page is the output of `crid config default`, kept so by a test of cmd/crid.\n\n"+
		"```toml\n%s```\n", defaultConfigFile, text)
	testutil.Golden(t, "../../docs/configuration.md", []byte(page))
}

func TestLineOf(t *testing.T) {
	const text = "# root = 1\nroot = 1\n[cni] # the network\ntimeout=1\n\n[registry]\ntimeout = 2\n"
	for key, want := range map[string]int{"root": 2, "cni.timeout": 4, "registry.timeout": 7, "cni.absent": 1} {
		if got := lineOf([]byte(text), key); got != want {
			t.Errorf("lineOf(%s) = %d, want %d", key, got, want)
		}
	}
}

func TestCgroupDriver(t *testing.T) {
	for _, driver := range []string{driverCgroupfs, driverSystemd} {
		if got := (Config{CgroupDriver: driver}).cgroupDriver(); got != driver {
			t.Errorf("cgroupDriver of %s = %s", driver, got)
		}
	}
	if got := (Config{CgroupDriver: driverAuto}).cgroupDriver(); got != driverCgroupfs && got != driverSystemd {
		t.Errorf("cgroupDriver of auto = %s", got)
	}
}
