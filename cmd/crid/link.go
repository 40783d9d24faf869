package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/monitor"
	"github.com/cridproject/crid/sandbox"
)

// link is the connection to the monitor, as last made. The manager makes it,
// again whenever it is lost; here is only who looks on.
type link struct {
	options  monitor.SpawnOptions
	traced   bool // its calls are steps of requests
	current  atomic.Pointer[monitor.Client]
	restarts atomic.Uint64 // how often another process was found than before
}

// connect finds the monitor that runs, or starts one.
func (l *link) connect(ctx context.Context, onExit func(monitor.Exit)) (sandbox.Monitor, error) {
	o := l.options
	o.Client.OnExit = onExit
	c, err := monitor.Start(ctx, o)
	if err != nil {
		return nil, err
	}
	if old := l.current.Swap(c); old != nil && old.Peer().PID != c.Peer().PID {
		l.restarts.Add(1)
	}
	if l.traced {
		return &tracedMonitor{c}, nil
	}
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

// figures is the monitor's own.
func (l *link) figures(ctx context.Context) (monitor.DumpReply, error) {
	if err := l.status(); err != nil {
		return monitor.DumpReply{}, err
	}
	return l.current.Load().Dump(ctx)
}

// dump is figures, for those who only show them.
func (l *link) dump(ctx context.Context) (any, error) { return l.figures(ctx) }

// pid is the monitor's process ID.
func (l *link) pid() (int, error) {
	if err := l.status(); err != nil {
		return 0, err
	}
	return l.current.Load().Peer().PID, nil
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
