package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"sync/atomic"
	"syscall"

	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/monitor"
	"github.com/cridproject/crid/sandbox"
)

// link is the connection to the monitor, as last made. The manager makes it,
// again whenever it is lost; here is only who looks on.
type link struct {
	options monitor.SpawnOptions
	current atomic.Pointer[monitor.Client]
}

// connect finds the monitor that runs, or starts one.
func (l *link) connect(ctx context.Context, onExit func(monitor.Exit)) (sandbox.Monitor, error) {
	o := l.options
	o.Client.OnExit = onExit
	c, err := monitor.Start(ctx, o)
	if err != nil {
		return nil, err
	}
	l.current.Store(c)
	return c, nil
}

// status says why containers cannot be run at the moment; nil when they can.
func (l *link) status() error {
	if c := l.current.Load(); c != nil {
		select {
		case <-c.Done():
		default:
			return nil
		}
	}
	return errkind.Errorf(errkind.Unavailable, "crid-monitor is not there; its log is %s", l.options.LogFile)
}

// dump is the monitor's own figures.
func (l *link) dump(ctx context.Context) (any, error) {
	if err := l.status(); err != nil {
		return nil, err
	}
	return l.current.Load().Dump(ctx)
}

func monitorSocket(c Config) string { return filepath.Join(c.State, "monitor.sock") }

func spawnOptions(c Config) monitor.SpawnOptions {
	return monitor.SpawnOptions{
		Binary:    programPath("crid-monitor", c.MonitorBinary),
		Socket:    monitorSocket(c),
		StateDir:  filepath.Join(c.State, "monitor"),
		LogFile:   filepath.Join(c.State, "monitor.log"),
		Verbosity: c.LogVerbosity,
		Client:    monitor.ClientOptions{Build: version()},
	}
}

// programPath is the configured program, else the one beside crid's own, else the
// one in PATH. What is found nowhere is left to the start to complain about.
func programPath(name, configured string) string {
	if configured != "" {
		return configured
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), name)
		if _, err := os.Stat(beside); err == nil {
			return beside
		}
	}
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	return name
}

// answerSignals answers those signals that do not end crid, until ctx ends.
func answerSignals(ctx context.Context, signals <-chan os.Signal) {
	log := klog.FromContext(ctx)
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-signals:
			if s == syscall.SIGHUP {
				log.Info("Ignored SIGHUP: a changed configuration takes a restart, containers run on")
				continue
			}
			log.Info("Asked by SIGUSR1 for all goroutines, they follow")
			_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 2)
		}
	}
}
