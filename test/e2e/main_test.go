package e2e

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

var (
	cridFlag    = flag.String("crid", "", "crid program to test; empty: build it with the race detector")
	monitorFlag = flag.String("monitor", "", "crid-monitor program to test; empty: build it with the race detector")
	cniFlag     = flag.String("cni-bin", "", "folder of the CNI plugins; empty: bin/cni of the repository")
	driverFlag  = flag.String("cgroup-driver", "cgroupfs", "cgroup driver of the nodes: cgroupfs or systemd")
	keepFlag    = flag.Bool("keep", false, "keep the folder of a failed test's node")
)

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "test/e2e needs root: containers, namespaces and mounts are real here")
		if os.Getenv("CRID_REQUIRE_ROOT") != "" {
			os.Exit(1)
		}
		os.Exit(0)
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "crid-e2e-bin-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	repo, err := filepath.Abs("../..")
	if err != nil {
		return 1, err
	}
	for _, b := range []struct {
		path *string
		name string
		args []string
	}{
		{cridFlag, "crid", []string{"-race", "-tags", buildTags}},
		{monitorFlag, "crid-monitor", []string{"-race", "-tags", "runc_nocriu,seccomp"}},
	} {
		if *b.path == "" {
			*b.path = filepath.Join(dir, b.name)
			args := append([]string{"build", "-o", *b.path}, b.args...)
			cmd := exec.Command("go", append(args, "./cmd/"+b.name)...)
			cmd.Dir, cmd.Stdout, cmd.Stderr = repo, os.Stderr, os.Stderr
			if err := cmd.Run(); err != nil {
				return 1, fmt.Errorf("build %s: %w", b.name, err)
			}
		}
		if *b.path, err = filepath.Abs(*b.path); err != nil {
			return 1, err
		}
	}
	if *cniFlag == "" {
		*cniFlag = filepath.Join(repo, "bin", "cni")
	}
	if *cniFlag, err = filepath.Abs(*cniFlag); err != nil {
		return 1, err
	}
	if _, err := os.Stat(filepath.Join(*cniFlag, "bridge")); err != nil {
		return 1, fmt.Errorf("no CNI plugins in %s: run `make build`, or name their folder with -cni-bin", *cniFlag)
	}
	thePrograms = Programs{Crid: *cridFlag, Monitor: *monitorFlag, CNIBin: *cniFlag, CgroupDriver: *driverFlag}
	keep = *keepFlag
	return m.Run(), nil
}
