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

// Place is where tests run.
type Place int

const (
	Here  Place = iota // in the namespaces of the process
	Apart              // in a mount and a network namespace of their own: see enterApart
)

// Main is the body of TestMain: it builds what the flags do not name, runs the
// tests and returns the exit code. Without root it says so and runs none.
func Main(m *testing.M, where Place) int {
	flag.Parse()
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "test/e2e needs root: containers, namespaces and mounts are real here")
		if os.Getenv("CRID_REQUIRE_ROOT") != "" {
			return 1
		}
		return 0
	}
	code, err := run(m, where)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return code
}

func run(m *testing.M, where Place) (int, error) {
	dir, err := os.MkdirTemp("", "crid-e2e-bin-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	if err := findPrograms(dir); err != nil {
		return 1, err
	}
	if where == Apart {
		if os.Getenv(apartEnv) == "" {
			return runApart()
		}
		if err := enterApart(dir); err != nil {
			return 1, err
		}
	}
	return m.Run(), nil
}

// findPrograms sets thePrograms; crid and the monitor are built into dir unless
// the flags name them.
func findPrograms(dir string) error {
	repo, err := repository()
	if err != nil {
		return err
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
				return fmt.Errorf("build %s: %w", b.name, err)
			}
		}
		if *b.path, err = filepath.Abs(*b.path); err != nil {
			return err
		}
	}
	if *cniFlag == "" {
		*cniFlag = filepath.Join(repo, "bin", "cni")
	}
	if *cniFlag, err = filepath.Abs(*cniFlag); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(*cniFlag, "bridge")); err != nil {
		return fmt.Errorf("no CNI plugins in %s: run `make build`, or name their folder with -cni-bin", *cniFlag)
	}
	thePrograms = Programs{Crid: *cridFlag, Monitor: *monitorFlag, CNIBin: *cniFlag, CgroupDriver: *driverFlag}
	keep = *keepFlag
	return nil
}

// repository is the folder above the tests' own that has go.mod. In the VM there
// is none, and the flags name everything.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := dir; d != "/"; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			return d, nil
		}
	}
	return dir, nil
}
