package repotest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/cridproject/crid"

// root is the top folder of the repository, from this one.
const root = "../.."

// pkg is what `go list -json` says about a package.
type pkg struct {
	Dir, ImportPath, Name              string
	Standard                           bool
	GoFiles, CgoFiles                  []string
	Imports, TestImports, XTestImports []string
}

// folder is where the package is, from the top: "" is the top itself. ok is
// false for packages of other modules.
func (p pkg) folder() (path string, ok bool) { return folderOf(p.ImportPath) }

func folderOf(importPath string) (path string, ok bool) {
	rest, ok := strings.CutPrefix(importPath+"/", module+"/")
	return strings.TrimSuffix(rest, "/"), ok
}

// goList runs `go list -json`. Packages that do not compile are listed as far as
// they are understood: other tests and tools report them.
func goList(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-e", "-json=Dir,ImportPath,Name,Standard,GoFiles,CgoFiles,Imports,TestImports,XTestImports"}, args...)...)
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %s: %v\n%s", strings.Join(args, " "), err, &stderr)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatalf("go list %s: %v", strings.Join(args, " "), err)
		}
		pkgs = append(pkgs, p)
	}
}

// walk calls f for every file of the repository with one of the endings, as path
// from the top. What is built, cached or data of tests is left out.
func walk(t *testing.T, f func(path string), endings ...string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // a file of a build that goes on meanwhile
			}
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if path != root && (name[0] == '.' || name == "bin" || name == "testdata") {
				return fs.SkipDir
			}
			return nil
		}
		for _, e := range endings {
			if strings.HasSuffix(name, e) {
				rel, err := filepath.Rel(root, path)
				if err != nil {
					return err
				}
				f(filepath.ToSlash(rel))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// read is the contents of a file named from the top.
func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
