package repotest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

var failpointName = regexp.MustCompile(`^[a-z]+(\.[a-z][a-z-]*){2,}$`)

// TestFailpointNames: a crash test names one place, so a name is there once. It
// begins with the package that it is in. Names that are put together are not seen.
func TestFailpointNames(t *testing.T) {
	seen := map[string]string{}
	walk(t, func(file string) {
		if strings.HasSuffix(file, "_test.go") || strings.HasPrefix(file, "internal/failpoint/") {
			return
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, filepath.Join(root, file), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Error(err)
			return
		}
		ast.Inspect(f, func(n ast.Node) bool {
			name, pos, ok := failpointHit(n)
			if !ok {
				return true
			}
			at := file + ":" + strconv.Itoa(fset.Position(pos).Line)
			if pkgName, _, _ := strings.Cut(name, "."); !failpointName.MatchString(name) || pkgName != f.Name.Name {
				t.Errorf("%s: failpoint %q is not %s.operation.step", at, name, f.Name.Name)
			}
			if other := seen[name]; other != "" {
				t.Errorf("%s: failpoint %q is at %s already", at, name, other)
			}
			seen[name] = at
			return true
		})
	}, ".go")
}

// failpointHit is the name in a call failpoint.Hit("name").
func failpointHit(n ast.Node) (name string, pos token.Pos, ok bool) {
	call, ok := n.(*ast.CallExpr)
	if !ok || len(call.Args) != 1 {
		return "", 0, false
	}
	fn, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || fn.Sel.Name != "Hit" {
		return "", 0, false
	}
	if x, isIdent := fn.X.(*ast.Ident); !isIdent || x.Name != "failpoint" {
		return "", 0, false
	}
	lit, ok := call.Args[0].(*ast.BasicLit)
	if !ok {
		return "", 0, false
	}
	name, err := strconv.Unquote(lit.Value)
	return name, lit.Pos(), err == nil
}
