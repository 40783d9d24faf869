package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cridproject/crid/monitor/server"
)

func TestMain(m *testing.M) {
	// Whoever is started as a container's init is one, whatever its name.
	if len(os.Args) > 1 && os.Args[1] == "init" {
		server.Init()
	}
	os.Exit(m.Run())
}

func TestFlags(t *testing.T) {
	for _, tt := range []struct {
		name           string
		args           []string
		code           int
		stdout, stderr string
	}{
		{"version", []string{"--version"}, 0, "crid-monitor dev (protocol 1", ""},
		{"help", []string{"--help"}, 0, "", "-socket path"},
		{"unknown flag", []string{"--nope"}, 2, "", "-nope"},
		{"bad level", []string{"--log-verbosity", "x"}, 2, "", "log-verbosity"},
		{"argument", []string{"serve"}, 2, "", `unknown argument "serve"`},
		{"relative state", []string{"--state", "x"}, 2, "", `--state "x"`},
		{"relative socket", []string{"--socket", "x"}, 2, "", `--socket "x"`},
		{"long socket", []string{"--socket", "/" + strings.Repeat("x", 120), "--state", filepath.Join(t.TempDir(), "s")}, 2, "", "at most"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out, errOut strings.Builder
			if code := run(tt.args, &out, &errOut); code != tt.code {
				t.Errorf("code %d, want %d", code, tt.code)
			}
			if !strings.Contains(out.String(), tt.stdout) || !strings.Contains(errOut.String(), tt.stderr) {
				t.Errorf("stdout %q, stderr %q, want %q and %q", out.String(), errOut.String(), tt.stdout, tt.stderr)
			}
		})
	}
}
