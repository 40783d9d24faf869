package repotest

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

// Limits, in lines. Long functions are where other runtimes are hard to read; the
// way out is to name the steps, not to move lines.
const (
	maxFile     = 500
	maxFunction = 100 // of the body; not of tests, whose tables are data
)

func TestSizes(t *testing.T) {
	walk(t, func(file string) {
		src := read(t, file)
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, file, src, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Error(err)
			return
		}
		if ast.IsGenerated(f) {
			return
		}
		if n := bytes.Count(src, []byte("\n")); n > maxFile {
			t.Errorf("%s has %d lines, more than %d", file, n, maxFile)
		}
		if strings.HasSuffix(file, "_test.go") {
			return
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Body == nil {
				continue
			}
			begin, end := fset.Position(fn.Body.Lbrace).Line, fset.Position(fn.Body.Rbrace).Line
			if n := end - begin - 1; n > maxFunction {
				t.Errorf("%s:%d: %s has %d lines, more than %d", file, begin, fn.Name.Name, n, maxFunction)
			}
		}
	}, ".go")
}

// TestPackageComments: each package says what its job is, once.
func TestPackageComments(t *testing.T) {
	type docs struct {
		name  string
		files []string // with a package comment
	}
	packages := map[string]*docs{}
	walk(t, func(file string) {
		if strings.HasSuffix(file, "_test.go") {
			return
		}
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, file), nil, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Error(err)
			return
		}
		dir := path.Dir(file)
		if packages[dir] == nil {
			packages[dir] = &docs{name: f.Name.Name}
		}
		if text := f.Doc.Text(); text != "" {
			packages[dir].files = append(packages[dir].files, file)
			want := "Package " + f.Name.Name + " "
			if f.Name.Name != "main" && !strings.HasPrefix(text, want) {
				t.Errorf("%s: the package comment does not begin with %q", file, want)
			}
		}
	}, ".go")
	for dir, p := range packages {
		switch len(p.files) {
		case 0:
			t.Errorf("%s: package %s has no comment that says its job", dir, p.name)
		case 1:
		default:
			t.Errorf("%s: the package comment is in %s: it belongs in one file", dir, strings.Join(p.files, " and "))
		}
	}
}
