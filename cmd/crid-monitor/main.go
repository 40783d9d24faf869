// Command crid-monitor is the parent of all containers of a node. It is started
// by crid, or by systemd beside it, and outlives it; see package monitor.
//
// It has three modes: to serve; libcontainer's `init`, in which libcontainer
// starts it as the first process of each container and exec; and `seccomp`, in
// which it starts itself to compile a filter. Whatever is linked here is loaded
// for each of those.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"

	// Its C constructor makes and enters namespaces before the Go runtime starts.
	_ "github.com/opencontainers/runc/libcontainer/nsenter"
	"k8s.io/klog/v2"

	"github.com/cridproject/crid/monitor"
	"github.com/cridproject/crid/monitor/server"
)

// buildVersion is set by the linker, see Makefile.
var buildVersion = "dev"

func init() {
	// The main goroutine keeps the main thread to itself and only waits.
	// libcontainer enters containers' mount namespaces on threads that are then
	// thrown away; the main thread cannot be, and is what /proc/self shows.
	runtime.LockOSThread()
}

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "init":
			server.Init()
		case server.RecordMode:
			server.RecordFilter()
		}
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// maxSocket leaves room for the temporary name that a socket has at first.
const maxSocket = 107 - len(".1234567")

// heapLimit is soft: beyond it the collector works harder.
const heapLimit = 256 << 20

func run(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("crid-monitor", flag.ContinueOnError)
	flags.SetOutput(stderr)
	socket := flags.String("socket", "/run/crid/monitor.sock", "`path` of the unix socket")
	state := flags.String("state", "/run/crid/monitor", "`folder` of what must not survive a reboot")
	verbosity := flags.Int("log-verbosity", 0, "`level` of the log: 0 start, stop and lost data; 2 each change; 4 each call")
	showVersion := flags.Bool("version", false, "print the version and exit")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(stderr, "crid-monitor: unknown argument %q\n", flags.Arg(0))
		return 2
	}
	if *showVersion {
		fmt.Fprintf(stdout, "crid-monitor %s (protocol %d, %s)\n", buildVersion, monitor.Version, runtime.Version())
		return 0
	}
	for flag, path := range map[string]string{"socket": *socket, "state": *state} {
		if !filepath.IsAbs(path) {
			fmt.Fprintf(stderr, "crid-monitor: --%s %q is not an absolute path\n", flag, path)
			return 2
		}
	}
	if len(*socket) > maxSocket {
		fmt.Fprintf(stderr, "crid-monitor: --socket %q has %d bytes, a unix socket's path has at most %d\n", *socket, len(*socket), maxSocket)
		return 2
	}
	if err := serve(*socket, *state, *verbosity); err != nil {
		fmt.Fprintf(stderr, "crid-monitor: %v\n", err)
		return 1
	}
	return 0
}

func serve(socket, state string, verbosity int) error {
	stage, err := server.Bootstrap(state)
	if err != nil {
		return err
	}
	log, err := newLogger(verbosity)
	if err != nil {
		return err
	}
	defer klog.Flush()
	// The monitor lives for long and is idle for most of it: memory counts for
	// more than the time of a collection.
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(heapLimit)
	// For libcontainer, which hands it on to its init: that needs one thread.
	if err := os.Setenv("GOMAXPROCS", "1"); err != nil {
		return err
	}
	s, err := server.New(server.Options{Socket: socket, StateDir: state, Build: buildVersion, Log: log, Store: stage.Store})
	if err != nil {
		return err
	}
	// Caught and dropped, not ignored: containers would inherit that, and not end
	// with the reader of their pipe, or on SIGHUP where that is their stop signal.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	done := make(chan error)
	go func() { done <- s.Serve(ctx) }()
	if err := <-done; err != nil {
		return err
	}
	if !s.Empty() {
		return nil // containers live on, and what they need stays
	}
	return stage.Leave(state)
}

func newLogger(verbosity int) (klog.Logger, error) {
	flags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(flags)
	for name, value := range map[string]string{"v": strconv.Itoa(verbosity), "logtostderr": "true"} {
		if err := flags.Set(name, value); err != nil {
			return klog.Logger{}, fmt.Errorf("set up log: %w", err)
		}
	}
	return klog.Background(), nil
}
