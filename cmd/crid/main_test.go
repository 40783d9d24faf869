package main

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"crid": main})
}

// TestScripts runs testdata/*.txtar. Beside testscript's own commands there are
// "exits CODE PROGRAM ARGS...", which checks the exit code, "config FILE [POLICY]",
// which writes a configuration with all folders below $WORK, and with that signature
// policy, and "registry NAME FILE", which starts a server that wants to be asked for a
// token, and writes its URL for $NAME in FILE; "layout DIR" and "damage" are below.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "config": writeConfig, "registry": startRegistry, "layout": writeLayout, "damage": damage,
		},
	})
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARGS...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var exit *exec.ExitError
	switch err := ts.Exec(args[1], args[2:]...); {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("%v exits with %d, want %d", args[1:], got, want)
	}
}

func writeConfig(ts *testscript.TestScript, _ bool, args []string) {
	c := Default()
	for _, p := range []*string{&c.Root, &c.State, &c.Socket, &c.NetNSDir, &c.CNI.ConfDir} {
		*p = ts.MkAbs("." + *p)
	}
	c.Registry.ConfigDirs = []string{ts.MkAbs("certs")}
	c.CgroupParent, c.CgroupDriver = "/crid-cli-test", driverCgroupfs
	if len(args) > 1 {
		c.Images.SignaturePolicy = ts.MkAbs(args[1])
	}
	if len(args) > 2 {
		c.Images.SignatureVerifier = args[2]
	}
	text, err := c.documented()
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), text, 0o600))
}

func startRegistry(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: registry NAME FILE")
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="https://auth.example/token",service="s"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	ts.Defer(srv.Close)
	text := strings.ReplaceAll(ts.ReadFile(args[1]), "$"+args[0], srv.URL)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(text), 0o600))
}

// writeLayout writes an OCI layout with one image of one file, hello.
func writeLayout(ts *testscript.TestScript, _ bool, args []string) {
	img, err := crane.Image(map[string][]byte{"hello": []byte("hello, world\n")})
	ts.Check(err)
	path, err := layout.Write(args[0], empty.Index)
	ts.Check(err)
	ts.Check(path.AppendImage(img))
}

// damage changes the file hello of the one layer in the store, and no time.
func damage(ts *testscript.TestScript, _ bool, _ []string) {
	found, err := filepath.Glob(ts.MkAbs("."+Default().Root) + "/layers/*/fs/hello")
	ts.Check(err)
	if len(found) != 1 {
		ts.Fatalf("%d files hello, want one", len(found))
	}
	fi, err := os.Stat(found[0])
	ts.Check(err)
	ts.Check(os.WriteFile(found[0], []byte("HELLO, world\n"), 0o644))
	ts.Check(os.Chtimes(found[0], fi.ModTime(), fi.ModTime()))
}
